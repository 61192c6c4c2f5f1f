"""What the commands share: names answered with a suggestion, and experiment files."""

import runpy
from pathlib import Path

from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from flaxcls.config import Config
from flaxcls.errors import InputError, unknown
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
