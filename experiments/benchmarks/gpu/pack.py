"""The files for a GPU machine without a network: wheels, and the CIFAR-10 records as one compressed file.

`experiments.benchmarks.gpu_pack` packs them, `experiments.benchmarks.gpu` unpacks them. The code is not packed: both
commands run in a checkout, which you copy to the machine as well.
"""

import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from rich.console import Console

LARGEST = 60e6  # bytes that may be copied to the machine in all
WHEEL_FOLDER = "wheels"
RECORDS, MANIFEST = "records.tar.xz", "records.json"

# The imports of flaxcls in the benchmark, beyond JAX and the usual libraries of numbers and images. Packages that only
# reports need (altair, vl-convert-python) and those of the command of tensorflow-datasets are left out.
WHEELS = (
    "array_record",
    "dm-tree",
    "docstring_parser",
    "googleapis-common-protos",
    "immutabledict",
    "protobuf",
    "readchar",
    "simplejpeg",
    "tensorboardX",
    "tensorflow-datasets",
    "tensorflow-metadata",
    "toml",
    "typeguard",
    "tyro",
    "uniplot",
)
# Pure Python packages without a wheel to download.
BUILT = ("promise",)

PYTHON = "3.12"
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014", "manylinux1")
ROOT = Path(__file__).parents[3]


def sha256(file: Path) -> str:
    """Returns the SHA-256 of a file's bytes, in hexadecimal digits."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def pack_records(data_dir: Path, out: Path, name: str = "cifar10") -> None:
    """Writes the files of a prepared data set as `RECORDS` into the folder `out`, and their hashes as `MANIFEST`.

    Raises FileNotFoundError if the data set is missing.
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
    """Writes the data set that `pack_records` put into `folder` to a folder below `data_dir`.

    Raises ValueError if a hash differs from the manifest.
    """
    with tarfile.open(folder / RECORDS, "r:xz") as archive:
        archive.extractall(data_dir, filter="data")
    for name, expected in json.loads((folder / MANIFEST).read_text()).items():
        found = sha256(data_dir / name) if (data_dir / name).is_file() else "no file"
        if found != expected:
            raise ValueError(
                f"{name} of {folder / RECORDS} has the SHA-256 {found}, but {MANIFEST} says {expected}: pack it again."
            )


def download_wheels(out: Path, python: str = PYTHON) -> None:
    """Writes the wheels for that Python version on Linux into the folder `out`, in the versions of constraints.txt.

    flaxcls itself is one of them, because its version is read; its code still comes from the checkout.
    """
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    shared = ["--quiet", "--no-deps", "--constraint", str(ROOT / "constraints.txt")]
    target = [f"--platform={name}_x86_64" for name in PLATFORMS]
    target += ["--only-binary=:all:", f"--python-version={python}", "--implementation=cp"]
    subprocess.run([*pip, "download", *shared, *target, "--dest", str(out), *WHEELS], check=True)
    subprocess.run([*pip, "wheel", *shared, "--wheel-dir", str(out), *BUILT, str(ROOT)], check=True)


def packed_bytes(*folders: Path) -> int:
    """Returns the size of all files in the folders."""
    return sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())


def code_bytes() -> int:
    """Returns the size of the files of the checkout that git tracks."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return sum(path.stat().st_size for name in listed.split("\0") if name and (path := ROOT / name).is_file())


def main(data_dir: Path, out: Path = Path("build/gpu"), python: str = PYTHON) -> None:
    """Packs the files, and prints their size and that of the code.

    Args:
      data_dir: folder that tensorflow-datasets prepared cifar10 in.
      out: folder for the files; earlier files are replaced.
      python: Python version of the GPU machine.
    """
    console = Console()
    shutil.rmtree(out / WHEEL_FOLDER, ignore_errors=True)
    pack_records(data_dir, out)
    download_wheels(out / WHEEL_FOLDER, python)
    packed, code = packed_bytes(out), code_bytes()
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        console.print(f"{path.stat().st_size / 1e6:8.2f} MB  {path.relative_to(out)}", highlight=False, soft_wrap=True)
    console.print(f"{packed / 1e6:8.2f} MB packed, {code / 1e6:.2f} MB of code")
    if packed + code > LARGEST:
        size = (packed + code) / 1e6
        raise SystemExit(f"{size:.1f} MB is too large, the limit is {LARGEST / 1e6:.0f} MB: leave out a wheel.")
