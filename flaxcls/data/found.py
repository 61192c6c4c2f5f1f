"""The files of a folder or a table: found, named, and read as far as their headers."""

import difflib
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from flaxcls.config import DataConfig
from flaxcls.data.arrange import check_readable
from flaxcls.data.columns import Chosen
from flaxcls.data.files import check_selection, describe_unselected, find_below, select
from flaxcls.data.images import unreadable
from flaxcls.data.layout import find_examples
from flaxcls.data.picture import Head
from flaxcls.data.preparation import Preparation
from flaxcls.data.stored import Bands, Files, Stored
from flaxcls.data.table import ImageFile, is_table, read_assignments, read_table
from flaxcls.errors import InputError, refuse
from flaxcls.storage import as_path, in_bucket, printable

ADVICE = "Put them there or repair them, or leave them out with --data.unreadable skip."
TABLE_OPTIONS = ("path_column", "label_column", "split_column", "group_column", "image_dir", "suffix")


def find_files(
    config: DataConfig, known: Sequence[str] = (), problems: list[str] | None = None
) -> tuple[Path, list[ImageFile], list[str]]:
    """Returns the folder or the table, its examples, and notes on them.

    known: classes of the run, if the place is another one than its own, in which its patterns may match nothing.
    problems: see `load`.
    """
    if in_bucket(str(config.dir)):
        raise InputError(
            f"data.dir {config.dir!r} is in a bucket, but folders of images must be on this machine: mount it there "
            "(gcsfuse) or copy it, or prepare the images with tensorflow-datasets, which can be read from a bucket "
            "(--data.source tfds)."
        )
    place = as_path(str(config.dir)).expanduser()
    if not is_table(place):
        return place, *find_examples(place, config.include, config.exclude, known=known, problems=problems)
    files, notes = read_table(
        place,
        path_columns=config.path_column,
        label_columns=config.label_column,
        split_column=config.split_column,
        group_column=config.group_column,
        image_dir=config.image_dir,
        suffix=config.suffix,
        skip_missing=config.unreadable != "stop" or problems is not None,
        problems=problems,
    )
    selected, unused = select([file.name for file in files], config.include, config.exclude)
    left_out = len(files) - len(selected)
    check_selection(place, len(selected), left_out, [] if known else unused)
    if not left_out:
        return place, files, notes
    chosen = set(selected)
    notes = [*notes, describe_unselected(left_out, len(files))]
    return place, [file for file in files if file.name in chosen], notes


def base_of(config: DataConfig, image_dir: str | None) -> Path:
    """Returns the folder of the images. image_dir: of the table, where `config` does not name it."""
    place = as_path(str(config.dir)).expanduser()
    if not is_table(place):
        return place
    return place.parent / Path((image_dir if config.image_dir is None else config.image_dir) or "").expanduser()


def image_dir_of(config: DataConfig, files: Sequence[ImageFile]) -> str | None:
    """Returns the image_dir of a table with these examples, as it was asked for or found; None: there is no table."""
    place = as_path(str(config.dir)).expanduser()
    if not is_table(place) or config.image_dir is not None:
        return config.image_dir
    inside, named = files[0].path.parts[len(place.parent.parts) :], Path(files[0].name).parts
    return inside[0] if len(inside) == len(named) + 1 else ""  # only folders beside the table are guessed


def find_assignments(config: DataConfig) -> Mapping[str, tuple[str, str] | None]:
    """Returns the names of all images in the folder or the table that the patterns select.

    In a table, each has a label and a split; in a folder, its name says them.
    """
    place = as_path(str(config.dir)).expanduser()
    if not is_table(place):
        return dict.fromkeys(map(printable, find_below(place, config.include, config.exclude).images))
    asked = Chosen(config.path_column, config.label_column, config.split_column, config.group_column)
    assignments = read_assignments(place, asked)
    return {name: assignments[name] for name in select(list(assignments), config.include, config.exclude)[0]}


def needless_options(config: DataConfig, place: Path) -> list[str]:
    """Returns the names of the options for tables that are set although `place` is a folder."""
    if is_table(place):
        return []
    return [name for name in TABLE_OPTIONS if getattr(config, name)]


def stored_pictures(files: Sequence[ImageFile], config: DataConfig) -> Stored:
    """Returns the pictures of the examples, each from a file, or each channel from a file of its own."""
    if files and files[0].more_paths:
        return Bands([file.paths for file in files], config.max_pixels, config.path_column)
    return Files([file.path for file in files], config.max_pixels)


def note_skipped(problems: Sequence[str], count: int) -> Sequence[str]:
    """Returns a note on the files that are left out, if there are any. count: number of the others."""
    return [unreadable(problems, count + len(problems), left_out=True)] if problems else ()


def find_class_names(files: Sequence[ImageFile], place: Path, problems: list[str] | None) -> list[str]:
    """Returns the classes of the training split, in order; names that are numbers are in the order of the numbers.

    Raises InputError if there is no training split or only one class, or if another split has a class that train lacks.
    If there is a list of problems, the last two are added to it, and such a class is one as well.
    """
    trained = {file.label for file in files if file.part == "train"}
    if not trained:
        raise InputError(
            f"{printable(place)} has the splits {', '.join(sorted({f.part for f in files}))}, but none named train."
        )
    numbers = all(name.isdecimal() for name in trained)
    names = sorted(trained, key=(lambda name: (int(name), name)) if numbers else None)
    for file in files:
        if file.label not in trained:
            near = difflib.get_close_matches(file.label, names, n=1)
            refuse(
                f"{file.name} in {printable(place)} is of the class {file.label!r}, but train has none of it."
                + (f" Did you mean {near[0]!r}?" if near else ""),
                problems,
            )
            trained.add(file.label)
            names.append(file.label)
    if len(names) < 2:
        refuse(f"{printable(place)} has the class {', '.join(names)} alone, but at least two are needed.", problems)
    return names


def describe_alike(files: Sequence[ImageFile]) -> list[str]:
    """Returns a line for names of classes that differ only by blanks, case or the encoding of accents."""
    counts = Counter(file.label for file in files)
    alike: dict[str, list[str]] = {}
    for label in sorted(counts):
        alike.setdefault("".join(unicodedata.normalize("NFKC", label).split()).casefold(), []).append(label)
    return [
        "classes whose names differ only by blanks, case or accents: "
        + ", ".join(f"{label!a} ({counts[label]:,})" for label in labels)
        for labels in alike.values()
        if len(labels) > 1
    ]


def read_heads(
    files: list[ImageFile],
    config: DataConfig,
    problems: list[str] | None = None,
    *,
    preparation: Preparation | None = None,
) -> tuple[list[ImageFile], list[Head], list[str]]:
    """Returns the files that are images, the head of each, and the problems of the other files.

    Only the headers are read. If unreadable files are to be skipped, all of each file is read, so that training does
    not find another one. If there is a list of problems, and none are to be replaced, files of more than 8 bits are,
    too, as their range of values is needed.

    preparation: how the images that a model was trained on were prepared; those of another depth are problems.
    """
    stored = stored_pictures(files, config)

    def read(index: int) -> Head | str:
        try:
            head = stored.head(index)
            if preparation is not None:
                preparation.check_depth(head.dtypes)
            ranged = problems is not None and config.unreadable == "stop" and head.dtype != "uint8"
            wholly = ranged or config.unreadable == "skip"
            if wholly or (files[index].more_paths and index == 0):  # a wrong column is seen at once
                stored[index]
            return head
        except InputError as error:
            return str(error)
        except ValueError as error:
            return f"{stored.name(index)}: {error}"

    with ThreadPoolExecutor() as pool:
        results = list(pool.map(read, range(len(files))))
    if config.unreadable == "stop" and problems is None:
        check_readable(results, ADVICE)
    kept = [(file, head) for file, head in zip(files, results, strict=True) if not isinstance(head, str)]
    unreadables = [problem for problem in results if isinstance(problem, str)]
    if not kept:
        raise InputError(f"{unreadable(unreadables, len(files))}\nNo image is left.")
    return [file for file, _ in kept], [head for _, head in kept], unreadables
