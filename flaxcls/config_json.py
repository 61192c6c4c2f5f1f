"""Configurations to JSON and back, and the differences between two of them."""

import dataclasses
import json
import typing
from typing import Any

from flaxcls.config import Config
from flaxcls.errors import InputError, unknown

__all__ = ["differences", "from_json", "to_json"]

# By data.source, what earlier versions did where a field of data did not exist yet, if that is not its default.
_EARLIER = {
    "folder": {"test_from": "train", "resize": "crop", "group_column": ""},
    "tfds": {"resize": "crop"},
}
_EARLIER_TABLES = {"split_column": "split"}  # with no other name


def to_json(config: Config) -> str:
    """Returns `config` as indented JSON, from which `from_json` makes an equal configuration."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_json(text: str) -> Config:
    """Returns the configuration that `to_json` wrote, perhaps in an earlier version.

    A missing field gets its default, or the value that stands for what the earlier version did.

    Raises InputError for broken JSON and for an unknown field.
    """
    try:
        values = json.loads(text)
        if isinstance(values, dict) and isinstance(data := values.get("data"), dict):
            values["data"] = _earlier(str(data.get("source")), str(data.get("dir"))) | data
        config: Config = _build(Config, values, "")
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"the configuration is not JSON: {error}.") from error
    return config


def _earlier(source: str, place: str) -> dict[str, Any]:
    is_table = source == "folder" and place.lower().endswith((".csv", ".parquet"))
    return _EARLIER.get(source, {}) | (_EARLIER_TABLES if is_table else {})


def _build(cls: Any, values: Any, prefix: str) -> Any:
    hints = typing.get_type_hints(cls)
    if not isinstance(values, dict):
        raise InputError(f"the configuration{prefix and ' at ' + prefix[:-1]} is {values!r}, but must be an object.")
    for name in values:
        if name not in hints:
            raise InputError(unknown("field", prefix + name, [prefix + known for known in hints]))
    arguments = {}
    for name, hint in hints.items():
        if name not in values:
            continue
        value = values[name]
        if dataclasses.is_dataclass(hint):
            arguments[name] = _build(hint, value, f"{prefix}{name}.")
        else:
            arguments[name] = tuple(value) if isinstance(value, list) else value
    return cls(**arguments)


def differences(one: Config, other: Config) -> list[str]:
    """Returns a line "path: value in `one` -> value in `other`" for each field in which they differ."""

    def are_equal(a: Any, b: Any) -> bool:  # the first glob that matches a path counts, so the order of keys matters
        return a == b and (not isinstance(a, dict) or list(a) == list(b))

    def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
        if not dataclasses.is_dataclass(value):
            return {prefix: value}
        parts = ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))
        return {k: v for name, part in parts for k, v in flatten(part, f"{prefix}.{name}".lstrip(".")).items()}

    before, after = flatten(one), flatten(other)
    return [
        f"{path}: {before[path]!r} -> {after[path]!r}" for path in before if not are_equal(before[path], after[path])
    ]
