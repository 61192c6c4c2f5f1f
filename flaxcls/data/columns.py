"""The columns of CSV and Parquet files, as text, and which of them hold paths, labels, splits and groups."""

import csv
import io
import re
import shlex
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from flaxcls.errors import InputError, unknown

DELIMITERS = ",;\t|"
# Usual names of columns, without case, blanks, hyphens and underscores. The first of each wins against the others.
PATHS = (
    *("path", "file", "filename", "filepath", "image", "imagefile", "imagefilename", "imageid", "imagename"),
    *("imagepath", "img", "imgid", "imgname", "imgpath", "id", "name"),
)
LABELS = ("label", "class", "classlabel", "classname", "category", "categoryname", "target", "diagnosis")
PARTS = ("split", "set", "subset", "partition")
FLAGS = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}

# cells by the name of the column; "" is a missing value, and None a column of another type than text
Columns: TypeAlias = dict[str, list[str] | None]


class Chosen(NamedTuple):
    """The names of the columns that are used.

    paths: one column, or one for each channel of the image.
    labels: one column, or a column of flags for each class.
    """

    paths: tuple[str, ...]
    labels: tuple[str, ...]
    split: str | None
    group: str | None


def read_columns(table: Path) -> Columns:
    """Returns the cells of a .parquet file, or else of a CSV file, by the names of the columns; "" is a missing value.

    In CSV, the delimiter is the one that divides the first line into the most cells. In Parquet, whole numbers of any
    type are written without a point, and booleans as true and false; a column of another kind, such as lists or the
    bytes of images, is None.

    Raises InputError if the file is not of its format, if two columns have one name, or a row has too few or too many
    cells.
    """
    names, columns = _read_parquet(table) if table.suffix.lower() == ".parquet" else _read_csv(table)
    repeated = [name for name, count in Counter(names).items() if name and count > 1]
    if repeated:
        raise InputError(f"the table {table} has more than one column {', '.join(repeated)}: rename or remove them.")
    return dict(zip(names, columns, strict=True))


def _read_csv(table: Path) -> tuple[list[str], list[list[str]]]:
    try:
        text = table.read_bytes().decode("utf-8-sig").lstrip("\r\n")
        first = io.StringIO(text, newline="").readline()
        delimiter = max(DELIMITERS, key=lambda mark: len(next(csv.reader([first], delimiter=mark))))
        reader = csv.reader(
            io.StringIO(text, newline=""),
            delimiter=delimiter,
            skipinitialspace=f"{delimiter} " in first,
            strict=True,  # else an open quotation mark makes one cell of all that follows
        )
        rows = [row for row in reader if len(row) > 1 or "".join(row).strip()]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"the table {table} is no CSV file in UTF-8: {error}. Save it as one.") from error
    if not rows:
        return [], []
    names = [name.strip() for name in rows.pop(0)]
    for number, row in enumerate(rows, 1):
        if len(row) != len(names):
            raise InputError(
                f"row {number} of the table {table} has {len(row)} cells, but the header has {len(names)} (between "
                f"them is {delimiter!r}): correct the row; a cell with {delimiter!r} in it needs quotation marks."
            )
    return names, [list(cells) for cells in zip(*rows, strict=True)] if rows else [[] for _ in names]


def _read_parquet(table: Path) -> tuple[list[str], list[list[str] | None]]:
    import pyarrow
    from pyarrow import parquet

    try:
        # not read_table, which makes a column of a folder that is called like split=train
        content = parquet.ParquetFile(table).read()
    except pyarrow.ArrowException as error:
        raise InputError(f"the table {table} is no Parquet file: {error}") from error
    return content.column_names, [_texts(column) for column in content.columns]


def _texts(column: Any) -> list[str] | None:
    """Returns the values of a column of Arrow as text, or None if they are no text, numbers, booleans or times."""
    import pyarrow
    from pyarrow import types

    try:
        if types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if types.is_floating(column.type):
            return [_decimal(value) for value in column.to_pylist()]
        return column.cast(pyarrow.large_string()).fill_null("").to_pylist()
    except pyarrow.ArrowException:
        return None


def _decimal(value: float | None) -> str:
    if value is None or value != value:  # NaN
        return ""
    return str(int(value)) if value.is_integer() else str(value)


def choose_columns(table: Path, columns: Columns, asked: Chosen, splits: Collection[str]) -> Chosen:
    """Returns the columns that `asked` names, or else those with usual names.

    Args:
      table: the file, for messages.
      columns: the cells of its columns.
      asked: names of columns; () and None: look for the usual names; "" for the split or the group: use none. The split
        may be "split" where there is no such column: runs of earlier versions looked for no other.
      splits: the known values of a column of splits.

    Raises InputError if a column is missing, or several have a usual name.
    """
    if asked.split == "split" and "split" not in columns:
        asked = asked._replace(split="")
    named = [*asked.paths, *asked.labels, *filter(None, (asked.split, asked.group))]
    for name in named:
        if name not in columns:
            raise InputError(f"the table {table} has no such column: {unknown('column', name, columns)}")
    free = [name for name in columns if name not in named]
    split, group = asked.split, asked.group
    if split is None:
        # a name such as "set" may mean anything, so its values decide
        usual = [
            name
            for name in _usual(PARTS, free)
            if name.casefold() == "split" or {text.strip().lower() for text in columns[name] or ["?"]} <= {*splits, ""}
        ]
        split = _only(table, "split", usual) if usual else None
    if group is None:
        usual = [name for name in free if name.casefold() == "group"]
        group = _only(table, "group", usual) if usual else None
    free = [name for name in free if name not in (split, group)]
    paths = asked.paths or (choose_path_column(table, free),)
    free = [name for name in free if name not in paths]
    labels = asked.labels
    if not labels:
        if not (usual := _usual(LABELS, free)):
            raise InputError(_no_column(table, columns, "label") + _advise_flags(columns, free))
        labels = (_only(table, "label", usual),)
    return Chosen(paths, labels, split or None, group or None)


def choose_path_column(table: Path, columns: Collection[str]) -> str:
    """Returns the one of the columns that has a usual name for paths. Raises InputError if it is not clear which."""
    if not (usual := _usual(PATHS, columns)):
        raise InputError(_no_column(table, columns, "path"))
    return _only(table, "path", usual)


def _usual(names: Sequence[str], columns: Collection[str]) -> list[str]:
    """Returns the columns with one of the usual `names`; only the one with the first name if it is there."""
    usual = [column for column in columns if re.sub(r"[\s_-]", "", column.casefold()) in names]
    first = [column for column in usual if column.casefold() == names[0]]
    return first or usual


def _only(table: Path, what: str, usual: Sequence[str]) -> str:
    if len(usual) > 1:
        raise InputError(
            f"the table {table} has several columns that may hold the {what}s: {', '.join(usual)}. "
            f"Choose one with --data.{what}-column."
        )
    return usual[0]


def _no_column(table: Path, columns: Collection[str], what: str) -> str:
    return (
        f"the table {table} has the columns {', '.join(columns)} in its first line, but none with a usual name for the "
        f"{what}s, such as {what}: name it with --data.{what}-column."
    )


def _advise_flags(columns: Columns, free: Sequence[str]) -> str:
    """Returns the option to write if the `free` columns are a column of flags for each class, else ""."""
    flags = [[FLAGS.get(text.strip().lower()) for text in columns[name] or ["?"]] for name in free]
    if len(flags) < 2 or any(None in column for column in flags):
        return ""
    if any(sum(map(bool, row)) != 1 for row in zip(*flags, strict=True)):
        return " The other columns are flags, but not with one 1 per row; several labels per image are not supported."
    return f" If each of the other columns is a class, write: --data.label-column {shlex.join(free)}"
