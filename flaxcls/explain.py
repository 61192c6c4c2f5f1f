"""The command `python -m flaxcls.explain`: it parses, calls and prints."""

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from flaxcls.analysis import load_run
from flaxcls.analysis.explained import METHODS, explain_files, image_files
from flaxcls.cli import NAMES
from flaxcls.errors import InputError


@dataclass(frozen=True)
class Command:
    """Shows what in images a trained model answers to, as pictures and as arrays."""

    run: tyro.conf.Positional[Path]
    """Directory of the run."""
    paths: tyro.conf.Positional[tuple[Path, ...]]
    """Image files, and folders, in and below which all images are taken."""
    methods: tuple[str, ...] = METHODS
    """What to explain them by: some of the default."""
    class_name: str | None = None
    """Class whose logit is explained; without it the one that the model finds in each image."""
    layer: str | None = None
    """For Grad-CAM and feature maps, as --dry-run names it; without it the last whose map has several pixels."""
    out: Path | None = None
    """Directory for what is written; without it explanations/ of the run."""


def main(args: list[str] | None = None) -> int:
    """Runs the command and returns its exit code: 0, or 2 for bad input."""
    command = tyro.cli(
        Command, args=sys.argv[1:] if args is None else args, prog="python -m flaxcls.explain", registry=NAMES
    )
    try:
        files = image_files(command.paths)
        classifier = load_run(command.run)
        out = command.out or command.run / "explanations"
        for image in explain_files(
            classifier, files, methods=command.methods, class_name=command.class_name, layer=command.layer, out=out
        ):
            other = "" if image.explained == image.predicted else f", explained as {image.explained}"
            print(f"{image.source}: {image.predicted}, {image.probability:.1%}{other}")
            print("  " + "  ".join(file.name for file in image.files))
        print(f"The files, and filters.png, are in {out}.")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
