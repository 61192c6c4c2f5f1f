"""The user's own images: a folder for each class, or a table of paths and labels."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from flaxcls.config import DataConfig
from flaxcls.data.arrange import Arranged, arrange
from flaxcls.data.contents import Digest, content_of, digest_files, fingerprint_of, number_contents
from flaxcls.data.dataset import REST, Dataset, Split, describe_held_out, from_splits, validation_stands_for_test
from flaxcls.data.found import (
    ADVICE,
    base_of,
    describe_alike,
    find_assignments,
    find_class_names,
    find_files,
    image_dir_of,
    needless_options,
    note_skipped,
    read_heads,
    stored_pictures,
)
from flaxcls.data.held_out import describe_absent, explain_share, hash_split, hash_units, rarest_labels
from flaxcls.data.images import Images, unreadable
from flaxcls.data.listed import Listed, options_of, pack
from flaxcls.data.notes import notes_on_heads, notes_on_values
from flaxcls.data.picture import Head
from flaxcls.data.preparation import Preparation
from flaxcls.data.table import TABLES, UNLABELLED, ImageFile, is_table
from flaxcls.errors import InputError, refuse, unknown
from flaxcls.storage import as_path, printable

ADVICE_LATER = (
    "Go on with --resume --data.unreadable replace, which takes the next image of its class in its place, or start "
    "without it with --data.unreadable skip."
)


def load(config: DataConfig, problems: list[str] | None = None) -> Dataset:
    """Returns the images below the folder `config.dir`, or those that the table `config.dir` lists.

    They are decoded into memory if they need at most `config.memory`. Otherwise each is read when it is needed.

    Args:
      config: describes the data set.
      problems: gets what training refuses, if the rest can be looked at, and files that are not readable are left out
        by their headers (by all of each with `config.unreadable` skip); None: it is refused.

    Raises:
      InputError: if there are no classes or no images, and for files that are not images, unless `config.unreadable`
        says otherwise.
    """
    place, files, notes = find_files(config, problems=problems)
    for name in needless_options(config, place):
        raise InputError(
            f"data.{name} is {getattr(config, name)!r}, but {place} is a folder, and it is for tables "
            f"({', '.join(TABLES)}): leave it out, or name a table by data.dir."
        )
    is_labelled = {file.label for file in files} != {UNLABELLED}
    follow_ups = problems if is_labelled else []  # what follows from missing labels is not said
    class_names = find_class_names(files, place, follow_ups)
    notes += describe_alike(files)
    found = files
    files, heads, unreadables = read_heads(files, config, problems)
    if problems is None:  # else training may do otherwise, and `unreadable` has them
        notes += note_skipped(unreadables, len(files))
    given = {file.part for file in files}
    if "train" not in given:
        raise InputError(f"{unreadable(unreadables, len(found))}\nNo image of train is left.")
    without = set(class_names) - {file.label for file in files}
    for name in class_names:
        if name in without:
            refuse(
                f"the class {name!r} in {place} has no image that can be read: repair its images, or remove it.",
                problems,
            )
    is_split = {"validation", "test"} <= given  # else all of each file decides whether it is held out
    digests_found = digest_files(found, wholly=lambda file: file.part == "train" and not is_split)
    digest_of = {file.name: digest for file, digest in zip(found, digests_found, strict=True)}
    digests = [digest_of[file.name] for file in files]
    labels = number_labels(files, class_names)
    if is_labelled:
        members, origins = _choose_splits(files, labels, digests, config)
    else:
        members, origins = {"train": [*range(len(files))], "test": []}, {"train": "all", "test": "none is held out"}
    if "the validation split" in origins["test"]:
        notes.append(validation_stands_for_test(printable(place)))
    arrangement = arrange_files(files, heads, labels, members, config, advice=ADVICE, problems=problems)
    parts = make_splits(arrangement, files, heads, labels, number_contents(files, digests), members)
    if any(file.group for file in files):
        notes += describe_absent(parts, class_names)
    fingerprint = fingerprint_of(found, digests_found)
    split_of = {index: part for part, chosen in members.items() for index in chosen}
    used = {file.name for file in files}
    listed = Listed(
        [dataclasses.replace(file, split=split_of[index]) for index, file in enumerate(files)],
        heads,
        [digest.ends for digest in digests],
        tuple(class_names),
        arrangement.preparation,
        fingerprint,
        [name for name in find_assignments(config) if name not in used],
        options_of(config, arrangement.preparation),
        [file.part for file in files],
        image_dir_of(config, files),
    )
    return from_splits(
        parts["train"],
        parts.get("validation"),
        parts["test"],
        class_names=class_names,
        name=printable(place.resolve().stem),
        notes=[*notes, *arrangement.notes],
        preparation=arrangement.preparation,
        fingerprint=fingerprint,
        listing=pack(listed, base_of(config, listed.image_dir)),
        source=describe_source(config, is_labelled=is_labelled),
        origins=origins,
        unreadable=unreadables,
        problems=follow_ups,
    )


def _choose_splits(
    files: Sequence[ImageFile], labels: np.ndarray, digests: Sequence[Digest], config: DataConfig
) -> tuple[dict[str, list[int]], dict[str, str]]:
    """Returns the indices of the files of each split, held out of train where none are given, and their origins.

    labels: i32[n], class numbers.
    digests: of the files.
    """
    members = members_of(files)
    place = as_path(str(config.dir)).expanduser()
    origins = dict.fromkeys(members, "given by the table" if is_table(place) else "given by folders")
    if config.test_from == "validation" and "test" not in members and "validation" in members:
        members["test"] = members.pop("validation")
        origins["test"] = f"the validation split, {origins.pop('validation')}"
    trained = [files[index] for index in members["train"]]
    is_grouped = any(file.group for file in files)
    units: dict[str, bytes] = {}
    for part, fraction in (("test", config.test_fraction), ("validation", config.validation_fraction)):
        if part in members or not fraction:
            continue
        if not units:
            contents = [digests[index].content or content_of(files[index]) for index in members["train"]]
            units = hash_units(trained, contents)
        whole = np.array(members["train"])
        hashes = [units[files[index].name] for index in whole]
        strata = rarest_labels(labels[whole], hashes) if is_grouped else labels[whole]
        rest, held_out = hash_split(strata, hashes, fraction, config.split_seed)
        members |= {"train": whole[rest].tolist(), part: whole[held_out].tolist()}
        difference = explain_share(strata, hashes, len(held_out), fraction, in_groups=is_grouped)
        share = len(held_out) / len(whole) if difference else fraction
        origins |= {part: describe_held_out(share, origins, config.split_seed, difference), "train": REST}
    return members, origins


def members_of(files: Sequence[ImageFile]) -> dict[str, list[int]]:
    """Returns the indices of the files of each split that they name; no split means train."""
    members: dict[str, list[int]] = {}
    for index, file in enumerate(files):
        members.setdefault(file.part, []).append(index)
    return members


def number_labels(files: Sequence[ImageFile], class_names: Sequence[str]) -> np.ndarray:
    """Returns i32[n], the class number of each file."""
    numbers = {name: number for number, name in enumerate(class_names)}
    return np.array([numbers[file.label] for file in files], np.int32)


def make_splits(
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


def arrange_files(
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
    return arrange(
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


def describe_source(config: DataConfig, *, is_labelled: bool = True) -> str:
    """Returns format and place of the data. is_labelled: False if nothing gives the images labels."""
    place = as_path(str(config.dir)).expanduser()
    folder = "folder of classes" if is_labelled else "folder of images"
    return f"{'table' if is_table(place) else folder} {printable(place)}"


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
) -> tuple[str, Split, list[str]]:
    """Returns data on which a trained model is evaluated: the name of the data set, its examples, and notes on them.

    The examples are those of one part, or all of them if the data set has no splits. Classes may be missing.

    Args:
      config: configuration of the folder or the table.
      part: train, validation or test.
      class_names: classes that the model knows.
      preparation: how the images that the model was trained on were prepared.

    Raises InputError like `load`, and if the data set has no such part, or a class that the model does not know.
    Examples that cannot be read are left out when the others are, and `describe_read` says which.
    """
    if config.unreadable == "skip":  # all of a file is read once, when its image is evaluated
        config = dataclasses.replace(config, unreadable="replace")
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
    _, heads, _ = read_heads(files, config, preparation=preparation)
    if files[0].more_paths and heads[0].channels != preparation.channels:
        raise InputError(
            f"data.path_column gives images of {heads[0].channels} channels, but the model takes "
            f"{preparation.channels}: name {preparation.channels} columns."
        )
    labels = np.array([numbers[file.label] for file in files], np.int32)
    images = Images(
        stored_pictures(files, config),
        preparation,
        whole={head.size for head in heads} <= {preparation.size},
        labels=labels,
        is_measured=True,
    )
    split = Split(images, labels, [file.name for file in files])
    return printable(place.resolve().stem), split, [*notes, *notes_on_heads(heads, preparation)]


def describe_read(config: DataConfig, images: Images) -> list[str]:
    """Returns notes on images of `load_examples` when all have been read: on those left out, and on their values.

    Raises InputError if some could not be read, unless `config.unreadable` lets them be left out.
    """
    problems = [unread.reason for _, unread in sorted(images.unread.items())]
    if problems and config.unreadable == "stop":
        raise InputError(f"{unreadable(problems, len(images))}\n{ADVICE}")
    values = notes_on_values(images.extents.values(), images.preparation, options=False)
    return [*note_skipped(problems, len(images) - len(problems)), *values]
