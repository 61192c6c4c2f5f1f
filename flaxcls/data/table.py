"""Tables, in CSV or Parquet files, of image files and their labels."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from flaxcls.data.columns import FLAGS, Chosen, Columns, choose_columns, choose_path_column, read_columns
from flaxcls.data.locate import Key, locate
from flaxcls.errors import InputError, refuse, unknown

# The split for each name of a folder or value of the column `split`.
SPLITS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
UNLABELLED = "without a label"  # the class of images that are only looked at, as nothing gives them one
T = TypeVar("T")
TABLES = (".csv", ".tsv", ".parquet")


def is_table(place: Path) -> bool:
    """Returns True if the place is a table, by its ending."""
    return place.suffix.lower() in TABLES


@dataclass(frozen=True)
class ImageFile:
    """An example.

    path: its file, or the file of its first channel.
    split: a key of `SPLITS`, or None.
    group: examples of one group stay in one split; None: it is in no group.
    more_paths: the files of the other channels, if each channel is a file of its own.
    """

    path: Path
    name: str
    label: str
    split: str | None
    group: str | None = None
    more_paths: tuple[Path, ...] = ()

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files of the example: one, or one for each channel."""
        return self.path, *self.more_paths

    @property
    def part(self) -> str:
        """The split of the example: train, validation or test."""
        return SPLITS[self.split] if self.split else "train"


def read_table(
    table: Path,
    *,
    path_columns: Sequence[str] = (),
    label_columns: Sequence[str] = (),
    split_column: str | None = None,
    group_column: str | None = None,
    image_dir: str | None = None,
    suffix: str | None = None,
    skip_missing: bool = False,
    problems: list[str] | None = None,
) -> tuple[list[ImageFile], list[str]]:
    """Returns the examples of a table, and notes on what was guessed, repeated or not used.

    Args:
      table: a .parquet file, or else a CSV file.
      path_columns: the column of the paths, or one for each channel of the image; (): the one with a usual name.
      label_columns: the column of the labels, or a column of flags for each class; (): the one with a usual name.
      split_column: the column of the splits; None: one with a usual name, if there is one; "": none.
      group_column: the column of the groups; None: the column group, if there is one; "": none.
      image_dir: the folder of the paths, relative to the folder of the table; None: it is found.
      suffix: added to each path; None: it is found.
      skip_missing: some of the files may be missing. They are returned too.
      problems: gets the lines on rows that contradict each other; None: they are refused.

    Raises:
      InputError: if the table does not exist or is not a CSV or Parquet file; if a column or a value is missing, or it
        is not clear which column is meant; if a split is unknown, files are missing, or rows contradict each other.
    """
    columns = _read_rows(table)
    asked = Chosen(tuple(path_columns), tuple(label_columns), split_column, group_column)
    chosen = choose_columns(table, columns, asked, SPLITS)
    cells = [_cells(table, columns, column, required=True) for column in chosen.paths]
    names = cells[0]
    labels = _labels(table, columns, chosen.labels, names)
    splits = _splits(table, columns, chosen.split) if chosen.split else [None] * len(names)
    groups = _cells(table, columns, chosen.group) if chosen.group else [""] * len(names)
    paths, rows, notes = _locate_rows(table, cells, image_dir, suffix, skip_missing)
    files = [
        ImageFile(path, name, label, split, group or None, tuple(more))
        for (path, *more), name, label, split, group in zip(paths, names, labels, splits, groups, strict=True)
    ]
    return files, [
        *_describe_columns(columns, asked, chosen),
        *notes,
        *_check_repeats(table, files, rows, problems),
        *_describe_gaps(files, chosen),
    ]


def read_paths(
    table: Path, *, path_columns: Sequence[str] = (), image_dir: str | None = None, suffix: str | None = None
) -> tuple[list[str], list[tuple[Path, ...]], list[str]]:
    """Returns the names in a table that needs no labels, the files of each, and notes; some files may be missing.

    Args and errors are those of `read_table`.
    """
    columns = _read_rows(table)
    for name in path_columns:
        if name not in columns:
            raise InputError(f"the table {table} has no such column: {unknown('column', name, columns)}")
    chosen = tuple(path_columns) or (choose_path_column(table, columns),)
    cells = [_cells(table, columns, column, required=True) for column in chosen]
    paths, _, notes = _locate_rows(table, cells, image_dir, suffix, skip_missing=True)
    return cells[0], paths, notes


def _read_rows(table: Path) -> Columns:
    if not table.is_file():
        raise InputError(f"the table {table} is not there: name a file with --data.dir.")
    columns = read_columns(table)
    if all(column == [] for column in columns.values()):
        raise InputError(f"the table {table} has no rows.")
    return columns


def _locate_rows(
    table: Path, cells: Sequence[Sequence[str]], image_dir: str | None, suffix: str | None, skip_missing: bool
) -> tuple[list[tuple[Path, ...]], list[tuple[Key, ...]], list[str]]:
    """Returns the files of each row, what identifies them, and notes. cells: of each column of paths."""
    names = [name for column in cells for name in column]
    paths, keys, notes = locate(names, table, folder=image_dir, suffix=suffix, skip_missing=skip_missing)
    count = len(cells[0])

    def by_row(found: list[T]) -> list[tuple[T, ...]]:
        return list(zip(*(found[start : start + count] for start in range(0, len(found), count)), strict=True))

    return by_row(paths), by_row(keys), notes


def read_assignments(table: Path, asked: Chosen) -> dict[str, tuple[str, str]]:
    """Returns the label and the split of each name in a table; no file is looked for.

    Raises InputError if a column or a value is missing, or a split is unknown.
    """
    columns = read_columns(table)
    chosen = choose_columns(table, columns, asked, SPLITS)
    names = _cells(table, columns, chosen.paths[0])
    labels = _labels(table, columns, chosen.labels, names)
    splits = _splits(table, columns, chosen.split) if chosen.split else [None] * len(names)
    parts = (SPLITS[split] if split else "train" for split in splits)
    return dict(zip(names, zip(labels, parts, strict=True), strict=True))


def _cells(table: Path, columns: Columns, name: str, *, required: bool = False) -> list[str]:
    cells = columns[name]
    if cells is None:
        raise InputError(
            f"the column {name} of the table {table} holds neither text nor numbers nor booleans, so it names no "
            "paths, labels, splits or groups: choose another."
        )
    if required:
        for number, cell in enumerate(cells, 1):
            if not cell.strip():
                raise InputError(f"row {number} of the table {table} has no {name}: write one, or leave the row out.")
    return cells


def _labels(table: Path, columns: Columns, chosen: Sequence[str], names: Sequence[str]) -> list[str]:
    """Returns the label of each row, from one column, or from a column of flags for each class."""
    if len(chosen) == 1:
        return _cells(table, columns, chosen[0], required=True)
    labels = []
    for number, row in enumerate(zip(*(_cells(table, columns, name) for name in chosen), strict=True), 1):
        flags = [FLAGS.get(text.strip().lower()) for text in row]
        if None in flags:
            bad = flags.index(None)
            raise InputError(
                f"row {number} of the table {table} ({names[number - 1]}) has {row[bad]!r} in {chosen[bad]}, "
                "but with several columns in --data.label-column each must hold 0 or 1."
            )
        true = [name for name, flag in zip(chosen, flags, strict=True) if flag]
        if len(true) != 1:
            raise InputError(
                f"row {number} of the table {table} ({names[number - 1]}) has {len(true)} labels"
                f"{': ' * bool(true)}{', '.join(true)} (of {', '.join(chosen)}), but must have one: several labels, or "
                "none, per image are not supported yet. Leave such rows out, or add a column for those without a label."
            )
        labels += true
    return labels


def _splits(table: Path, columns: Columns, column: str) -> list[str | None]:
    splits = [text.strip().lower() or None for text in _cells(table, columns, column)]
    for split in dict.fromkeys(splits):
        if split and split not in SPLITS:
            raise InputError(
                f"the table {table} has the split {split!r} in the column {column}, but must be one of "
                f"{', '.join(SPLITS)}: rename it, or choose another column with --data.split-column ('' for none)."
            )
    return splits


def _check_repeats(
    table: Path, files: Sequence[ImageFile], keys: Sequence[tuple[Key, ...]], problems: list[str] | None
) -> list[str]:
    """Returns a note on the rows that name the files of an earlier row. Raises InputError if they contradict it."""
    first: dict[tuple[Key, ...], int] = {}
    repeats, contradictions = 0, []
    for number, key in enumerate(keys):
        earlier = first.setdefault(key, number)
        one, other = files[earlier], files[number]
        if earlier == number or None in key:
            continue
        if one.paths != other.paths and [p.resolve() for p in one.paths] != [p.resolve() for p in other.paths]:
            continue  # hard links: copies, not one file
        repeats += 1
        if (one.label, one.part) != (other.label, other.part):
            contradictions.append(
                f"{other.name}: {one.label} in {one.part} in row {earlier + 1}, {other.label} in {other.part} in row "
                f"{number + 1}"
            )
    if contradictions:
        refuse(
            f"{len(contradictions)} rows of the table {table} contradict an earlier row of the same file:\n  "
            + "\n  ".join([*contradictions[:10], *["..."] * (len(contradictions) > 10)])
            + "\nA file has one label and lies in one split: correct or remove rows.",
            problems,
        )
    return [f"{repeats} rows of {table.name} repeat the file, label and split of an earlier row; they are kept"] * bool(
        repeats
    )


def _describe_columns(columns: Columns, asked: Chosen, chosen: Chosen) -> Iterator[str]:
    """Yields notes on the columns that were found by their names, and on columns that are not used."""
    guesses = [
        ("paths", chosen.paths[0], not asked.paths and chosen.paths != ("path",)),
        ("labels", chosen.labels[0], not asked.labels and chosen.labels != ("label",)),
        ("splits", chosen.split, asked.split is None and chosen.split not in (None, "split")),
    ]
    if guessed := [f"{what} are in the column {column}" for what, column, is_guess in guesses if is_guess]:
        yield ", ".join(guessed)
    if asked.split and not chosen.split:
        yield f"there is no column {asked.split}, so splits are held out at random"
    if chosen.group:
        yield f"images with the same value in the column {chosen.group} stay together where a split is held out"
    used = {*chosen.paths, *chosen.labels, chosen.split, chosen.group}
    if unused := [name or "(without a name)" for name in columns if name not in used]:
        yield f"columns that are not used: {', '.join(unused)}"


def _describe_gaps(files: Sequence[ImageFile], chosen: Chosen) -> Iterator[str]:
    """Yields notes on labels without rows, on rows without a split or a group, and on groups in several splits."""
    labels = {file.label for file in files}
    if len(chosen.labels) > 1 and (absent := [label for label in chosen.labels if label not in labels]):
        yield f"no row has the label {', '.join(absent)}, so it is no class"
    without = sum(file.split is None for file in files)
    if chosen.split and without:
        yield f"{without} rows have no {chosen.split}: they are in train"
    if not chosen.group:
        return
    without = sum(file.group is None for file in files)
    if without:
        yield f"{without} rows have no {chosen.group}: each is a group of its own"
    parts: dict[str, set[str]] = {}
    for file in files:
        if file.group:
            parts.setdefault(file.group, set()).add(file.part)
    spread = [group for group, found in parts.items() if len(found) > 1]
    if spread:
        more = ", ..." if len(spread) > 10 else ""
        yield (
            f"{len(spread)} groups of the column {chosen.group} lie in several splits, as the table says: "
            f"{', '.join(spread[:10])}{more}"
        )
