"""The contents of files: by their digests a data set is known again, and copies are found. Each file is read once."""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from flaxcls.data.table import ImageFile

READ = 2**16  # bytes at either end of a file that its digest covers


class Digest(NamedTuple):
    """The digest of an example's files.

    ends: SHA-256 of length, beginning and end of each file.
    is_whole: True if these are all of each file.
    content: SHA-256 of all bytes, if they were read.
    is_readable: False if a file is not there, or cannot be opened.
    """

    ends: bytes
    is_whole: bool
    content: bytes | None
    is_readable: bool = True


def digest_files(files: Sequence[ImageFile], *, wholly: Callable[[ImageFile], bool]) -> list[Digest]:
    """Returns the digest of each example. A file that cannot be read has that of the reason.

    wholly: True for an example all of whose bytes are read; of the others only the ends are.
    """

    def digest(file: ImageFile) -> Digest:
        ends, content, is_whole = hashlib.sha256(), hashlib.sha256() if wholly(file) else None, True
        try:
            for path in file.paths:
                length, first, last = _read(path, content)
                ends.update(b"%d " % length + first)
                ends.update(b"%d " % length + last)
                is_whole &= length <= 2 * READ
        except OSError as error:  # it has a content that is not known, which is not the same as an empty one
            ends.update(str(error.strerror).encode())
            return Digest(ends.digest(), is_whole, None, is_readable=False)
        return Digest(ends.digest(), is_whole, None if content is None else content.digest())

    with ThreadPoolExecutor() as pool:
        return list(pool.map(digest, files))


def number_contents(files: Sequence[ImageFile], digests: Sequence[Digest]) -> np.ndarray:
    """Returns u64[n], equal for examples of the same bytes and, but for 1 in 2^64 pairs, for no others.

    Only files whose digests agree, but do not cover all of them, are read once more.
    """
    alike: dict[bytes, int] = {}
    for digest in digests:
        alike[digest.ends] = alike.get(digest.ends, 0) + 1

    def number(file: ImageFile, digest: Digest) -> int:
        if not digest.is_readable:  # what is not known is no copy of anything
            return number_of(file.name.encode())
        if digest.is_whole or alike[digest.ends] == 1:
            return int.from_bytes(digest.ends[:8])
        return int.from_bytes((digest.content or content_of(file))[:8])

    with ThreadPoolExecutor() as pool:
        return np.array(list(pool.map(number, files, digests)), np.uint64)


def content_of(file: ImageFile) -> bytes:
    """Returns the SHA-256 of all bytes of an example, or of as many as can be read."""
    content = hashlib.sha256()
    for path in file.paths:
        try:
            content.update(path.read_bytes())
        except OSError:
            break
    return content.digest()


def number_of(data: bytes | memoryview) -> int:
    """Returns a number of 64 bits, equal for the same bytes."""
    return int.from_bytes(hashlib.sha256(data).digest()[:8])


def fingerprint_of(files: Sequence[ImageFile], digests: Sequence[Digest]) -> str:
    """Returns the hash of names, labels, splits and digests of the examples, the same if the set is moved."""
    lines = (
        f"{file.name}\0{file.label}\0{file.part}\0{digest.ends.hex()}\n"
        for file, digest in zip(files, digests, strict=True)
    )
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _read(path: Path, content: "hashlib._Hash | None") -> tuple[int, bytes, bytes]:
    """Returns length, beginning and end of a file; updates `content`, if there is one, with all of it."""
    if content is not None:
        data = path.read_bytes()
        content.update(data)
        return len(data), data[:READ], data[-READ:]
    with path.open("rb") as opened:
        length = opened.seek(0, 2)
        opened.seek(0)
        first = opened.read(READ)
        opened.seek(max(0, length - READ))
        return length, first, opened.read(READ)
