"""Files on this machine or in a Google Cloud Storage bucket (gs://BUCKET/PATH), written whole or not at all."""

import contextlib
import importlib.util
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, cast

from filelock import FileLock

from flaxcls.errors import InputError, StorageError

PARTIAL = ".partial"


def printable(path: str | Path) -> str:
    r"""Returns a path, or a text with paths, so that it can be written as UTF-8; other bytes in it become \xNN."""
    return os.fsencode(path).decode(errors="backslashreplace")


def as_path(place: str | Path) -> Path:
    """Returns the path of a place that a user named. Paths in a bucket have the same methods, except those for links.

    Raises InputError for a URL that does not name a bucket, and for a bucket if gcsfs is not installed or the bucket
    cannot be read.
    """
    text = str(place)
    url = re.fullmatch(r"([a-z][a-z0-9+.-]+):(?:/+(.*))?", text)  # a Path has only one / of the //
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
            f"{text} is in a bucket, which needs the package gcsfs, but gcsfs is not installed: run "
            "pip install '.[gcs]', or name a directory on this machine."
        )
    import fsspec  # imported here: only buckets need it
    from etils import epath

    os.environ.setdefault("EPATH_USE_TF", "false")  # keeps TensorFlow from being imported if it is installed
    # a cached listing would lack the files that other processes, or tensorstore in this process, have written
    fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)
    path = cast(Path, epath.Path(text))
    try:
        children(path)
    except Exception as error:  # the libraries below gcsfs raise many types
        raise InputError(
            f"{text} cannot be read: {type(error).__name__}: {error}. Log in with gcloud auth "
            "application-default login, or let the service account of this machine read and write the bucket."
        ) from error
    return path


def in_bucket(path: str | Path) -> bool:
    """True if a path is in a bucket, where objects are written whole or not at all, and nothing can be appended."""
    return str(path).startswith("gs://")


def absolute(path: Path) -> Path:
    """Returns the path independent of the current directory."""
    return path if in_bucket(path) else path.absolute()


def children(path: Path) -> list[Path]:
    """Returns the paths in a directory, or an empty list if there is no such directory."""
    try:
        return list(path.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


@contextlib.contextmanager
def os_errors() -> Iterator[None]:
    """Raises OSError in place of any error from the libraries below gcsfs, which raise many types."""
    try:
        yield
    except (OSError, InputError, StorageError):
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes `content` to `path`, so that at any moment the file has its old content or all of the new one."""
    data = content.encode() if isinstance(content, str) else content
    if in_bucket(path):
        with os_errors():
            path.write_bytes(data)
        return
    partial = path.with_name(f"{path.name}{PARTIAL}")
    partial.write_bytes(data)
    partial.replace(path)


def check_new(out: Path) -> None:
    """Raises InputError if the file that --out names exists already or cannot be created; leaves nothing behind."""
    _create(out, out, "")
    out.unlink()


def write_new(out: Path, make: Callable[[], bytes], *, overwrite: bool | None = None) -> None:
    """Writes what `make` returns to the file that --out names. It is created first, so that no other process takes it.

    If anything fails or is interrupted, no part of it stays.

    overwrite: True to replace a file that is there, when the new one is whole; None: the command replaces none.

    Raises InputError if the file is there already or cannot be written, before `make` is called where that is known.
    """
    if overwrite and out.exists() and not out.is_file():
        raise InputError(f"--out {out} is no file, so it is not replaced: name a file.")
    place = out.with_name(f"{out.name}.{os.getpid()}{PARTIAL}") if overwrite else out
    _create(place, out, "" if overwrite is None else ", or replace it with --overwrite")
    try:
        data = make()
        try:
            place.write_bytes(data)
            place.replace(out)
        except OSError as error:
            raise _not_written(out, error) from error
    except BaseException:
        place.unlink(missing_ok=True)
        raise


def _create(place: Path, out: Path, way_out: str) -> None:
    """Creates an empty file in `place`, which is `out` or beside it."""
    try:
        if not out.parent.is_dir():
            raise InputError(f"--out {out} is in a folder that is not there: name a new file in an existing folder.")
        place.touch(exist_ok=False)
    except FileExistsError as error:
        raise InputError(f"--out {place} is there already: name a new file{way_out}.") from error
    except OSError as error:
        raise _not_written(out, error) from error


def _not_written(out: Path, error: OSError) -> InputError:
    return InputError(f"--out {out} cannot be written: {error.strerror or error}. Name another file.")


def append(path: Path, text: str) -> None:
    """Writes lines at the end of a file, which is made if there is none; in a bucket, the file is written anew.

    If a crash has cut the last line short, it is ended first, so that the new lines are whole.
    """
    if in_bucket(path):
        write_whole(path, (path.read_text() if path.exists() else "") + text)
        return
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":
                file.write(b"\n")
        file.write(text.encode())


def remove(path: Path) -> None:
    """Deletes a file, or a folder with its content, if it exists. Of a link, it deletes the link, not the target."""
    if in_bucket(path):
        cast(Any, path).rmtree(missing_ok=True)  # works for a file, too
    elif path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def move(path: Path, target: Path) -> None:
    """Moves a folder to `target`, which must not exist. Makes the parent of `target` if needed."""
    if in_bucket(path):
        import fsspec  # imported here: only buckets need it

        with os_errors():  # `rename` needs the folder to exist, and in a bucket only objects exist
            fsspec.url_to_fs(str(path))[0].mv(str(path), str(target), recursive=True)
    else:
        target.parent.mkdir(exist_ok=True)
        path.rename(target)


class Outbox:
    """A folder for files that grow, even if `place` is in a bucket, where nothing can be appended. Must be closed.

    On this machine `folder` is `place` itself. For a bucket it is a temporary folder, and `send` copies every file that
    has changed to `place`.
    """

    def __init__(self, place: Path) -> None:
        self._place = place
        self._temporary = tempfile.TemporaryDirectory(prefix="flaxcls-") if in_bucket(place) else None
        self._sent: dict[Path, tuple[int, int]] = {}
        self.folder = place if self._temporary is None else Path(self._temporary.name)

    def send(self) -> None:
        """Copies each file that has changed, as a whole. Raises OSError if one cannot be written."""
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
    """Copies `folder`, which is below `root` in a bucket, to this machine, and returns the local path of `root`.

    To read single records from the bucket would take some 30 ms each. The copy is in ~/.cache/flaxcls/data (or
    $XDG_CACHE_HOME). Files whose local copy has the same size and time are not copied again. If several processes of a
    machine call this, one copies and the others wait.

    Raises:
      InputError: if the folder cannot be copied.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "flaxcls" / "data"
    local_root = cache / str(root).removeprefix("gs://")
    target = local_root / str(folder).removeprefix(f"{root}/")
    try:
        target.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(f"{target.name}.lock")), os_errors():
            _copy(folder, target)
    except OSError as error:
        raise InputError(
            f"{folder} cannot be copied to {target}: {error.strerror or error}. Make room there, or set the "
            "environment variable XDG_CACHE_HOME to another place."
        ) from error
    return local_root


def _copy(folder: Path, target: Path) -> None:
    for path in children(folder):
        copy = target / path.name
        if path.is_dir():
            copy.mkdir(exist_ok=True)
            _copy(path, copy)
            continue
        stat: Any = path.stat()  # etils has its own names for size and time
        if copy.exists() and (copy.stat().st_size, int(copy.stat().st_mtime)) == (stat.length, stat.mtime):
            continue
        partial = copy.with_name(f"{path.name}{PARTIAL}")
        cast(Any, path).copy(partial, overwrite=True)
        os.utime(partial, (stat.mtime, stat.mtime))
        partial.replace(copy)
