"""The command `python -m flaxcls.inspect`: it parses, looks at a data set, prints and writes one page."""

import sys
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import tyro
from rich.console import Console
from rich.markup import escape

from flaxcls.analysis.drawing import find_refusals
from flaxcls.analysis.gallery import draw_gallery
from flaxcls.analysis.report.inspection import render_inspection
from flaxcls.cli import NAMES, local_out, run_command
from flaxcls.config import AugmentConfig, Config, DataConfig
from flaxcls.data import load_dataset
from flaxcls.data.inspection import inspect_dataset, with_refusals
from flaxcls.errors import InputError
from flaxcls.run.messages import show_inspection
from flaxcls.run.preview import draw_views
from flaxcls.run.runtime import available_memory
from flaxcls.storage import printable, write_new
from flaxcls.validation import validate

DRAWS = 2


@dataclass(frozen=True)
class Command:
    """Shows a data set before anything is trained on it, and writes a page with its facts and pictures."""

    place: tyro.conf.Positional[Path | None] = None
    """Folder of images, or table of paths and labels: data.dir, with data.source folder."""
    out: Path = Path("inspection.html")
    """New file to write."""
    overwrite: tyro.conf.FlagCreatePairsOff[bool] = False
    """Replace the file if it is there."""
    channels: tuple[int, ...] | None = None
    """Channels that are shown as red, green and blue, or one as grey; the first is 1. None: the first three, or the
    first of two."""
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)


def main(args: list[str] | None = None) -> int:
    """Runs the command and returns its exit code: 0, 2 for bad input, or 130 after SIGINT."""
    return run_command(lambda: _inspect(tyro.cli(Command, args=args, prog="python -m flaxcls.inspect", registry=NAMES)))


def _inspect(command: Command) -> int:
    console, config, out = Console(), _data_config(command), local_out(command.out, command.out)
    validate(Config(data=config, augment=command.augment))
    if config.source == "digits":
        console.print("the digits of scikit-learn are inspected: name a folder or a table to look at other images")
    write_new(out, lambda: _make_page(command, config, console).encode(), overwrite=command.overwrite)
    console.print(escape(f"written: {out} ({out.stat().st_size / 2**20:.1f} MiB)"), soft_wrap=True)
    return 0


def _make_page(command: Command, config: DataConfig, console: Console) -> str:
    """Reads the data set, prints its facts and returns its page."""
    problems: list[str] = []
    streamed = replace(config, memory=0.0) if config.source in ("folder", "tfds") else config
    dataset = load_dataset(streamed, problems=problems).without_replacing()
    inspection = inspect_dataset(
        dataset,
        memory_limit=config.memory,
        available=available_memory(),
        on_unreadable=config.unreadable,
        problems=problems,
    )
    refusals = find_refusals(dataset) if inspection.memory.in_memory else []
    assert dataset.preparation is not None
    gallery = draw_gallery(
        dataset,
        inspection,
        channels=command.channels,
        channel_names=dataset.preparation.name_channels(config.path_column),
        draw_views=partial(draw_views, command.augment, dataset, dataset.train, draws=DRAWS),
        has_range=config.value_range is not None or len({kind for _, kind in inspection.kinds}) == 1,
    )
    inspection = with_refusals(inspection, [*refusals, *gallery.refused])
    say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    show_inspection(inspection, dataset, say=say, show=console.print)
    mixing = [name for name, alpha in (("mixup", command.augment.mixup), ("CutMix", command.augment.cutmix)) if alpha]
    return printable(render_inspection(dataset, inspection, gallery, mixing=mixing, columns=config.path_column))


def _data_config(command: Command) -> DataConfig:
    """Returns the configuration of the data. Raises InputError if the place is named twice."""
    config = command.data
    if command.place is None:
        return config
    if config.dir is not None or config.source not in (DataConfig.source, "folder"):
        raise InputError(
            f"{command.place} is given, and so is data.{'dir' if config.dir else 'source'}: give a folder or a table "
            "alone, or --data.source with its options."
        )
    return replace(config, source="folder", dir=str(command.place))


if __name__ == "__main__":
    sys.exit(main())
