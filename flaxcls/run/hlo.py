"""What the devices send each other in a compiled program."""

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
    """One of them.

    kind: in XLA's words.
    bytes: of what each device has of it in the end.
    group: devices that take part together.
    shapes: of its arrays; XLA puts several into one.
    operation: what it is for, as JAX names it.
    """

    kind: str
    bytes: int
    group: int
    shapes: tuple[tuple[int, ...], ...]
    operation: str

    @property
    def sent(self) -> float:
        """Bytes that each device sends at least (Chan et al. 2007, "Collective communication", section 7)."""
        share = (self.group - 1) / self.group
        shares = {"all-reduce": 2 * share, "reduce-scatter": self.group - 1, "collective-permute": 1}
        return self.bytes * shares.get(self.kind, share)


def collectives(program: str, devices: int) -> list[Collective]:
    """Returns those of a compiled program, in its order; one in a loop is counted once.

    program: what `compiled.as_text()` returns.
    devices: that it runs on, which XLA does not write where all of them take part.
    """
    return [_collective(match, devices) for match in map(_LINE.search, program.splitlines()) if match]


def arrays(types: str) -> list[tuple[tuple[int, ...], int]]:
    """Returns shape and bytes of each array in a type as XLA writes it, such as `(f32[8]{0}, bf16[4,2]{1,0})`."""
    found = [(found["type"], _shape(found["shape"])) for found in _ARRAY.finditer(types)]
    return [(shape, math.prod(shape) * _bytes(kind)) for kind, shape in found]


def _collective(match: "re.Match[str]", devices: int) -> Collective:
    found = arrays(match["shapes"])
    if match["start"] and (match["kind"] != "all-reduce" or match["shapes"].startswith("((")) and len(found) > 1:
        # what goes in stands before what comes out, and behind both what a permutation needs besides
        found = found[1:2] if match["kind"] == "collective-permute" else found[len(found) // 2 :]
    name = _NAME.search(match["rest"])
    return Collective(
        kind=match["kind"],
        bytes=sum(size for _, size in found),
        group=_group(match["rest"]) or devices,
        shapes=tuple(shape for shape, _ in found),
        operation="" if name is None else name["name"],
    )


def _group(text: str) -> int | None:
    """Returns how many devices take part together, as XLA writes it; None where it does not."""
    if (groups := _GROUPS.search(text)) and (groups["first"] or groups["size"]):
        return int(groups["size"]) if groups["size"] else groups["first"].count(",") + 1
    if axes := _AXES.search(text):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", axes["sizes"]))
        chosen = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", axes["chosen"])  # of an axis, or of a part of it
        return math.prod(int(part or sizes[axis]) for axis, part in chosen) if chosen else None
    return None


def _shape(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(","))) if text else ()


def _bytes(kind: str) -> int:
    """Returns how many bytes a number of XLA's type takes, such as 4 of f32 and 1 of pred."""
    bits = re.search(r"\d+", kind)
    return max(int(bits[0]) // 8, 1) if bits else 1
