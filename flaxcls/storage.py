"""Files on this machine, or in a bucket of Google Cloud Storage as gs://BUCKET/PATH, written whole or not at all."""

import contextlib
import importlib.util
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, cast

from filelock import FileLock

from flaxcls.errors import InputError, StorageError

PARTIAL = ".partial"


def as_path(place: str | Path) -> Path:
    """Returns a path to what a user named; that of a bucket answers the same methods, but for links.

    Raises InputError for a URL that is none of a bucket, and for a bucket where gcsfs is not installed, or that cannot
    be looked into.
    """
    text = str(place)
    url = re.fullmatch(r"([a-z][a-z0-9+.-]+):(?:/+(.*))?", text)  # of // a Path has but one
    if url is None:
        return Path(place)
    scheme, rest = url.groups()
    if scheme != "gs" or not rest:
        given = text if isinstance(place, str) else f"{scheme}://{rest or ''}"
        raise InputError(
            f"the place {given} is neither a path on this machine nor gs://BUCKET/PATH: name one of the two."
        )
    text = f"gs://{rest}"
    if importlib.util.find_spec("gcsfs") is None:
        raise InputError(
            f"{text} is in a bucket, which takes the package gcsfs, and that is not installed: install it with "
            "pip install '.[gcs]', or name a directory of this machine."
        )
    import fsspec  # here, for those who have no bucket
    from etils import epath

    os.environ.setdefault("EPATH_USE_TF", "false")  # nor is TensorFlow to be imported where it is installed
    # what other processes write, and tensorstore in this one, is not in a listing that was kept
    fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)
    path = cast(Path, epath.Path(text))
    try:
        children(path)
    except Exception as error:  # of any of the libraries below gcsfs
        raise InputError(
            f"{text} cannot be looked into: {type(error).__name__}: {error}. Log in with gcloud auth "
            "application-default login, or let the service account of this machine read and write the bucket."
        ) from error
    return path


def in_bucket(path: str | Path) -> bool:
    """Whether a path is of a bucket, where an object is written whole or not at all and nothing is appended."""
    return str(path).startswith("gs://")


def absolute(path: Path) -> Path:
    """Returns the path as it is from any directory."""
    return path if in_bucket(path) else path.absolute()


def children(path: Path) -> list[Path]:
    """Returns what is in a directory, if it is there."""
    try:
        return list(path.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


@contextlib.contextmanager
def os_errors() -> Iterator[None]:
    """Raises OSError for what the libraries below gcsfs raise, whatever it is; they have errors of many kinds."""
    try:
        yield
    except (OSError, InputError, StorageError):
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


def write_whole(path: Path, text: str) -> None:
    """Writes `text` to `path`, so that at any moment the file is the old one or the new one."""
    if in_bucket(path):
        with os_errors():
            path.write_text(text)
        return
    partial = path.with_name(f"{path.name}{PARTIAL}")
    partial.write_text(text)
    partial.replace(path)


def remove(path: Path) -> None:
    """Deletes a file, or a folder with everything in it, if it exists; a link is deleted, not its target."""
    if in_bucket(path):
        cast(Any, path).rmtree(missing_ok=True)  # works for a file, too
    elif path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def move(path: Path, target: Path) -> None:
    """Moves a folder to `target`, which must not exist; the parent of `target` is made if it does not exist."""
    if in_bucket(path):
        import fsspec  # imported here: only buckets need it

        with os_errors():  # `rename` needs the folder to exist, and in a bucket only objects exist
            fsspec.url_to_fs(str(path))[0].mv(str(path), str(target), recursive=True)
    else:
        target.parent.mkdir(exist_ok=True)
        path.rename(target)


class Outbox:
    """A folder for files that grow, even where nothing can be appended; to be closed.

    On this machine `folder` is `place` itself. For a bucket it is a temporary folder, and `send` copies to `place`
    every file that has changed.
    """

    def __init__(self, place: Path) -> None:
        self._place = place
        self._temporary = tempfile.TemporaryDirectory(prefix="flaxcls-") if in_bucket(place) else None
        self._sent: dict[Path, tuple[int, int]] = {}
        self.folder = place if self._temporary is None else Path(self._temporary.name)

    def send(self) -> None:
        """Copies each file that has changed, whole. Raises OSError if one cannot be written."""
        if self._temporary is None:
            return
        for file in sorted(self.folder.rglob("*")):
            stat = file.stat()
            version = (stat.st_mtime_ns, stat.st_size)
            if file.is_file() and self._sent.get(file) != version:
                with os_errors():
                    (self._place / str(file.relative_to(self.folder))).write_bytes(file.read_bytes())
                self._sent[file] = version

    def close(self) -> None:
        """Deletes the temporary folder, if there is one."""
        if self._temporary is not None:
            self._temporary.cleanup()

    def __enter__(self) -> "Outbox":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def local_copy(folder: Path, root: Path) -> Path:
    """Copies `folder`, below `root` in a bucket, to this machine, and returns the place of `root` here.

    Reading records from the bucket one by one would take some 30 ms each. The copy is in ~/.cache/flaxcls/data (or
    $XDG_CACHE_HOME). Files that are already here with the same size and time are not copied again. Where several
    processes of one machine ask, one copies and the others wait.

    Raises:
      InputError: if the folder cannot be copied.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "flaxcls" / "data"
    here = cache / str(root).removeprefix("gs://")
    to = here / str(folder).removeprefix(f"{root}/")
    try:
        to.mkdir(parents=True, exist_ok=True)
        with FileLock(to.with_name(f"{to.name}.lock")), os_errors():
            _copy(folder, to)
    except OSError as error:
        raise InputError(
            f"{folder} cannot be copied to {to}: {error.strerror or error}. Make room there, or name another place by "
            "the environment's XDG_CACHE_HOME."
        ) from error
    return here


def _copy(folder: Path, to: Path) -> None:
    for path in children(folder):
        target = to / path.name
        if path.is_dir():
            target.mkdir(exist_ok=True)
            _copy(path, target)
            continue
        there: Any = path.stat()  # etils has its own names for size and time
        if target.exists() and (target.stat().st_size, int(target.stat().st_mtime)) == (there.length, there.mtime):
            continue
        partial = target.with_name(f"{path.name}.partial")
        copy: Any = path
        copy.copy(partial, overwrite=True)
        os.utime(partial, (there.mtime, there.mtime))
        partial.replace(target)
