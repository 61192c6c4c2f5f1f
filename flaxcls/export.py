"""The command `python -m flaxcls.export`: it parses, exports a run and prints its files and cost."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console

from flaxcls.analysis.export import DESCRIPTION, ONNX, STABLEHLO, add_onnx, check_folder, export_run
from flaxcls.analysis.export.onnx import ADVICE
from flaxcls.analysis.inference import calibrated
from flaxcls.analysis.loading import load_run
from flaxcls.cli import NAMES, local_out, run_command
from flaxcls.errors import InputError
from flaxcls.storage import as_path


@dataclass(frozen=True)
class Command:
    """Exports a trained run as one program that turns the bytes of images into calibrated probabilities."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Run directory."""
    dtype: Literal["float32", "bfloat16", "int8"] = "float32"
    """Type of the stored weights; a smaller one is compared with float32 on the validation split."""
    format: Literal["stablehlo", "onnx"] = "stablehlo"
    """onnx: also write model.onnx, converted by --onnx-python."""
    onnx_python: Path | None = None
    """Python of a separate environment with jax2onnx, which needs another version of orbax."""
    out: Path | None = None
    """Folder to write to; without it, RUN/export for float32 and RUN/export-DTYPE for other types."""
    overwrite: tyro.conf.FlagCreatePairsOff[bool] = False
    """Replace model.stablehlo, model.onnx and model.json in the folder."""


def main(args: list[str] | None = None) -> int:
    """Runs the command and returns its exit code: 0, 2 for bad input, 4 if storage fails, or 130 after SIGINT."""
    return run_command(lambda: _export(tyro.cli(Command, args=args, prog="python -m flaxcls.export", registry=NAMES)))


def _export(command: Command) -> int:
    console = Console(soft_wrap=True, highlight=False, markup=False)
    plain = command.dtype == "float32"
    run = as_path(command.run)
    out = local_out(command.out, run / ("export" if plain else f"export-{command.dtype}"))
    if command.format == "onnx" and command.onnx_python is None:
        raise InputError(f"--format onnx needs --onnx-python: {ADVICE}, then give --onnx-python onnx/bin/python.")
    check_folder(out, overwrite=command.overwrite)
    classifier, reason = calibrated(run, load_run(run))
    description = export_run(run, classifier, out, dtype=command.dtype, not_calibrated=reason)
    size = description["files"][STABLEHLO]["bytes"]
    console.print(f"{out / STABLEHLO}: {size:,} bytes, for {', '.join(description['platforms'])}, any batch size")
    needed = " and ".join(description["requirements"])
    console.print(
        f"{out / DESCRIPTION}: class names, how a file becomes an input, and how to use it; it needs {needed}"
    )
    console.print(f"Input: {_input_text(description)}")
    if command.onnx_python is not None:
        record = add_onnx(classifier, out, description, command.onnx_python)
        largest = record["largest_difference"]
        console.print(f"{out / ONNX}: {record['bytes']:,} bytes, outputs within {largest:.1e} of those of JAX")
    if reason is not None:
        console.print(f"The probabilities are not calibrated: {reason}")
    if not plain:
        console.print(_comparison_text(description))
    return 0


def _input_text(description: dict[str, Any]) -> str:
    given, done = description["input"], description["preparation"]
    how = {"crop": "cropped and scaled", "squash": "squashed", "pad": "scaled and padded with black"}[done["resize"]]
    deep = (
        done["value_range"]
        and not done["of_arrays"]
        and ", their values {:g}..{:g} scaled to 0..1".format(*done["value_range"])
    )
    height, width = done["size"]
    return f"{given['images']}, {given['values']}: pictures {how} to {height}x{width}{deep or ''}"


def _comparison_text(description: dict[str, Any]) -> str:
    found, dtype = description["compared_with_float32"], description["dtype"]
    if found is None:
        return f"What {dtype} costs was not measured: {description['not_compared']}"
    (accuracy, smaller), (before, after) = found["accuracy"], found["milliseconds"]
    saved = found["latency_won"]
    difference = f"{saved:.1%} less time" if saved > 0 else f"{-saved:.1%} more time"
    if found["chance"] > 0.01:
        difference = "no clear difference"
    return "\n".join(
        [
            f"{dtype} against float32, on the {found['examples']} examples of the validation split:",
            f"  accuracy  {accuracy:.4f} -> {smaller:.4f}, {100 * found['accuracy_lost']:.2f} points lost, "
            f"{found['changed']} predictions changed",
            f"  latency   {before:.3f} -> {after:.3f} ms for {found['batch_size']} images on {found['device']}: "
            f"{difference} (medians of {found['repetitions']} pairs, faster in {found['faster_in']})",
            f"  size      {found['bytes'][0]:,} -> {found['bytes'][1]:,} bytes",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
