"""The user's own images: a folder for each class, or a table of paths and labels."""

import dataclasses
import difflib
import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from flaxcls.config import DataConfig
from flaxcls.data.dataset import Dataset, Split, from_splits
from flaxcls.data.groups import describe_absent, hash_units, rarest_labels
from flaxcls.data.images import (
    Bands,
    Files,
    Stored,
    arranged,
    check_readable,
    read_bands,
    read_image,
    unreadable,
    upright_size,
)
from flaxcls.data.resize import square
from flaxcls.data.table import SPLITS, TABLES, ImageFile, read_table
from flaxcls.errors import InputError, unknown
from flaxcls.storage import as_path, in_bucket

ADVICE = "Repair or remove them, or skip them with --data.unreadable skip."
TABLE_OPTIONS = ("path_column", "label_column", "split_column", "group_column", "image_dir", "suffix")


def load(config: DataConfig) -> Dataset:
    """Returns the images below the folder `config.dir`, or those that the table `config.dir` lists.

    They are decoded into memory if they need at most `config.memory`. Otherwise each is read when it is needed.

    Raises:
      InputError: if there are no classes or no images, and for files that are not images, unless `config.unreadable`
        says to skip them.
    """
    place, files, notes = _find_files(config)
    for name in _needless_options(config, place):
        raise InputError(
            f"data.{name} is {getattr(config, name)!r}, but {place} is a folder, and it is for tables "
            f"({', '.join(TABLES)}): leave it out, or name a table by data.dir."
        )
    class_names = _class_names(files, place)
    files, sizes, problems = _readable(files, config)
    notes += [*_note_skipped(problems, len(files)), *_note_bands(files)]
    readable_labels = {file.label for file in files}
    empty_classes = [name for name in class_names if name not in readable_labels]
    if empty_classes:
        raise InputError(
            f"the class {empty_classes[0]!r} in {place} has no image that can be read: repair its images, or remove it."
        )
    channels = len(files[0].paths) if files[0].more_paths else 3 if config.color == "rgb" else 1
    numbers = {name: number for number, name in enumerate(class_names)}
    labels = np.array([numbers[file.label] for file in files], np.int32)
    members = {part: [i for i, file in enumerate(files) if file.part == part] for part in {f.part: 0 for f in files}}
    images = arranged(
        {
            part: (_stored([files[index] for index in chosen], channels), [sizes[index] for index in chosen])
            for part, chosen in members.items()
        },
        size=square(config.image_size),
        channels=channels,
        memory=config.memory,
        advice=ADVICE,
    )
    parts = {
        part: Split(images[part], labels[chosen], [files[index].name for index in chosen])
        for part, chosen in members.items()
    }
    units: dict[str, bytes] = {}
    grouped = any(file.group for file in files)
    for part, fraction in (("test", config.test_fraction), ("validation", config.validation_fraction)):
        if part not in parts and fraction:
            whole, units = parts["train"], units or hash_units([file for file in files if file.part == "train"])
            hashes = [units[name] for name in whole.ids]
            strata = rarest_labels(whole.labels, hashes) if grouped else whole.labels
            rest, held_out = hash_split(strata, hashes, fraction, config.split_seed)
            parts["train"], parts[part] = whole.take(rest), whole.take(held_out)
    if grouped:
        notes += describe_absent(parts, class_names)
    return from_splits(
        parts["train"],
        parts.get("validation"),
        parts["test"],
        class_names=class_names,
        name=place.resolve().stem,
        notes=notes,
    )


def load_examples(
    config: DataConfig, part: str, *, class_names: Sequence[str], image_shape: tuple[int, int, int]
) -> tuple[str, Split, Sequence[str]]:
    """Returns data on which a trained model is evaluated: the name of the data set, its examples, and notes on them.

    The examples are those of one part, or all of them if the data set has no splits. Classes may be missing.

    Args:
      config: configuration of the folder or the table.
      part: train, validation or test.
      class_names: classes that the model knows.
      image_shape: (h, w, c) of the images that the model sees.

    Raises InputError like `load`, and if the data set has no such part, or a class that the model does not know.
    """
    place, files, notes = _find_files(dataclasses.replace(config, group_column=""))  # no split is held out
    notes += [
        f"data.{name} of the run is for tables, so it is not used here" for name in _needless_options(config, place)
    ]
    parts = {file.part for file in files if file.split}
    if parts:
        files = [file for file in files if file.part == part]
    if not files:
        raise InputError(f"{place} has the splits {', '.join(sorted(parts))}, but not {part}: choose one with --split.")
    numbers = {name: number for number, name in enumerate(class_names)}
    for file in files:
        if file.label not in numbers:
            raise InputError(f"{file.name} in {place}: {unknown('class', file.label, class_names)}")
    files, sizes, problems = _readable(files, config)
    if not files:
        raise InputError(f"{unreadable(problems, len(problems))}\nNo image is left.")
    channels = len(files[0].paths)
    if files[0].more_paths and channels != image_shape[2]:
        raise InputError(
            f"data.path_column gives images of {channels} channels, but the model takes {image_shape[2]}: name "
            f"{image_shape[2]} columns."
        )
    images = arranged(
        {part: (_stored(files, image_shape[2]), sizes)},
        size=image_shape[:2],
        channels=image_shape[2],
        memory=config.memory,
        advice=ADVICE,
    )
    labels = np.array([numbers[file.label] for file in files], np.int32)
    split = Split(images[part], labels, [file.name for file in files])
    notes += [*_note_skipped(problems, len(files)), *_note_bands(files)]
    return place.resolve().stem, split, notes


def _find_files(config: DataConfig) -> tuple[Path, list[ImageFile], list[str]]:
    """Returns the folder or the table, its examples, and notes on them."""
    if in_bucket(str(config.dir)):
        raise InputError(
            f"data.dir {config.dir!r} is in a bucket, but folders of images must be on this machine: mount it there "
            "(gcsfuse) or copy it, or prepare the images with tensorflow-datasets, which can be read from a bucket "
            "(--data.source tfds)."
        )
    place = as_path(str(config.dir)).expanduser()
    if not _is_table(place):
        return place, _from_folders(place), []
    files, notes = read_table(
        place,
        path_columns=config.path_column,
        label_columns=config.label_column,
        split_column=config.split_column,
        group_column=config.group_column,
        image_dir=config.image_dir,
        suffix=config.suffix,
        skip_missing=config.unreadable == "skip",
    )
    return place, files, notes


def _is_table(place: Path) -> bool:
    return place.suffix.lower() in TABLES


def _needless_options(config: DataConfig, place: Path) -> list[str]:
    """Returns the names of the options for tables that are set although `place` is a folder."""
    if _is_table(place):
        return []
    return [name for name in TABLE_OPTIONS if getattr(config, name)]


def _stored(files: Sequence[ImageFile], channels: int) -> Stored:
    """Returns the pictures of the examples, each from a file, or each channel from a file of its own."""
    if files and files[0].more_paths:
        return Bands([file.paths for file in files])
    return Files([file.path for file in files], channels)


def _note_bands(files: Sequence[ImageFile]) -> Iterator[str]:
    """Yields a note if the channels of some examples differ in size. Only the headers are read."""

    def differs(file: ImageFile) -> bool:
        return len({upright_size(path, str(path)) for path in file.paths}) > 1

    with ThreadPoolExecutor() as pool:
        count = sum(pool.map(differs, [file for file in files if file.more_paths]))
    if count:
        yield f"{count} images have channels of several sizes: they are resized to the size of the first channel"


def _note_skipped(problems: Sequence[str], count: int) -> Sequence[str]:
    """Returns a note on the files that are not images, if there are any. count: number of files that are images."""
    return [f"{unreadable(problems, count + len(problems))}\nThey are left out."] if problems else ()


def hash_split(
    labels: np.ndarray, hashes: Sequence[bytes], fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns sorted indices (rest, held out); of each class, about the share `fraction` of its examples is held out.

    The seed and the hash of an example decide, not its name or position. So equal hashes are never separated, and an
    example keeps its side when others are added. A class with two or more hashes has at least one on each side;
    a hash with more than half of a class is not held out.
    """
    members: dict[bytes, list[int]] = {}
    for index, digest in enumerate(hashes):
        members.setdefault(digest, []).append(index)
    by_class: dict[int, list[bytes]] = {}
    for digest, indices in members.items():  # copies with different labels go with the first label
        by_class.setdefault(int(labels[indices[0]]), []).append(digest)
    held_out = np.zeros(len(labels), bool)
    for digests in by_class.values():
        total = sum(len(members[digest]) for digest in digests)
        wanted = fraction * total
        # one with more than half of the class comes last, so that it is not held out
        digests.sort(
            key=lambda digest: (2 * len(members[digest]) > total, hashlib.sha256(b"%d " % seed + digest).digest())
        )
        taken = 0
        for number, digest in enumerate(digests[:-1]):
            if number and taken + len(members[digest]) / 2 > wanted:
                break
            held_out[members[digest]] = True
            taken += len(members[digest])
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def _from_folders(place: Path) -> list[ImageFile]:
    if not place.is_dir():
        raise InputError(f"data.dir {str(place)!r} is no folder, and no table that ends with {' or '.join(TABLES)}.")
    folders = _folders(place)
    splits = [folder for folder in folders if folder.name.lower() in SPLITS]
    strange = [folder.name for folder in folders if folder not in splits]
    if strange and any(SPLITS[folder.name.lower()] == "train" for folder in splits):
        raise InputError(
            f"{place} has the split {splits[0].name} and beside it {', '.join(strange[:5])}, which is no split "
            f"({', '.join(SPLITS)}): move it away, or, if all are classes, rename those with the name of a split."
        )
    found: list[tuple[str | None, Path]]
    if splits and not strange:
        found = [(folder.name.lower(), name) for folder in splits for name in _folders(folder)]
    else:
        found = [(None, folder) for folder in folders]
    if not found:
        raise InputError(f"{place} holds no folder: it needs one for each class, with its images in it.")
    files = []
    for split, folder in found:
        inside = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
        if not inside:
            raise InputError(f"the class folder {folder} holds no image: put some into it, or remove it.")
        names = (path.relative_to(place).as_posix() for path in inside)
        files += [ImageFile(path, name, folder.name, split) for path, name in zip(inside, names, strict=True)]
    return files


def _folders(place: Path) -> list[Path]:
    return sorted(path for path in place.iterdir() if path.is_dir() and not path.name.startswith("."))


def _class_names(files: list[ImageFile], place: Path) -> list[str]:
    trained = {file.label for file in files if file.part == "train"}
    if not trained:
        raise InputError(
            f"{place} has the splits {', '.join(sorted({str(f.split) for f in files}))}, but none named train."
        )
    numbers = all(name.isdecimal() for name in trained)
    names = sorted(trained, key=(lambda name: (int(name), name)) if numbers else None)
    for file in files:
        if file.label not in trained:
            near = difflib.get_close_matches(file.label, names, n=1)
            raise InputError(
                f"{file.name} in {place} is of the class {file.label!r}, but train has none of it."
                + (f" Did you mean {near[0]!r}?" if near else "")
            )
    if len(names) < 2:
        raise InputError(f"{place} has the class {', '.join(names)} alone, but at least two are needed.")
    return names


def _readable(files: list[ImageFile], config: DataConfig) -> tuple[list[ImageFile], list[tuple[int, int]], list[str]]:
    """Returns the files that are images, the height and width of each, and the problems of the other files.

    Only the headers are read. If unreadable files are to be skipped, all of each file is read, so that training does
    not find another one.
    """

    def read_size(file: ImageFile) -> tuple[int, int] | str:
        try:
            size, *_ = [upright_size(path, str(path)) for path in file.paths]
            if file.more_paths and (config.unreadable == "skip" or file is files[0]):  # a wrong column is seen at once
                read_bands(file.paths)
            elif config.unreadable == "skip":
                read_image(file.path)
            return size
        except InputError as error:
            return str(error)

    with ThreadPoolExecutor() as pool:
        results = list(pool.map(read_size, files))
    if config.unreadable == "stop":
        check_readable(results, ADVICE)
    kept = [(file, size) for file, size in zip(files, results, strict=True) if not isinstance(size, str)]
    problems = [problem for problem in results if isinstance(problem, str)]
    return [file for file, _ in kept], [size for _, size in kept], problems
