"""The list of the examples of a data set in files, by which they stay the same when files come, go or are damaged."""

import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from pyarrow import parquet

from flaxcls.config import FREE_DATA, DataConfig
from flaxcls.data.arrange import as_size
from flaxcls.data.files import few
from flaxcls.data.picture import Head
from flaxcls.data.preparation import Preparation
from flaxcls.data.table import ImageFile
from flaxcls.errors import InputError

DIGEST = 8  # bytes of the digest of a file that are kept
# Options that do not decide which examples a list holds, nor how they are prepared.
FREE = (*FREE_DATA, "sampling", "train_examples")


class Listed(NamedTuple):
    """The examples of a data set as they were found, in their order.

    files: their files; the split of each is that in which it is used.
    heads: what the headers of the files said.
    digests: of each example's files.
    class_names: all classes, in order.
    preparation: how the images became inputs of the model.
    fingerprint: of the data set.
    left_out: names of the images that were there but are not used.
    options: JSON of the options that decide all this.
    given: for each file, the split that the folder or the table gave it; None: not known, in lists of earlier versions.
    image_dir: of a table, as it was asked for or found.
    """

    files: list[ImageFile]
    heads: list[Head]
    digests: list[bytes]
    class_names: tuple[str, ...]
    preparation: Preparation
    fingerprint: str
    left_out: list[str]
    options: str
    given: list[str | None]
    image_dir: str | None


class Changes(NamedTuple):
    """What has changed since a list was made, by the names of the examples.

    missing: their files are missing.
    changed: their files have another content.
    come: they are not listed.
    dropped: their files are there, but the table or the patterns name them no longer.
    reassigned: the table now gives them another label or split; that follows the name.
    """

    missing: list[str]
    changed: list[str]
    come: list[str]
    dropped: list[str]
    reassigned: list[str]


def options_of(config: DataConfig, preparation: Preparation) -> str:
    """Returns JSON of the options that decide which examples there are and how they are prepared.

    What was found counts as if it had been asked for.
    """
    size, values = as_size(config.image_size) or preparation.size, config.value_range or preparation.value_range
    options = asdict(replace(config, image_size=size, value_range=values))
    return json.dumps({name: value for name, value in options.items() if name not in FREE})


def has_options(listed: Listed, config: DataConfig) -> bool:
    """True if a list was made with the options of `config`. One that it lacks, since it is new, had its default."""
    before = json.loads(json.dumps(asdict(DataConfig()))) | json.loads(listed.options)
    now = json.loads(options_of(config, listed.preparation))
    return all(before[name] == value for name, value in now.items())


def pack(listed: Listed, base: Path) -> bytes:
    """Returns the list as a Parquet file; paths below `base` are relative to it, so that the set can be moved."""
    start = f"{base}{os.sep}"

    def relative(path: Path) -> bytes:  # as text, because `Path.relative_to` takes a minute for a million files
        return os.fsencode(str(path).removeprefix(start))

    files, heads = listed.files, listed.heads
    table = pa.table(
        {
            "split": pa.array([file.part for file in files]).dictionary_encode(),
            "label": pa.array([file.label for file in files]).dictionary_encode(),
            "name": [file.name for file in files],
            "paths": pa.array([b"\0".join(map(relative, file.paths)) for file in files], pa.binary()),
            "height": [head.size[0] for head in heads],
            "width": [head.size[1] for head in heads],
            "channels": [head.channels for head in heads],
            "dtype": pa.array([head.dtype for head in heads]).dictionary_encode(),
            "note": pa.array([head.note for head in heads]).dictionary_encode(),
            "alpha": [head.alpha for head in heads],
            "given": pa.array(listed.given, pa.string()).dictionary_encode(),
            "digest": pa.array([digest[:DIGEST] for digest in listed.digests], pa.binary()),
        }
    )
    values = {
        "class_names": listed.class_names,
        "preparation": listed.preparation.as_record(),
        "fingerprint": listed.fingerprint,
        "left_out": listed.left_out,
        "options": listed.options,
        "image_dir": listed.image_dir,
    }
    packed = io.BytesIO()
    metadata: Any = {"flaxcls": json.dumps(values)}
    parquet.write_table(table.replace_schema_metadata(metadata), packed, compression="zstd")
    return packed.getvalue()


def unpack(data: bytes, find_base: Callable[[str | None], Path]) -> Listed:
    """Returns the list that `pack` wrote. Raises InputError if it is damaged.

    find_base: returns, for the `image_dir` of the list, the folder to which its paths are relative now.
    """
    try:
        table = parquet.read_table(io.BytesIO(data))
        values = json.loads(table.schema.metadata[b"flaxcls"])
        rows = table.to_pydict()
        base = find_base(values.get("image_dir"))
        paths = [_paths(packed, base) for packed in rows["paths"]]
        files = [
            ImageFile(first, name, label, split, None, tuple(more))
            for (first, *more), name, label, split in zip(
                paths, rows["name"], rows["label"], rows["split"], strict=True
            )
        ]
        alphas = rows.get("alpha", [count in (2, 4) for count in rows["channels"]])  # earlier versions kept none
        heads = [
            Head((height, width), channels, dtype, note, alpha)
            for height, width, channels, dtype, note, alpha in zip(
                *(rows[key] for key in ("height", "width", "channels", "dtype", "note")), alphas, strict=True
            )
        ]
        return Listed(
            files,
            heads,
            rows["digest"],
            tuple(values["class_names"]),
            Preparation.of_record(values),
            values["fingerprint"],
            values["left_out"],
            values["options"],
            rows.get("given", [None] * len(files)),
            values.get("image_dir"),
        )
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"the list of the run's examples is damaged ({error}): put a copy of examples.parquet back, or delete it, "
            "and the examples are found anew."
        ) from error


def compare(listed: Listed, digests: Sequence[bytes | None], found: Mapping[str, tuple[str, str] | None]) -> Changes:
    """Returns what has changed since the list was made.

    Args:
      listed: the list.
      digests: of the files of each example as they are now; None: they cannot be read.
      found: names of all images that are there now; each with the label and the split that a table gives it.
    """
    known = {*listed.left_out, *(file.name for file in listed.files)}
    missing, changed = [], []
    for file, before, now in zip(listed.files, listed.digests, digests, strict=True):
        if now is None:
            missing.append(file.name)
        elif now[:DIGEST] != before:
            changed.append(file.name)
    reassigned = []
    for file, given in zip(listed.files, listed.given, strict=True):
        label, part = found.get(file.name) or (file.label, given)
        pairs = ((file.label, label), (given or part, part))
        if moves := [f"{before} -> {now}" for before, now in pairs if before != now]:
            reassigned.append(f"{file.name} ({', '.join(moves)})")
    come = [name for name in found if name not in known]
    lost = {*missing}
    dropped = [file.name for file in listed.files if file.name not in found and file.name not in lost]
    return Changes(missing, changed, come, dropped, reassigned)


def is_same_set(listed: Listed, changes: Changes) -> bool:
    """True if more than half of the listed examples are there, unchanged."""
    return 2 * (len(changes.missing) + len(changes.changed)) < len(listed.files)


def check_there(listed: Listed, changes: Changes, place: str, advice: str | None) -> None:
    """Raises InputError if what is in `place` is another set, or if images are missing there.

    advice: what to do about missing images; None: they may be missing.
    """
    count, missing = f"{len(listed.files):,} images of the run", f"{len(changes.missing):,}"
    if not is_same_set(listed, changes):
        raise InputError(
            f"of the {count}, {missing} are not in {place}, and {len(changes.changed):,} are others there "
            f"({few([*changes.missing, *changes.changed])}): name the data that the run was started with by --data.dir."
        )
    if changes.missing and advice is not None:
        there = f" Others have come ({len(changes.come):,}: {few(changes.come)}): if it is they, move them back."
        raise InputError(
            f"{missing} of the {count} are not in {place}: {few(changes.missing)}.{there * bool(changes.come)} {advice}"
        )


def describe_changes(changes: Changes) -> Iterator[str]:
    """Yields a line on each kind of change."""
    for names, what in (
        (changes.come, "images that have come since the run began are not used"),
        (changes.missing, "images of the run are not there"),
        (changes.changed, "images have changed since the run began, and are used as they are now"),
        (changes.dropped, "images that are not named any more since the run began are still used"),
        (changes.reassigned, "labels or splits that have changed since the run began are used by a new run, not here"),
    ):
        if names:
            yield f"{what} ({len(names):,}): {few(names)}"


def _paths(packed: bytes, base: Path) -> tuple[Path, ...]:
    return tuple(base / os.fsdecode(path) for path in packed.split(b"\0"))
