"""The command `python -m flaxcls.explain`: it parses, calls and prints."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from flaxcls.analysis import load_run
from flaxcls.analysis.explain_files import explain_files, make_plan
from flaxcls.analysis.explanation import TOLERANCE
from flaxcls.analysis.prediction import find_images, predict_files
from flaxcls.cli import NAMES, local_out
from flaxcls.errors import InputError
from flaxcls.storage import as_path


@dataclass(frozen=True)
class Command:
    """Shows what in images a trained model answers to, as pictures and as arrays."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Directory of the run."""
    paths: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="PATH...")]
    """Images, folders of them, or globs in quotes."""
    methods: Annotated[tuple[str, ...] | None, tyro.conf.arg(metavar="NAME...")] = None
    """What to explain them by: some of grad-cam, integrated-gradients, smooth-grad and occlusion; without it by all."""
    class_name: str | None = None
    """Class whose logit is explained; without it the one that the model finds in each image."""
    layer: str | None = None
    """For Grad-CAM and feature maps, as --dry-run names it; without it the last whose map has several pixels."""
    out: Path | None = None
    """Directory for what is written; without it explanations/ of the run."""


def main(args: list[str] | None = None) -> int:
    """Runs the command; its exit code is 0, 1 where files could not be read, 2 for bad input, 130 after SIGINT."""
    command = tyro.cli(Command, args=args, prog="python -m flaxcls.explain", registry=NAMES)
    try:
        return _explain(command)
    except KeyboardInterrupt:
        return 130
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _explain(command: Command) -> int:
    paths = find_images(command.paths)
    run = as_path(command.run)
    out = local_out(command.out, run / "explanations")
    classifier = load_run(run)
    plan = make_plan(classifier, methods=command.methods, class_name=command.class_name, layer=command.layer)
    for sentence in plan.left_out:
        print(sentence, file=sys.stderr)
    found = predict_files(classifier, paths)
    for image in explain_files(classifier, plan, found, out):
        other = "" if image.explained == image.predicted else f", explained as {image.explained}"
        print(f"{image.source}: {image.predicted}, {image.probability:.1%}{other}")
        if not image.is_complete:
            print(
                f"  Integrated gradients are not exact here: their sum is {image.gap:.1%} off the difference of the "
                f"logits, and up to {TOLERANCE:.0%} is usual."
            )
        print("  " + "  ".join(file.name for file in image.files))
    if found.paths:
        print(f"The files{'' if plan.filters is None else ', and filters.png,'} are in {out}.")
    if found.unreadable:
        print(found.complaint, file=sys.stderr)
    return 1 if found.unreadable else 0


if __name__ == "__main__":
    sys.exit(main())
