"""What is brought to a machine without a network: names, and the CIFAR-10 records as one compressed file."""

import hashlib
import json
import tarfile
from pathlib import Path

WHEEL_FOLDER = "wheels"
RECORDS, MANIFEST = "records.tar.xz", "records.json"


def sha256(file: Path) -> str:
    """Returns the SHA-256 of a file's bytes, in hexadecimal digits."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def pack_records(data_dir: Path, out: Path, name: str = "cifar10") -> None:
    """Writes the files of a prepared data set as `RECORDS` into the folder `out`, and their hashes as `MANIFEST`.

    Raises FileNotFoundError where it is not there.
    """
    files = sorted(path for path in (data_dir / name).rglob("*") if path.is_file())
    if not files:
        raise FileNotFoundError(f"{data_dir / name} holds no file: name the folder that {name} was prepared in.")
    out.mkdir(parents=True, exist_ok=True)
    with tarfile.open(out / RECORDS, "w:xz", preset=9) as archive:  # its dictionary is as large as the records
        for path in files:
            archive.add(path, path.relative_to(data_dir).as_posix())
    hashes = {path.relative_to(data_dir).as_posix(): sha256(path) for path in files}
    (out / MANIFEST).write_text(json.dumps(hashes, indent=1) + "\n")


def unpack_records(folder: Path, data_dir: Path) -> None:
    """Writes the data set that `pack_records` has put into `folder` below `data_dir`.

    Raises ValueError where what comes out is not what went in.
    """
    with tarfile.open(folder / RECORDS, "r:xz") as archive:
        archive.extractall(data_dir, filter="data")
    for name, expected in json.loads((folder / MANIFEST).read_text()).items():
        there = sha256(data_dir / name) if (data_dir / name).is_file() else "no file"
        if there != expected:
            raise ValueError(
                f"{name} of {folder / RECORDS} has the SHA-256 {there}, but {MANIFEST} says {expected}: pack it again."
            )
