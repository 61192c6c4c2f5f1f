"""Where files are: on this machine, or in a bucket of Google Cloud Storage as gs://BUCKET/PATH."""

import contextlib
import importlib.util
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from flaxcls.errors import InputError, StorageError


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
