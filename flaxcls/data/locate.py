"""The files of a table, whose paths may lack a folder or a suffix."""

import glob
import os
import shlex
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

from flaxcls.data.stored import SUFFIXES
from flaxcls.errors import InputError

Key: TypeAlias = tuple[int, int] | None  # device and number of a file; None: it is not there


def locate(
    names: Sequence[str], table: Path, *, folder: str | None, suffix: str | None, skip_missing: bool
) -> tuple[list[Path], list[Key], list[str]]:
    """Returns the files that a table names, what identifies each, and a note if folder or suffix was guessed.

    A guess holds for every name, and is the only one that does.

    Args:
      names: paths as they are in the table.
      table: the file of the table.
      folder: folder of the paths, relative to the folder of the table; None: the same folder, or a guess.
      suffix: what is added to each name; None: nothing, or a guess.
      skip_missing: some of the files may be missing.

    Raises InputError if files are missing; it counts how many are there with other folders and suffixes.
    """
    home = table.parent
    asked = home / Path(folder or "").expanduser()
    if not asked.is_dir():
        raise InputError(
            f"data.image_dir {folder!r} is no folder, as there is no {asked}: name it as seen from the folder of the "
            "table, or by an absolute path."
        )
    paths, keys = _look_up(names, asked, suffix or "")
    missing = [index for index, key in enumerate(keys) if key is None]
    if not missing:
        return list(map(Path, paths)), keys, []

    samples = {missing[0], missing[len(missing) // 2], missing[-1]}
    places = [home, *sorted(path for path in home.iterdir() if path.is_dir() and not path.name.startswith("."))]
    found, whole = [], []
    for place, ending in sorted({way for index in samples for way in _ways(names[index], places)}):
        other_paths, other_keys = _look_up(names, place, ending)
        options = ["--data.image-dir", place.name] if place != home else []
        options += ["--data.suffix", ending] if ending else []
        found.append(f"{len(names) - other_keys.count(None)} with {shlex.join(options) or 'neither'}")
        obeys = (folder is None or place == asked) and suffix in (None, ending)
        if obeys and None not in other_keys:
            note = f"the files of {table.name} are in the folder {place}"
            note += f", with {ending} after each name" if ending else ""
            whole.append((list(map(Path, other_paths)), other_keys, [note]))
    if len(missing) == len(names) and len(whole) == 1:
        return whole[0]
    if len(missing) < len(names) and skip_missing:
        return list(map(Path, paths)), keys, []
    listed = "\n  ".join([*(paths[index] for index in missing[:10]), *["..."] * (len(missing) > 10)])
    raise InputError(
        f"{len(missing)} of {len(names)} files of the table {table} are not there:\n  {listed}\n"
        "Paths are relative to the folder of the table, or to --data.image-dir; --data.suffix is added to each."
        + (f" Found are {', '.join(found)}." if found else "")
        + (" Or leave the missing files out with --data.unreadable skip." if len(missing) < len(names) else "")
    )


def _look_up(names: Sequence[str], folder: Path, suffix: str) -> tuple[list[str], list[Key]]:
    paths = [os.path.join(folder, name + suffix) for name in names]  # noqa: PTH118 (pathlib takes five times as long)

    def key(path: str) -> Key:
        try:
            status = os.stat(path)  # noqa: PTH116
        except (OSError, ValueError):  # ValueError: a zero byte in the name
            return None
        return (status.st_dev, status.st_ino) if stat.S_ISREG(status.st_mode) else None

    return paths, list(map(key, paths))


def _ways(name: str, folders: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """Yields each folder and suffix with which there is a file of that name."""
    for folder in folders[:1] if Path(name).is_absolute() else folders:
        path = folder / name
        for match in path.parent.glob(glob.escape(path.name) + "*"):
            suffix = match.name.removeprefix(path.name)
            if match.is_file() and (not suffix or suffix.lower() in SUFFIXES):
                yield folder, suffix
