"""The user's own images: a folder for each class, or a table of paths and labels."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from flaxcls.config import DataConfig
from flaxcls.data.arranged import Arranged, arranged, as_size, notes_on_sizes, unreadable
from flaxcls.data.columns import Chosen
from flaxcls.data.contents import Digest, content_of, digest_files, fingerprint_of, number_contents
from flaxcls.data.dataset import Dataset, Split, describe_held_out, from_splits, validation_stands_for_test
from flaxcls.data.files import find_below, select
from flaxcls.data.found import (
    ADVICE,
    describe_alike,
    find_class_names,
    find_files,
    is_table,
    needless_options,
    note_bands,
    note_skipped,
    read_heads,
    stored_pictures,
)
from flaxcls.data.held_out import describe_absent, hash_split, hash_units, rarest_labels
from flaxcls.data.images import Images
from flaxcls.data.listed import Changes, Listed, check_there, compare, describe_changes, is_same_set, pack, unpack
from flaxcls.data.picture import Head
from flaxcls.data.preparation import Preparation
from flaxcls.data.table import TABLES, ImageFile, read_assignments
from flaxcls.errors import InputError, refuse, unknown
from flaxcls.storage import as_path, printable

ADVICE_FOR_RUN = (
    "Put them back or repair them, or go on with --resume --data.unreadable replace, which takes the next image of the "
    "class in place of each."
)
ADVICE_LATER = (
    "Go on with --resume --data.unreadable replace, which takes the next image of its class in its place, or start "
    "without it with --data.unreadable skip."
)
# Options that decide neither which examples there are nor how they are prepared.
FREE = ("dir", "max_pixels", "unreadable", "memory", "workers", "on_device", "sampling", "train_examples")


def load(config: DataConfig, listing: bytes | None = None, problems: list[str] | None = None) -> Dataset:
    """Returns the images below the folder `config.dir`, or those that the table `config.dir` lists.

    They are decoded into memory if they need at most `config.memory`. Otherwise each is read when it is needed.

    Args:
      config: describes the data set.
      listing: of the data set as it was loaded before, with the same options. The examples are then those, in their
        splits: what has come since is not used, and what is missing cannot be read.
      problems: gets what training refuses, if the rest can be looked at, and files that are not readable are left out
        by their headers; None: it is refused.

    Raises:
      InputError: if there are no classes or no images, and for files that are not images, unless `config.unreadable`
        says otherwise. Also if half of the files that are listed are not there, or are others.
    """
    if listing is not None:
        listed = unpack(listing, _base(config))
        if listed.options == _options(config, listed.preparation):
            return dataclasses.replace(_load_listed(config, listed), listing=listing)
    place, files, notes = find_files(config, problems=problems)
    for name in needless_options(config, place):
        raise InputError(
            f"data.{name} is {getattr(config, name)!r}, but {place} is a folder, and it is for tables "
            f"({', '.join(TABLES)}): leave it out, or name a table by data.dir."
        )
    names = find_class_names(files, place, problems)
    notes += describe_alike(files)
    all_files = files
    files, heads, unreadables = read_heads(files, config, problems)
    given = {file.part for file in files}
    all_digests = digest_files(
        all_files, wholly=lambda file: file.part == "train" and not {"validation", "test"} <= given
    )
    digests = {file.name: digest for file, digest in zip(all_files, all_digests, strict=True)}
    notes += [*note_skipped(unreadables, len(files)), *note_bands(files)]
    readable_labels = {file.label for file in files}
    for name in names:
        if name not in readable_labels:
            refuse(
                f"the class {name!r} in {place} has no image that can be read: repair its images, or remove it.",
                problems,
            )
    if "train" not in given:
        raise InputError(f"{unreadable(unreadables, len(all_files))}\nNo image of train is left.")
    numbers = {name: number for number, name in enumerate(names)}
    labels = np.array([numbers[file.label] for file in files], np.int32)
    members = {part: [i for i, file in enumerate(files) if file.part == part] for part in {f.part: 0 for f in files}}
    found = _arrange(files, heads, labels, members, config, advice=ADVICE, problems=problems)
    contents = number_contents(files, [digests[file.name] for file in files])
    parts = _split(found, files, heads, labels, contents, members)
    origins = dict.fromkeys(parts, "given by the table" if is_table(place) else "given by folders")
    if config.test_from == "validation" and "test" not in parts and "validation" in parts:
        parts["test"], members["test"] = parts.pop("validation"), members.pop("validation")
        origins["test"] = f"the validation split, {origins.pop('validation')}"
        notes.append(validation_stands_for_test(printable(place)))
    units: dict[str, bytes] = {}
    grouped = any(file.group for file in files)
    for part, fraction in (("test", config.test_fraction), ("validation", config.validation_fraction)):
        if part not in parts and fraction:
            whole, units = parts["train"], units or _hash_train(files, digests)
            hashes = [units[name] for name in whole.ids]
            strata = rarest_labels(whole.labels, hashes) if grouped else whole.labels
            rest, held_out = hash_split(strata, hashes, fraction, config.split_seed)
            parts["train"], parts[part] = whole.take(rest), whole.take(held_out)
            of_train = np.array(members["train"])
            members |= {"train": of_train[rest].tolist(), part: of_train[held_out].tolist()}
            origins |= {"train": "the rest", part: describe_held_out(part, fraction, config.split_seed)}
    if grouped:
        notes += describe_absent(parts, names)
    print_of_files = fingerprint_of(all_files, all_digests)
    split_of = {index: part for part, chosen in members.items() for index in chosen}
    used = {file.name for file in files}
    listed = Listed(
        [dataclasses.replace(file, split=split_of[index]) for index, file in enumerate(files)],
        heads,
        [digests[file.name].ends for file in files],
        tuple(names),
        found.preparation,
        print_of_files,
        [name for name in _find_assignments(config) if name not in used],
        _options(config, found.preparation),
        [file.part for file in files],
    )
    return from_splits(
        parts["train"],
        parts.get("validation"),
        parts["test"],
        class_names=names,
        name=printable(place.resolve().stem),
        notes=[*notes, *found.notes],
        preparation=found.preparation,
        fingerprint=print_of_files,
        listing=pack(listed, _base(config)),
        source=_describe_source(config),
        origins=origins,
        unreadable=unreadables,
        problems=problems,
    )


def _describe_source(config: DataConfig) -> str:
    place = as_path(str(config.dir)).expanduser()
    return f"{'table' if is_table(place) else 'folder of classes'} {printable(place)}"


def _split(
    found: Arranged,
    files: Sequence[ImageFile],
    heads: Sequence[Head],
    labels: np.ndarray,
    contents: np.ndarray,
    members: Mapping[str, list[int]],
) -> dict[str, Split]:
    """Returns the splits, whose examples are `files[index]` for each index in `members`."""
    return {
        part: Split(
            found.images[part],
            labels[chosen],
            [files[index].name for index in chosen],
            [heads[index] for index in chosen],
            contents[chosen],
        )
        for part, chosen in members.items()
    }


def _hash_train(files: Sequence[ImageFile], digests: Mapping[str, Digest]) -> dict[str, bytes]:
    trained = [file for file in files if file.part == "train"]
    return hash_units(trained, [digests[file.name].content or content_of(file) for file in trained])


def _load_listed(config: DataConfig, listed: Listed) -> Dataset:
    """Returns the examples of a list, and notes on what has changed since it was made."""
    files = listed.files
    digests = digest_files(files, wholly=lambda file: False)
    changes = _changes(config, listed, digests)
    advice = None if config.unreadable == "replace" else ADVICE_FOR_RUN
    check_there(listed, changes, printable(str(config.dir)), advice)
    numbers = {name: number for number, name in enumerate(listed.class_names)}
    labels = np.array([numbers[file.label] for file in files], np.int32)
    members = {part: [i for i, file in enumerate(files) if file.part == part] for part in {f.part: 0 for f in files}}
    found = _arrange(files, listed.heads, labels, members, config, advice=ADVICE_FOR_RUN, prepared=listed.preparation)
    contents = number_contents(files, digests)
    parts = _split(found, files, listed.heads, labels, contents, members)
    return from_splits(
        parts["train"],
        parts.get("validation"),
        parts["test"],
        class_names=listed.class_names,
        name=printable(Path(str(config.dir)).expanduser().resolve().stem),
        notes=[*describe_changes(changes), *found.notes],
        preparation=listed.preparation,
        fingerprint=listed.fingerprint,
        source=_describe_source(config),
        origins=dict.fromkeys(parts, "as when the run began"),
    )


def is_listed(config: DataConfig, listing: bytes) -> bool:
    """True if a folder or a table, perhaps moved, is the data set of a list.

    It has no images that are not listed, and a table gives them no other labels and splits. Some of the listed ones may
    be missing.
    """
    listed = unpack(listing, _base(config))
    changes = _changes(config, listed, digest_files(listed.files, wholly=lambda file: False))
    return not (changes.come or changes.changed or changes.reassigned) and is_same_set(listed, changes)


def _changes(config: DataConfig, listed: Listed, digests: Sequence[Digest]) -> Changes:
    now = [digest.ends if digest.is_readable else None for digest in digests]
    return compare(listed, now, _find_assignments(config))


def _arrange(
    files: Sequence[ImageFile],
    heads: Sequence[Head],
    labels: np.ndarray,
    members: Mapping[str, list[int]],
    config: DataConfig,
    *,
    advice: str,
    prepared: Preparation | None = None,
    problems: list[str] | None = None,
) -> Arranged:
    """Returns the images of each split, whose examples are `files[index]` for each index in `members`."""
    return arranged(
        {
            part: (stored_pictures([files[index] for index in chosen], config), [heads[index] for index in chosen])
            for part, chosen in members.items()
        },
        dataclasses.replace(config, color="stored") if files[0].more_paths else config,
        name=str(config.dir),
        advice=advice,
        labels={part: labels[chosen] for part, chosen in members.items()} if config.unreadable == "replace" else None,
        prepared=prepared,
        later=ADVICE_LATER if problems is None else "",  # there is no run to go on with
        problems=problems,
    )


def _options(config: DataConfig, preparation: Preparation) -> str:
    """Returns JSON of the options that decide which examples there are and how they are prepared.

    What was found counts as if it had been asked for.
    """
    size, values = as_size(config.image_size) or preparation.size, config.value_range or preparation.value_range
    options = dataclasses.asdict(dataclasses.replace(config, image_size=size, value_range=values))
    return json.dumps({name: value for name, value in options.items() if name not in FREE})


def _base(config: DataConfig) -> Path:
    """Returns the folder of the images, or that of the table."""
    place = as_path(str(config.dir)).expanduser()
    return place.parent if is_table(place) else place


def _find_assignments(config: DataConfig) -> Mapping[str, tuple[str, str] | None]:
    """Returns the names of all images in the folder or the table that the patterns select.

    In a table, each has a label and a split; in a folder, its name says them.
    """
    place = as_path(str(config.dir)).expanduser()
    if not is_table(place):
        return dict.fromkeys(map(printable, find_below(place, config.include, config.exclude).images))
    asked = Chosen(config.path_column, config.label_column, config.split_column, config.group_column)
    assignments = read_assignments(place, asked)
    return {name: assignments[name] for name in select(list(assignments), config.include, config.exclude)[0]}


def fingerprint(config: DataConfig, known: Sequence[str]) -> str:
    """Returns the hash of the names, labels, splits and contents of the files, which is the same if the set is moved.

    Of a large file, its length, beginning and end are read. known: classes of the run, which tell its folders apart.

    Raises InputError like `load`.
    """
    files = find_files(config, known)[1]
    return fingerprint_of(files, digest_files(files, wholly=lambda file: False))


def count_files(config: DataConfig, known: Sequence[str]) -> int:
    """Returns the number of files in the folder or the table. Raises InputError like `load`."""
    return len(find_files(config, known)[1])


def load_examples(
    config: DataConfig, part: str, *, class_names: Sequence[str], preparation: Preparation
) -> tuple[str, Split, Sequence[str]]:
    """Returns data on which a trained model is evaluated: the name of the data set, its examples, and notes on them.

    The examples are those of one part, or all of them if the data set has no splits. Classes may be missing.

    Args:
      config: configuration of the folder or the table.
      part: train, validation or test.
      class_names: classes that the model knows.
      preparation: how the images that the model was trained on were prepared.

    Raises InputError like `load`, and if the data set has no such part, or a class that the model does not know.
    """
    if config.unreadable == "replace":  # that is for what is found later; here all of each file is read at once
        config = dataclasses.replace(config, unreadable="skip")
    place, files, notes = find_files(dataclasses.replace(config, group_column=""), known=class_names)
    notes += [
        f"data.{name} of the run is for tables, so it is not used here" for name in needless_options(config, place)
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
    files, heads, unreadables = read_heads(files, config)
    if files[0].more_paths and heads[0].channels != preparation.channels:
        raise InputError(
            f"data.path_column gives images of {heads[0].channels} channels, but the model takes "
            f"{preparation.channels}: name {preparation.channels} columns."
        )
    images = Images(
        stored_pictures(files, config), preparation, whole={head.size for head in heads} <= {preparation.size}
    )
    labels = np.array([numbers[file.label] for file in files], np.int32)
    split = Split(images, labels, [file.name for file in files])
    notes += [*note_skipped(unreadables, len(files)), *note_bands(files), *notes_on_sizes(heads, preparation)]
    return printable(place.resolve().stem), split, notes
