"""Predictions for image files: finding and reading them, and tables of the most probable classes."""

import csv
import glob
import io
import itertools
import json
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import parquet
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from flaxcls.analysis.classifier import Classifier, Predictions
from flaxcls.data.decode import read_picture
from flaxcls.data.files import describe_left_out, few, find_below
from flaxcls.data.notes import notes_on_heads, notes_on_values
from flaxcls.data.picture import Extent, Head, Picture, extent_of, head_of
from flaxcls.data.stored import read_bands
from flaxcls.data.table import is_table, read_paths
from flaxcls.errors import InputError
from flaxcls.storage import printable, write_new


class ImageSource(NamedTuple):
    """An image to predict.

    name: its path, or what a table says in place of it.
    paths: its file, or a file for each channel.
    """

    name: str
    paths: tuple[Path, ...]

    def read(self, most_pixels: int | None) -> Picture:
        """Returns the picture. Raises InputError if it cannot be read."""
        return read_picture(self.paths[0], most_pixels) if len(self.paths) == 1 else read_bands(self.paths, most_pixels)


class FilePredictions(NamedTuple):
    """The predictions for image files.

    images: the n images that were read.
    predictions: predictions for these images.
    unreadable: (name, reason) for each other file.
    notes: lines on values outside of the run's range, and on what was resized or converted.
    """

    images: list[ImageSource]
    predictions: Predictions
    unreadable: list[tuple[str, str]]
    notes: Sequence[str] = ()

    @property
    def paths(self) -> list[str]:
        """The names of the images that were read: their paths, or what a table says in place of them."""
        return [image.name for image in self.images]

    @property
    def complaint(self) -> str:
        """A text that lists the unreadable files and the reasons, one a line; "" if there are none."""
        if not self.unreadable:
            return ""
        total = len(self.images) + len(self.unreadable)
        lines = [f"{len(self.unreadable)} of {total} file{'s' * (total > 1)} could not be read:"]
        return "\n".join(lines + [f"  {reason}" for _, reason in self.unreadable])


def find_images(
    names: Sequence[str],
    *,
    path_columns: Sequence[str] = (),
    image_dir: str | None = None,
    suffix: str | None = None,
) -> tuple[list[ImageSource], list[str]]:
    """Returns the images that `names` mean, each once, and notes on those that were passed over in folders.

    Names are files, folders, globs and tables. A folder means all images below it, as for training: files with the name
    of an image or that begin like one, sorted by path, without hidden ones and those that tools leave behind. A table,
    .csv, .tsv or .parquet, means the images that it lists; it needs no labels.

    path_columns, image_dir, suffix: of tables, as in `DataConfig`.

    Raises:
      InputError: if a name is no file, no folder and no glob that matches, if a folder has no images, or for a table
        whose files are not found.
    """
    if not names:
        raise InputError("no image was named: give files, folders, globs or a table after the run.")
    found: dict[tuple[Path, ...], str] = {}
    notes: list[str] = []
    others: list[str] = []
    hidden: list[str] = []
    for name in names:
        is_there = os.path.exists(name)  # noqa: PTH110 (Path.exists raises for names too long, folders that are closed)
        matches = [name] if is_there else sorted(glob.glob(name, recursive=True))  # noqa: PTH207 (Path.glob refuses absolute ones)
        if is_there and is_table(Path(name)) and Path(name).is_file():
            cells, rows, of_table = read_paths(
                Path(name), path_columns=path_columns, image_dir=image_dir, suffix=suffix
            )
            notes += of_table
            for cell, paths in zip(cells, rows, strict=True):
                found.setdefault(tuple(path.absolute() for path in paths), cell)
            continue
        if not matches:
            raise InputError(f"{name} is no file, no folder, and no glob that matches a file: name images that exist.")
        files, passed_over = [], []
        for match in matches:
            if not Path(match).is_dir():
                files.append(match)
                continue
            below = find_below(Path(match))
            files += [str(Path(match, path)) for path in below.images]
            passed_over += [str(Path(match, path)) for path in below.others]
            hidden += below.hidden
        if not files:
            others_there = f" (it has {few(passed_over)})" if passed_over else ""
            raise InputError(
                f"{name} has no image{others_there}: no file in it begins like one, or has a name that ends like one. "
                "To use such a file, name the file itself."
            )
        others += passed_over
        for file in files:
            found.setdefault((Path(file).absolute(),), file)
    images = [ImageSource(name, paths) for paths, name in found.items()]
    return images, [*notes, *describe_left_out(list(dict.fromkeys(others)), hidden)]


def predict_files(
    classifier: Classifier,
    images: Sequence[ImageSource | str],
    *,
    batch_size: int = 256,
    threads: int = 8,
    most_pixels: int | None = None,
    advance: Callable[[int], None] = lambda count: None,
) -> FilePredictions:
    """Returns the predictions for image files; unreadable files are listed and do not stop the others.

    Threads read and scale files while the device computes. A few batches of images are in memory.

    Args:
      classifier: the model.
      images: images, or paths of files.
      batch_size: number of images computed at once.
      threads: number of threads that read files.
      most_pixels: of the largest image that is read; None: see `flaxcls.data.decode.MOST_PIXELS`.
      advance: called with the number of files finished since the last call.
    """
    heads: list[Head] = []
    extents: list[Extent] = []
    sources = [ImageSource(image, (Path(image),)) if isinstance(image, str) else image for image in images]

    def prepared(source: ImageSource) -> np.ndarray:
        picture = source.read(most_pixels)
        image = classifier.prepared(picture, name=source.name)
        heads.append(head_of(picture))
        if classifier.preparation.has_range_for(picture.pixels.dtype):
            extents.append(extent_of(picture))
        return image

    read: list[ImageSource] = []
    unreadable: list[tuple[str, str]] = []
    parts = [np.zeros((0, len(classifier.class_names)), np.float32)]
    pool = ThreadPoolExecutor(threads)
    try:
        batch: list[np.ndarray] = []
        for done, (source, future) in enumerate(_read_ahead(pool, prepared, sources, batch_size), 1):
            try:
                batch.append(future.result())
                read.append(source)
            except InputError as error:
                unreadable.append((source.name, str(error)))
            if len(batch) == batch_size or (done == len(sources) and batch):
                size = batch_size if len(parts) > 1 else len(batch)  # one shape, so that it compiles once
                parts.append(classifier.logits_of_prepared(np.stack(batch), size=size))
                batch = []
            advance(1)
    finally:
        pool.shutdown(cancel_futures=True)  # after an interrupt, no more files are read
    predictions = classifier.predictions(np.concatenate(parts))
    notes = [
        *notes_on_values(extents, classifier.preparation, options=False),
        *notes_on_heads(heads, classifier.preparation, options=False),
    ]
    return FilePredictions(read, predictions, unreadable, notes)


def _read_ahead(
    pool: ThreadPoolExecutor,
    function: Callable[[ImageSource], np.ndarray],
    sources: Sequence[ImageSource],
    count: int,
) -> Iterator[tuple[ImageSource, Future[np.ndarray]]]:
    """Yields each image with its future; up to `count` futures are under way."""
    rest = iter(sources)
    waiting = deque((source, pool.submit(function, source)) for source in itertools.islice(rest, count))
    while waiting:
        yield waiting.popleft()
        waiting.extend((source, pool.submit(function, source)) for source in itertools.islice(rest, 1))


def top_rows(found: FilePredictions, top: int) -> list[dict[str, Any]]:
    """Returns a row for each image: path, class, probability, class_2, probability_2, ... up to `top`."""
    names, probabilities = found.predictions.class_names, found.predictions.probabilities
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
    rows = []
    for path, chosen, values in zip(found.paths, order, probabilities, strict=True):
        row: dict[str, Any] = {"path": printable(path)}
        for rank, label in enumerate(chosen, 1):
            end = "" if rank == 1 else f"_{rank}"
            row |= {f"class{end}": names[label], f"probability{end}": float(values[label])}
        rows.append(row)
    return rows


def columns(top: int) -> list[str]:
    """Returns the column names of `top_rows`."""
    ends = ["", *(f"_{rank}" for rank in range(2, top + 1))]
    return ["path", *(name + end for end in ends for name in ("class", "probability"))]


def write(found: FilePredictions, top: int, form: str, out: Path | None) -> None:
    """Writes the `top` classes of each image as table, csv, jsonl or parquet to a new file, or to the standard output.

    Raises InputError if the file cannot be written; then no part of it stays.
    """
    rows = top_rows(found, top)
    if out is None:
        if form == "parquet":
            raise InputError("Parquet cannot go to the standard output: name a file by --out.")
        sys.stdout.write(_text(rows, top, form, sys.stdout))
        sys.stdout.flush()
        return
    data = _parquet(rows, top) if form == "parquet" else _text(rows, top, form, io.StringIO()).encode()
    write_new(out, lambda: data)


def _parquet(rows: list[dict[str, Any]], top: int) -> bytes:
    fields = [(name, pa.float32() if name.startswith("probability") else pa.string()) for name in columns(top)]
    file = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows, schema=pa.schema(fields)), file)
    return file.getvalue()


def _text(rows: list[dict[str, Any]], top: int, form: str, target: IO[str]) -> str:
    """Returns the rows as csv, jsonl, or a table in a style that `target` can show."""
    if form == "jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if form == "csv":
        file = io.StringIO()
        writer = csv.DictWriter(file, columns(top), lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: _digits(value) for name, value in row.items()} for row in rows)
        return file.getvalue()
    table = Table(*(Column(name, overflow="fold") for name in columns(top)))
    for row in rows:
        table.add_row(*(escape(_digits(value)) for value in row.values()))
    console = Console(file=target)
    with console.capture() as text:  # print would end the process after the reader has left
        console.print(table)
    return text.get()


def _digits(value: str | float) -> str:
    return f"{value:.6f}" if isinstance(value, float) else value
