"""What the commands share: names answered with a suggestion, and experiment files."""

import runpy
from pathlib import Path

from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from flaxcls.config import Config
from flaxcls.errors import InputError, unknown
from flaxcls.storage import as_path, in_bucket
from flaxcls.validation import choices, validate

NAMES = ConstructorRegistry()


@NAMES.primitive_rule
def _name(type_info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[str | None] | None:
    """Answers a mistyped name among a few with a suggestion."""
    names = choices(type_info.type)
    if not names:
        return None
    known = {str(name): name for name in names}

    def parse(words: list[str]) -> str | None:
        if words[0] not in known:
            raise ValueError(unknown("name", words[0], known))
        return known[words[0]]

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="{" + ",".join(known) + "}",
        instance_from_str=parse,
        is_instance=lambda value: value in names,
        str_from_instance=lambda value: [str(value)],
    )


@NAMES.primitive_rule
def _by_path(type_info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[dict[str, float]] | None:
    """Takes pairs of words, also where the default is not empty (tyro then makes an option of each of its keys)."""
    if type_info.type not in (dict[str, float], dict[str, int]):
        return None
    kind = int if type_info.type == dict[str, int] else float

    def parse(words: list[str]) -> dict[str, float]:
        if len(words) % 2:
            raise ValueError(
                f"{' '.join(words)!r} is no list of pairs: a path and its number, each separated by a space."
            )
        return {path: kind(number) for path, number in zip(words[::2], words[1::2], strict=True)}

    return PrimitiveConstructorSpec(
        nargs="*",
        metavar=f"[PATH {kind.__name__.upper()} ...]",
        instance_from_str=parse,
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda value: [str(word) for pair in value.items() for word in pair],
    )


def local_out(out: Path | None, default: Path) -> Path:
    """Returns where a command writes to. Raises InputError if that is in a bucket, where only a run is written."""
    place = default if out is None else as_path(out)
    if in_bucket(place):
        raise InputError(
            f"{place} is in a bucket, but what a command makes of a run is written to this machine: name a place "
            "there by --out."
        )
    return place


def load_experiment(path: Path) -> Config:
    """Returns CONFIG of a Python file, which is run. Raises InputError if there is none, or none that is valid."""
    if not path.is_file():
        raise InputError(f"the experiment {path} is no file: name a Python file that defines CONFIG.")
    try:
        compile(path.read_bytes(), path, "exec")
    except (SyntaxError, ValueError) as error:
        raise InputError(f"the experiment {path} is not Python: {error}.") from error
    try:
        config = runpy.run_path(str(path)).get("CONFIG")
    except (Exception, SystemExit) as error:
        raise InputError(f"the experiment {path} does not run: {type(error).__name__}: {error}") from error
    if not isinstance(config, Config):
        raise InputError(
            f"the experiment {path} defines no CONFIG that is a flaxcls.config.Config (found: {config!r}): "
            "add CONFIG = Config(...) to it."
        )
    validate(config)
    return config
