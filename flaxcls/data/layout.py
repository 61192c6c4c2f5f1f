"""The classes and splits that the folders below a place mean. What is not certain is asked for by an error."""

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from flaxcls.data.files import (
    Below,
    check_selection,
    describe_left_out,
    describe_masks,
    describe_twins,
    describe_unselected,
    few,
    find_below,
)
from flaxcls.data.table import SPLITS, TABLES, UNLABELLED, ImageFile
from flaxcls.errors import InputError, refuse
from flaxcls.storage import printable

# Words that name no split and are ignored beside one that does, as in train_images, seg_test, TEST_SIMPLE, val2017.
FILLERS = {"data", "dataset", "image", "images", "img", "imgs", "seg", "set", "simple", "split"}


class Folder(NamedTuple):
    """A folder with images, or an empty one.

    path: relative to the place.
    images: paths of the images directly in it.
    folders: the folders directly in it, by name.
    """

    path: str
    images: list[str]
    folders: dict[str, "Folder"]

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("/")[2]

    def below(self) -> Iterator[str]:
        """Yields the images in it and in the folders below it."""
        yield from self.images
        for folder in self.folders.values():
            yield from folder.below()

    def filled(self) -> list["Folder"]:
        """Returns the folders directly in it that have images in them or below them."""
        return [folder for folder in self.folders.values() if next(folder.below(), None) is not None]


class ClassFolder(NamedTuple):
    """A folder whose images have one class, and one split unless `split` is None."""

    label: str
    split: str | None
    folder: Folder


class Layout(NamedTuple):
    """What the folders mean.

    classes: the folders with examples.
    unused: images that lie beside these folders.
    notes: lines on what was decided.
    """

    classes: list[ClassFolder]
    unused: list[str]
    notes: list[str]


def find_examples(
    place: Path,
    include: Sequence[str],
    exclude: Sequence[str],
    *,
    known: Collection[str] = (),
    problems: list[str] | None = None,
) -> tuple[list[ImageFile], list[str]]:
    """Returns the images below a folder with their classes and splits, and notes on what was left out or decided.

    The place has a folder for each class, or folders of splits that have such folders, or class folders that have
    folders of splits. An image belongs to the class in whose folder it lies, however deep. If a place holds one folder
    alone, which has further folders, that folder is read in its place, as in an unpacked archive.

    Args:
      place: the folder.
      include: patterns of the images to use, as in `files.select`; empty: all.
      exclude: patterns of the images to leave out.
      known: classes of a run that is evaluated on this place. Folders of these names are classes, and a pattern may
        match nothing.
      problems: gets the lines on a class without images, and on folders that give no labels, whose images then are one
        class; None: it is refused.

    Raises:
      InputError: if there is no class, if a class has no image or a name that is no UTF-8, or if it is not certain what
        is a class and what a split.
    """
    if not place.is_dir():
        raise InputError(
            f"data.dir {printable(place)!r} is no folder, and no table that ends with {' or '.join(TABLES)}."
        )
    below = find_below(place, include, exclude)
    check_selection(place, len(below.images), len(below.unselected), [] if known else below.unused)
    left_out = describe_left_out(below.others, below.hidden)
    try:
        layout = read_layout(_tree(below), printable(place), known)
        if not layout.classes:
            raise InputError(_no_classes(place, below))
    except InputError as error:
        if problems is None or not below.images:
            raise
        problems.append(str(error))
        note = "no image has a label that is certain: all are one group, from which nothing is held out"
        return [ImageFile(place / path, printable(path), UNLABELLED, None) for path in below.images], [note, *left_out]
    paths = []
    for label, split, folder in layout.classes:
        images = list(folder.below())
        _check_class(label, images, folder.path, below, place, problems if below.images else None)
        paths += [(path, label, split) for path in images]
    paths.sort(key=lambda found: found[0].split("/"))
    notes = [*layout.notes, *left_out]
    if layout.unused:
        notes.append(f"left out, as they lie in no class folder ({len(layout.unused):,}): {few(sorted(layout.unused))}")
    if include or exclude:
        total = sum(map(len, (below.images, below.others, below.unselected)))
        notes.append(describe_unselected(len(below.unselected), total))
    else:
        notes += filter(None, (describe_masks(below.images), describe_twins(below.images)))
    return [ImageFile(place / path, printable(path), label, split) for path, label, split in paths], notes


def _tree(below: Below) -> Folder:
    top = Folder("", [], {})

    def reach(parts: Sequence[str]) -> Folder:
        folder = top
        for end, part in enumerate(parts, 1):
            if part not in folder.folders:
                folder.folders[part] = Folder("/".join(parts[:end]), [], {})
            folder = folder.folders[part]
        return folder

    for path in below.folders:
        reach(path.split("/"))
    for path in below.images:
        reach(path.split("/")[:-1]).images.append(path)
    return top


def _no_classes(place: Path, below: Below) -> str:
    needs = f"{printable(place)} has no folders of classes: it needs one for each class, with its images in it."
    if not below.images:
        return f"{needs} There is no image in it."
    folders = Counter(path.rpartition("/")[0] for path in below.images)
    where = few(f"{folder or 'it'} ({count:,})" for folder, count in folders.items())
    verb = "lies" if len(below.images) == 1 else "lie"
    tables = [path for path in below.others if path.lower().endswith(TABLES)]
    advice = f" If a table lists their labels, name it with --data.dir: {few(tables)}." if tables else ""
    return f"{needs} {len(below.images):,} image{'s' * (len(below.images) > 1)} {verb} directly in {where}.{advice}"


def _check_class(
    label: str, images: Sequence[str], path: str, below: Below, place: Path, problems: list[str] | None
) -> None:
    folder = printable(place / path)
    if printable(label) != label:
        raise InputError(
            f"the name of the class folder {folder} is no UTF-8: rename it, because names of classes are written to "
            "many files."
        )
    if not images:
        others = few(name for name in below.others if name.startswith(f"{path}/"))
        refuse(
            f"the class folder {folder} holds no image{others and f' (but {others})'}: put some into it, remove it, or "
            f"leave it out with --data.exclude '{printable(path)}'.",
            problems,
        )


def part_of(name: str) -> str | None:
    """Returns train, validation or test if that is what a name of a folder means, such as Training or val_images."""
    words = [word for word in re.findall("[a-z]+", name.lower()) if word not in FILLERS]
    if len(words) != 1:
        return None
    return SPLITS.get(words[0]) or SPLITS.get(words[0].removesuffix("set"))


def read_layout(top: Folder, place: str, known: Collection[str] = ()) -> Layout:
    """Returns what the folders of `top` mean. Raises InputError if it is not certain.

    Args:
      top: the folders below a place.
      place: its path, for messages.
      known: names of folders that are classes.
    """
    inner, passed = _unwrap(top, lambda folder: folder.name in known or part_of(folder.name) is not None)
    folders = inner.filled()
    named = {folder.path: part for folder in folders if folder.name not in known and (part := part_of(folder.name))}
    splits = [folder for folder in folders if folder.path in named and folder.filled()]
    flat = [folder for folder in folders if folder.path in named and not folder.filled()]
    others = [folder for folder in folders if folder.path not in named]
    if splits:
        _refuse_others(splits, others, place)
        layout = _of_splits(splits, flat, named)
    elif flat and (not others or len(set(named.values())) > 1):  # splits of images whose labels are elsewhere
        layout = Layout([], [path for folder in flat for path in folder.below()], [])
    else:
        layout = _of_classes(inner, flat, place, known)
    labels = {found.label for found in layout.classes}
    if len(labels) > 1 and all(map(part_of, labels)) and not known:
        raise InputError(
            f"{place} has the classes {few(sorted(labels))}, which are names of splits: name the folder in which the "
            "splits lie with --data.dir, or rename the classes."
        )
    notes = list(layout.notes)
    if inner is not top:
        notes.insert(0, f"{place} holds the folder {printable(inner.path)} alone: its folders are read")
    filled = {folder.path for folder in folders}
    if splits:
        empty = (folder.path for folder in inner.folders.values() if folder.path not in filled)
        notes += [f"{printable(path)} has no image" for path in empty if part_of(path)]
    deep = [found.folder for found in layout.classes if found.folder.filled()]
    if deep:
        counts = (
            f"{folder.path} ({len([*folder.below()]):,} in {few(child.name for child in folder.filled())})"
            for folder in deep
        )
        notes.append(f"classes whose folders have folders, all images of which count: {few(counts)}")
    return Layout(layout.classes, [*passed, *inner.images, *layout.unused], notes)


def _unwrap(folder: Folder, stops: Callable[[Folder], bool]) -> tuple[Folder, list[str]]:
    """Returns the first folder from `folder` down that does not hold one alone, and the images passed on the way.

    A folder that has no further folders, or that `stops`, is not entered: it is a class, or a split.
    """
    passed: list[str] = []
    while len(folder.folders) == 1:
        (inner,) = folder.folders.values()
        if not inner.filled() or stops(inner):
            break
        passed += folder.images
        folder = inner
    return folder, passed


def _refuse_others(splits: Sequence[Folder], others: Sequence[Folder], place: str) -> None:
    """Raises InputError if there are other folders beside the splits."""
    if others:
        raise InputError(
            f"{place} has the split {printable(splits[0].name)} and beside it "
            f"{few(folder.name for folder in others)}, which is no split ({', '.join(SPLITS)}): if it is one, rename "
            f"it; if not, leave it out with --data.exclude '{printable(others[0].path)}', or move it away; or, if all "
            "are classes, rename those with the name of a split."
        )


def _of_splits(splits: Sequence[Folder], flat: Sequence[Folder], named: dict[str, str]) -> Layout:
    """Returns the classes in the folders of splits.

    Args:
      splits: folders that have the name of a split and folders of their own.
      flat: folders that have the name of a split and images only.
      named: the split of each path.
    """
    notes = []
    for folder in flat:
        if named[folder.path] != "test":
            raise InputError(
                f"{printable(folder.path)} has {len(folder.images):,} images and no class folders, so they have no "
                f"labels: sort them into folders as in {printable(splits[0].path)}, or leave them out with "
                f"--data.exclude '{printable(folder.path)}'."
            )
        notes.append(
            f"left out, as it has no class folders and so no labels: {printable(folder.path)} with its "
            f"{len(folder.images):,} images"
        )
    classes: list[ClassFolder] = []
    unused: list[str] = []
    trained: set[str] = set()

    def is_trained(folder: Folder) -> bool:
        return folder.name in trained

    for split in sorted(splits, key=lambda folder: named[folder.path] != "train"):
        inner, passed = _unwrap(split, is_trained)
        if inner is not split:
            notes.append(
                f"{printable(split.path)} holds the folder {printable(inner.name)} alone: its folders are read"
            )
        if named[split.path] == "train":
            trained |= inner.folders.keys()
        unused += [*passed, *inner.images]
        classes += [ClassFolder(folder.name, named[split.path], folder) for folder in inner.folders.values()]
    if any(folder.name not in SPLITS for folder in splits):
        meanings = (f"{printable(folder.path)} is {named[folder.path]}" for folder in splits)
        notes.append(f"splits by the names of folders: {', '.join(meanings)}")
    return Layout(classes, unused, notes)


def _of_classes(top: Folder, flat: Sequence[Folder], place: str, known: Collection[str]) -> Layout:
    """Returns the folders of `top` as classes, or the folders of splits in each of them.

    flat: folders that have the name of a split, and images only.
    known: names of folders that are classes.
    """
    for folder in flat:
        if part_of(folder.name) != "train":  # nobody has a train split without classes beside classes
            raise InputError(
                f"{place} has the folder {printable(folder.path)} beside the class folders. If its "
                f"{len(folder.images):,} images have no labels, leave them out with --data.exclude "
                f"'{printable(folder.path)}'. If it is a split, sort them into class folders, and move the other "
                "folders into one named train. If it is a class, rename it."
            )
    folders = top.filled()
    inner = {folder.path: folder.filled() for folder in folders}
    below = [child for children in inner.values() for child in children]
    parts = {child.path: part_of(child.name) for child in below}
    flat_splits = all(parts.values()) and not any(child.filled() for child in below)
    if flat_splits and "train" in parts.values() and not any(folder.images for folder in top.folders.values()):
        classes = [ClassFolder(up.name, parts[child.path], child) for up in folders for child in inner[up.path]]
        classes += [ClassFolder(empty.name, None, empty) for empty in top.folders.values() if empty.path not in inner]
        names = sorted({child.name for child in below})
        return Layout(classes, [], [f"the splits {few(names)} are folders inside the class folders"])
    if not known:
        _refuse_shared_names(folders, inner, place)
    notes = [f"{printable(folder.path)} is a class, not a split, since it has no class folders" for folder in flat]
    return Layout([ClassFolder(folder.name, None, folder) for folder in top.folders.values()], [], notes)


def _refuse_shared_names(folders: Sequence[Folder], inner: dict[str, list[Folder]], place: str) -> None:
    """Raises InputError if half of the folders have two or more folders whose names others have as well."""
    counts = Counter(child.name for children in inner.values() for child in children)
    shared = {
        folder.name: names
        for folder in folders
        if len(names := [child.name for child in inner[folder.path] if counts[child.name] > 1]) > 1
    }
    if shared and 2 * len(shared) >= len(folders):
        names = next(iter(shared.values()))
        raise InputError(
            f"{place} has the folders {few(shared)}, in which folders have the same names, such as {few(names)}: which "
            f"are the classes? If {few(names, 2)} are, rename the upper folders to train, val and test. If "
            f"{few(shared, 2)} are, leave out the folders that hold no examples, such as masks, with --data.exclude, "
            "or list the images in a table of paths and labels."
        )
