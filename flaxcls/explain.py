"""The command `python -m flaxcls.explain`: it parses, explains image files and prints."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from flaxcls.analysis import load_run
from flaxcls.analysis.explain_files import explain_files, make_options
from flaxcls.analysis.explanation import TOLERANCE
from flaxcls.analysis.prediction import find_images, predict_files
from flaxcls.cli import NAMES, TableOptions, local_out, run_command
from flaxcls.storage import as_path, printable


@dataclass(frozen=True)
class Command:
    """Shows which parts of an image a trained model responds to, as pictures and as arrays."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Run directory."""
    paths: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="PATH...")]
    """Images, folders of them, globs in quotes, or tables of their paths."""
    data: TableOptions = field(default_factory=TableOptions)
    methods: Annotated[tuple[str, ...] | None, tyro.conf.arg(metavar="NAME...")] = None
    """Methods: any of grad-cam, integrated-gradients, smooth-grad and occlusion; without it, all of them."""
    class_name: str | None = None
    """Class whose logit is explained; without it, the class predicted for each image."""
    layer: str | None = None
    """Layer for Grad-CAM and feature maps, named as in --dry-run; without it, the last with a map of several pixels."""
    out: Path | None = None
    """Directory for the files; without it, RUN/explanations."""
    max_pixels: int | None = None
    """Pixels of the largest image that is read, so that no file fills the memory; None: as in training."""


def main(args: list[str] | None = None) -> int:
    """Runs the command and returns its exit code.

    It is 0, 1 for unreadable files, 2 for bad input, 4 if storage fails, or 130 after SIGINT.
    """
    return run_command(lambda: _explain(tyro.cli(Command, args=args, prog="python -m flaxcls.explain", registry=NAMES)))


def _explain(command: Command) -> int:
    run = as_path(command.run)
    out = local_out(command.out, run / "explanations")
    classifier = load_run(run)
    images, notes = find_images(command.paths, **command.data.as_in(classifier.config.data))
    options = make_options(classifier, methods=command.methods, class_name=command.class_name, layer=command.layer)
    for sentence in (*notes, *options.left_out):
        print(sentence, file=sys.stderr)
    most = command.max_pixels or classifier.config.data.max_pixels
    found = predict_files(classifier, images, most_pixels=most)
    for note in found.notes:
        print(note, file=sys.stderr)
    for image in explain_files(classifier, options, found, out, most_pixels=most):
        other = "" if image.explained == image.predicted else f", explained as {image.explained}"
        print(f"{printable(image.source)}: {image.predicted}, {image.probability:.1%}{other}")
        if not image.is_complete:
            print(
                "  Integrated gradients are not exact here: their sum differs from the difference of the logits by "
                f"{image.gap:.1%}, more than the usual {TOLERANCE:.0%}."
            )
        print("  " + "  ".join(printable(file.name) for file in image.files))
    if found.images:
        print(f"The files{'' if options.filters is None else ', and filters.png,'} are in {out}.")
    if found.unreadable:
        print(found.complaint, file=sys.stderr)
    return 1 if found.unreadable else 0


if __name__ == "__main__":
    sys.exit(main())
