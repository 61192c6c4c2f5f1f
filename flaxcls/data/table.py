"""Tables, in CSV or Parquet files, of image files and their labels."""

import csv
from dataclasses import dataclass
from pathlib import Path

from flaxcls.errors import InputError

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
TABLES = (".csv", ".parquet")


@dataclass(frozen=True)
class ImageFile:
    """An example. split: a key of `SPLITS`, or None."""

    path: Path
    name: str
    label: str
    split: str | None

    @property
    def part(self) -> str:
        """The split of the example: train, validation or test."""
        return SPLITS[self.split] if self.split else "train"


def read_table(table: Path) -> list[ImageFile]:
    """Returns the examples of a table with the columns path, label and optionally split.

    Raises:
      InputError: if the table does not exist or is not a CSV or Parquet file, if a column or a value is missing, or if
        a split is unknown or an image file does not exist.
    """
    if not table.is_file():
        raise InputError(f"the table {table} is not there: name a file with --data.dir.")
    rows = _rows(table)
    if not rows:
        raise InputError(f"the table {table} has no rows.")
    for column in ("path", "label"):
        if column not in rows[0]:
            raise InputError(f"the table {table} has the columns {', '.join(rows[0])}, but needs path and label.")
    files = []
    for number, row in enumerate(rows, 1):
        for column in ("path", "label"):
            if row[column] in (None, ""):
                raise InputError(f"row {number} of the table {table} has no {column}: write one, or leave the row out.")
        split = str(row.get("split") or "").lower() or None
        if split is not None and split not in SPLITS:
            raise InputError(f"the table {table} has the split {split!r}, but must be one of {', '.join(SPLITS)}.")
        files.append(ImageFile(table.parent / str(row["path"]), str(row["path"]), str(row["label"]), split))
    missing = [str(file.path) for file in files if not file.path.is_file()]
    if missing:
        raise InputError(
            f"{len(missing)} files of the table {table} are not there:\n  " + "\n  ".join(missing[:10]) + "\n"
            "Paths are relative to the folder of the table."
        )
    return files


def _rows(table: Path) -> list[dict[str, object]]:
    if table.suffix.lower() == ".csv":
        try:
            with table.open(newline="", encoding="utf-8-sig") as file:
                return list(csv.DictReader(file))
        except (UnicodeDecodeError, csv.Error) as error:
            raise InputError(f"the table {table} is no CSV file in UTF-8: {error}. Save it as one.") from error
    import pyarrow
    from pyarrow import parquet

    try:
        rows: list[dict[str, object]] = parquet.read_table(table).to_pylist()
    except pyarrow.ArrowException as error:
        raise InputError(f"the table {table} is no Parquet file: {error}") from error
    return rows
