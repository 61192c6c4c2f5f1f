"""The collectives of a compiled program: data that the devices send each other."""

import math
import re
from dataclasses import dataclass

_KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|collective-broadcast"
_LINE = re.compile(rf"= (?P<shapes>\(.*?\)|\S+) (?P<kind>{_KINDS})(?P<start>-start)?\((?P<rest>.*)")
_ARRAY = re.compile(r"(?P<type>[a-z]+\d*)\[(?P<shape>[\d,]*)\]")
_GROUPS = re.compile(r"replica_groups=(?:\{\{(?P<first>[\d,]*)|\[\d+,(?P<size>\d+)\])")
_AXES = re.compile(r"replica_groups=mesh\[(?P<sizes>[^\]]*)\] \{(?P<chosen>[^}]*)\}")
_NAME = re.compile(r'op_name="(?P<name>[^"]*)"')


@dataclass(frozen=True)
class Collective:
    """One collective operation of a program.

    kind: its name in XLA, such as all-reduce.
    bytes: the size of its result on each device.
    group: the number of devices that take part together.
    shapes: the shapes of its arrays; XLA combines several arrays into one collective.
    operation: JAX's name of the operation that needs it.
    """

    kind: str
    bytes: int
    group: int
    shapes: tuple[tuple[int, ...], ...]
    operation: str

    @property
    def sent(self) -> float:
        """The least bytes that each device sends (Chan et al. 2007, "Collective communication", section 7)."""
        share = (self.group - 1) / self.group
        shares = {"all-reduce": 2 * share, "reduce-scatter": self.group - 1, "collective-permute": 1}
        return self.bytes * shares.get(self.kind, share)


def collectives(program: str, devices: int) -> list[Collective]:
    """Returns the collectives of a compiled program, in its order; one in a loop is counted once.

    program: the result of `compiled.as_text()`.
    devices: the number of devices it runs on; XLA does not write it for a collective of all devices.
    """
    return [_parse_collective(match, devices) for match in map(_LINE.search, program.splitlines()) if match]


def arrays(types: str) -> list[tuple[tuple[int, ...], int]]:
    """Returns shape and bytes of each array in a type, written by XLA as `(f32[8]{0}, bf16[4,2]{1,0})`."""
    found = [(match["type"], _parse_shape(match["shape"])) for match in _ARRAY.finditer(types)]
    return [(shape, math.prod(shape) * _item_bytes(dtype)) for dtype, shape in found]


def _parse_collective(match: "re.Match[str]", devices: int) -> Collective:
    found = arrays(match["shapes"])
    if match["start"] and (match["kind"] != "all-reduce" or match["shapes"].startswith("((")) and len(found) > 1:
        # the inputs stand before the outputs; behind both, a permutation has further values
        found = found[1:2] if match["kind"] == "collective-permute" else found[len(found) // 2 :]
    name = _NAME.search(match["rest"])
    return Collective(
        kind=match["kind"],
        bytes=sum(size for _, size in found),
        group=_parse_group(match["rest"]) or devices,
        shapes=tuple(shape for shape, _ in found),
        operation="" if name is None else name["name"],
    )


def _parse_group(text: str) -> int | None:
    """Returns the number of devices that take part together, or None if XLA does not write it."""
    if (groups := _GROUPS.search(text)) and (groups["first"] or groups["size"]):
        return int(groups["size"]) if groups["size"] else groups["first"].count(",") + 1
    if axes := _AXES.search(text):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", axes["sizes"]))
        chosen = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", axes["chosen"])  # an axis, or a part of one
        return math.prod(int(part or sizes[axis]) for axis, part in chosen) if chosen else None
    return None


def _parse_shape(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(","))) if text else ()


def _item_bytes(dtype: str) -> int:
    """Returns the bytes of one number of a type of XLA: 4 for f32, 1 for pred."""
    bits = re.search(r"\d+", dtype)
    return max(int(bits[0]) // 8, 1) if bits else 1
