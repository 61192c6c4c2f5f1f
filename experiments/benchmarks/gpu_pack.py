"""Packs what `experiments.benchmarks.gpu` needs on a machine without a network: wheels and the CIFAR-10 records.

Code is not packed: the command runs in a checkout, which is brought along too.

Command:   python -m experiments.benchmarks.gpu_pack --data-dir DATA_DIR --out build/gpu
"""

import shutil
import subprocess
import sys
from pathlib import Path

import tyro
from rich.console import Console

from experiments.benchmarks.gpu_files import WHEEL_FOLDER, pack_records

LARGEST = 60e6  # bytes, of all that is brought along

# What flaxcls imports for the benchmark beyond JAX and the usual libraries of numbers and images. What only reports
# need (altair, vl-convert-python) and what tensorflow-datasets imports for its command alone are left out.
WHEELS = (
    "array_record",
    "dm-tree",
    "docstring_parser",
    "googleapis-common-protos",
    "grain",
    "immutabledict",
    "portpicker",
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
# There is no wheel of it to be downloaded, but it is of Python alone.
BUILT = ("promise",)

PYTHON = "3.12"
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014", "manylinux1")
ROOT = Path(__file__).parent.parent.parent


def download_wheels(out: Path, python: str = PYTHON) -> None:
    """Puts the wheels into the folder `out`, for that version of Python on Linux, in the versions of constraints.txt.

    One of them is flaxcls itself, as its version is asked for; its code is that of the checkout all the same.
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
    """Returns the size of the files that git knows in the checkout."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return sum(path.stat().st_size for name in listed.split("\0") if name and (path := ROOT / name).is_file())


def main(data_dir: Path, out: Path = Path("build/gpu"), python: str = PYTHON) -> None:
    """Packs, and says how large it is together with the code.

    Args:
      data_dir: where tensorflow-datasets has prepared cifar10.
      out: folder of the files; those of before are replaced.
      python: version of Python of the machine.
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
        raise SystemExit(
            f"{(packed + code) / 1e6:.1f} MB is too large, as {LARGEST / 1e6:.0f} MB can be brought along: "
            "leave out a wheel."
        )


if __name__ == "__main__":
    tyro.cli(main, prog="python -m experiments.benchmarks.gpu_pack")
