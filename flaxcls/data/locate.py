"""The files of a table, whose paths may lack a folder or a suffix, or be spelled in another way than on the disk."""

import contextlib
import difflib
import functools
import itertools
import os
import re
import shlex
import stat
import unicodedata
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

from flaxcls.data.stored import SUFFIXES
from flaxcls.errors import InputError
from flaxcls.storage import printable

Key: TypeAlias = tuple[int, int] | None  # device and number of a file; None: it is not there
Search: TypeAlias = Callable[[str, str], list[str]]  # (folder, path from there on) -> paths of files


class _Way(NamedTuple):
    """From a name to a path: the folder, how many folders at the beginning of the name are left out, and the suffix."""

    folder: Path
    left_out: int
    suffix: str


class _Found(NamedTuple):
    """A path and a key for each name, and the names that are spelled in another way: their indices."""

    paths: list[str]
    keys: list[Key]
    respelled: list[int]


def locate(
    names: Sequence[str], table: Path, *, folder: str | None, suffix: str | None, skip_missing: bool
) -> tuple[list[Path], list[Key], list[str]]:
    r"""Returns the files that a table names, what identifies each, and notes on what was guessed.

    A file that is called exactly as its name says wins. Without it, case, the encoding of accents, blanks around the
    name, and \ for / do not matter, if only one file is meant. If no name has a file, they may lack a folder or a
    suffix, or begin with folders of another machine. Such a guess holds for every name, and is the only one that does.

    Args:
      names: paths as they are in the table.
      table: the file of the table.
      folder: folder of the paths, relative to the folder of the table; None: the same folder, or a guess.
      suffix: what is added to each name; None: nothing, or a guess.
      skip_missing: some of the files may be missing.

    Raises InputError if files are missing; it counts how many are there with other folders and suffixes, and says what
    is near the first of them.
    """
    home = table.parent
    asked = home / Path(folder or "").expanduser()
    if not asked.is_dir():
        raise InputError(
            f"data.image_dir {folder!r} is no folder, as there is no {asked}: name it as seen from the folder of the "
            "table, or by an absolute path."
        )

    def result(found: _Found, way: _Way, notes: Sequence[str] = ()) -> tuple[list[Path], list[Key], list[str]]:
        return list(map(Path, found.paths)), found.keys, [*notes, *_describe_spelling(names, found, way, table)]

    search, nearest = _make_search()
    plain = _Way(asked, 0, suffix or "")
    found = _look_up(names, plain, search)
    missing = [index for index, key in enumerate(found.keys) if key is None]
    if not missing:
        return result(found, plain)

    samples = [names[index] for index in (missing[0], missing[len(missing) // 2], missing[-1])]
    places = [home, *sorted(path for path in home.iterdir() if path.is_dir() and not path.name.startswith("."))]
    starts = [(place, 0) for place in places] + [(asked, count) for count in _count_needless(names, asked)]
    counts: list[str] = []
    whole: dict[tuple[Key, ...], list[tuple[int, _Way, _Found]]] = {}
    for way in sorted({way for name in samples for way in _ways(name, starts, search)} - {plain}):
        other = _look_up(names, way, search)
        if count := len(names) - other.keys.count(None):
            counts.append(f"{count} with {_describe_options(way, names[0], home)}")
        obeys = (folder is None or way.folder == asked) and (suffix or way.suffix).lower() == way.suffix.lower()
        if obeys and None not in other.keys:  # .jpg and .JPG find the same files, one of them with fewer respelled
            whole.setdefault(tuple(other.keys), []).append((len(other.respelled), way, other))
    if len(missing) == len(names) and len(whole) == 1:
        _, way, other = min(next(iter(whole.values())))
        return result(other, way, [_describe_way(way, names[0], table)])
    if len(missing) < len(names) and skip_missing:
        return result(found, plain)
    listed = "\n  ".join([*(printable(found.paths[i]) for i in missing[:10]), *["..."] * (len(missing) > 10)])
    raise InputError(
        f"{len(missing)} of {len(names)} files of the table {table} {'is' if len(missing) == 1 else 'are'} not there:\n"
        f"  {listed}\n"
        "Paths are relative to the folder of the table, or to --data.image-dir; --data.suffix is added to each."
        + (f" Found are {', '.join(counts)}." if counts else "")
        + _hint(names[missing[0]], plain, search, nearest)
        + (" Or leave the missing files out with --data.unreadable skip." if len(missing) < len(names) else "")
    )


def _look_up(names: Sequence[str], way: _Way, search: Search) -> _Found:
    folder, left_out, suffix = way
    written = [_shorten(name, left_out) for name in names] if left_out else names
    paths = [os.path.join(folder, name + suffix) for name in written]  # noqa: PTH118 (pathlib takes five times as long)
    keys = list(map(_key_of, paths))
    respelled = []
    for index, key in enumerate(keys):
        if key is None:
            near = search(str(folder), _clean(written[index]) + suffix)
            if len(near) == 1 and (key := _key_of(near[0])):
                paths[index], keys[index] = near[0], key
                respelled.append(index)
    return _Found(paths, keys, respelled)


def _key_of(path: str) -> Key:
    try:
        status = os.stat(path)  # noqa: PTH116
    except (OSError, ValueError):  # ValueError: a zero byte in the name
        return None
    return (status.st_dev, status.st_ino) if stat.S_ISREG(status.st_mode) else None


def _clean(name: str) -> str:
    r"""Returns a path without blanks around it, and with / for \ of Windows."""
    return name.strip().replace("\\", "/")


def _shorten(name: str, count: int) -> str:
    """Returns a path without `count` folders at its beginning."""
    return _clean(name).split("/", count)[-1]


def _fold(name: str) -> str:
    """Returns what is equal for names that differ only in case or in the encoding of accents."""
    return unicodedata.normalize("NFC", name.casefold())


def _make_search() -> tuple[Search, Search]:
    """Returns two functions; each folder is listed once.

    The first finds the files whose path differs from a given one only in case or in the encoding of accents; a folder
    or a file with exactly that name wins. The second finds the file in the same folder with the most similar name.
    """

    @functools.cache
    def list_folder(folder: str) -> dict[str, list[str]]:
        children: dict[str, list[str]] = {}
        with contextlib.suppress(OSError):  # it is no folder, or may not be listed
            for child in os.listdir(f"{folder}/"):  # noqa: PTH208 (pathlib takes five times as long)
                children.setdefault(_fold(child), []).append(child)
        return children

    def find(folders: list[str], name: str) -> list[str]:
        alike = ((folder, list_folder(folder).get(_fold(name), [])) for folder in folders)
        return [f"{folder}/{child}" for folder, found in alike for child in ([name] if name in found else found)]

    @functools.cache
    def find_folders(start: str, path: str) -> list[str]:
        folders = ["" if path.startswith("/") else start]
        for part in filter(None, path.split("/")):
            exact = [place for folder in folders if os.path.isdir(place := f"{folder}/{part}")]  # noqa: PTH112
            folders = exact or find(folders, part)
        return folders

    def search(start: str, path: str) -> list[str]:
        above, slash, name = path.rpartition("/")
        return find(find_folders(start, above + slash), name)

    def nearest(start: str, path: str) -> list[str]:
        above, slash, name = path.rpartition("/")
        while not (folders := find_folders(start, above + slash)):  # the folder itself is missing
            above, slash, name = above.rpartition("/")
        near = []
        for folder in folders:
            known = sorted(list_folder(folder))
            place = bisect(known, _fold(name))  # in a large folder, only what begins in the same way is compared
            alike = difflib.get_close_matches(_fold(name), known[max(0, place - 500) : place + 500], n=1)
            near += [f"{folder}/{child}" for key in alike for child in list_folder(folder)[key] if child != name]
        return near

    return search, nearest


def _ways(name: str, starts: Sequence[tuple[Path, int]], search: Search) -> Iterator[_Way]:
    """Yields each way on which there is a file of that name. starts: folders, and how many of its own it may lose."""
    for number, (folder, left_out) in enumerate(starts):
        rest = _shorten(name, left_out)
        if number and rest.startswith("/"):
            continue  # it is the same in every folder
        for suffix in ("", *SUFFIXES):
            for path in search(str(folder), rest + suffix):
                yield _Way(folder, left_out, path[len(path) - len(suffix) :])


def _count_needless(names: Sequence[str], folder: Path) -> Iterator[int]:
    """Yields how many folders at the beginning of all names may be left out.

    They end with the name of the folder itself, or are absolute: on this machine, there are no such files.
    """
    cleaned = [_clean(name) for name in names]
    ends = (name.split("/")[:-1] for name in (min(cleaned), max(cleaned)))  # what these two share, all share
    shared = [one for one, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(*ends, strict=False))]
    own = _fold(folder.resolve().name)
    for count in range(1, len(shared) + 1):
        is_absolute = not shared[0] or shared[0].endswith(":")  # C:, https:
        if is_absolute or _fold(shared[count - 1]) == own:
            yield count


def _describe_options(way: _Way, name: str, home: Path) -> str:
    options = ["--data.image-dir", os.path.relpath(way.folder, home)] if way.folder != home else []
    options += ["--data.suffix", way.suffix] if way.suffix else []
    without = f"{_beginning(name, way.left_out)} left out" if way.left_out else ""
    return " and ".join(filter(None, (shlex.join(options), without))) or "neither"


def _describe_way(way: _Way, name: str, table: Path) -> str:
    note = f"the files of {table.name} are in the folder {way.folder}"
    note += f", without {_beginning(name, way.left_out)} before each name" if way.left_out else ""
    return note + (f", with {way.suffix} after each name" if way.suffix else "")


def _beginning(name: str, count: int) -> str:
    return name.strip()[: -len(_shorten(name, count))]


def _describe_spelling(names: Sequence[str], found: _Found, way: _Way, table: Path) -> list[str]:
    """Returns a line on the names that are spelled in another way than their files, if there are any."""
    counts: Counter[str] = Counter()
    for index in found.respelled:
        name, path = _shorten(names[index], way.left_out), unicodedata.normalize("NFC", found.paths[index])
        written = os.path.normpath(name + way.suffix)
        counts["blanks around them are ignored"] += names[index] != names[index].strip()
        counts[r"\ is read as /"] += "\\" in names[index]
        if not path.endswith(unicodedata.normalize("NFC", written)):
            counts["case is ignored"] += 1
        elif not found.paths[index].endswith(written):
            counts["accents are encoded in another way"] += 1
    if not found.respelled:
        return []
    kinds = ", ".join(f"{kind} ({count:,})" for kind, count in counts.items() if count)
    first = found.respelled[0]
    return [
        f"{len(found.respelled):,} paths of {table.name} are spelled in another way than their files: {kinds}; such as "
        f'"{printable(names[first])}" for {printable(found.paths[first])}'
    ]


def _hint(name: str, way: _Way, search: Search, nearest: Search) -> str:
    """Returns a sentence on what may be meant by the name of a missing file, or ""."""
    folder, path = str(way.folder), _clean(name) + way.suffix
    if re.match(r"[a-z][a-z0-9+.-]*://", path, re.IGNORECASE):
        return " The first is a URL, but only files on this machine are read: download them, and name their folder."
    if len(alike := search(folder, path)) > 1:
        return f" The first may be {' or '.join(map(printable, sorted(alike)))}: write which."
    near = nearest(folder, path)
    return f" Near to the first is {printable(near[0])}." if near else ""
