"""The bytes that the operations of a compiled program read and write, from its text in XLA's language (HLO)."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from experiments.benchmarks.trace import kind_of
from flaxcls.run.hlo import arrays

_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%(?P<name>[\w.\-]+) = (?P<type>.*?) (?P<kind>[a-z][\w\-]*)\((?P<rest>.*)")
_LOOP = re.compile(r'body=%(?P<body>[\w.\-]+).*"known_trip_count":\{"n":"(?P<turns>\d+)"')
_FREE = {"get-tuple-element", "tuple", "parameter", "constant", "bitcast"}
_NESTED = {"call", "while", "conditional"}
_PARTIAL = {"gather", "dynamic-slice", "slice"}


@dataclass(frozen=True)
class Operation:
    """One operation of a program: its name and kind in XLA's words, what it is given, and the bytes of its result."""

    name: str
    kind: str
    bytes: int
    operands: tuple[str, ...]
    rest: str


def computations(program: str) -> dict[str, str]:
    """Returns the text of each computation of a compiled program by its name, of the first one to run by "ENTRY"."""
    texts = re.findall(r"^(ENTRY|%[\w.\-]+) (.*?)^\}", program, re.MULTILINE | re.DOTALL)
    return {name.removeprefix("%"): text for name, text in texts}


def loop(program: str, turns: int) -> str:
    """Returns the name of the body of the loop that has so many turns. Raises ValueError unless there is just one."""
    found = [match["body"] for match in _LOOP.finditer(program) if int(match["turns"]) == turns]
    if len(found) != 1:
        raise ValueError(f"the program has {len(found)} loops of {turns} turns, but one is needed.")
    return found[0]


def traffic(program: str, name: str) -> dict[str, list[int]]:
    """Returns the bytes that each operation of a computation reads and writes, by its kind as the profile has it.

    A loop in it counts with all of its turns. Raises ValueError where how many there are is not known, or where there
    is a condition.
    """
    texts = computations(program)
    known: dict[str, Operation] = {}
    found: dict[str, list[int]] = {}
    for one in _operations(texts[name]):
        known[one.name] = one
        if one.kind in _NESTED:
            inner, turns = _nested(one)
            for kind, moved in traffic(program, inner).items():
                found.setdefault(kind, []).extend(turns * moved)
            continue
        if one.kind in _FREE or one.kind.endswith("-done"):
            continue
        sizes = [known[operand].bytes for operand in one.operands]
        inside, names = [one], [*one.operands]
        if called := re.search(r"calls=%([\w.\-]+)", one.rest):
            inside = _operations(texts[called[1]])
            names = [_parameter(inside, number) for number in range(len(sizes))]
        read = sum(_taken(inside, operand, size) for operand, size in zip(names, sizes, strict=True))
        # the type of what starts holds what goes in, too
        written = one.bytes - (sum(sizes) if one.kind.endswith("-start") else 0)
        found.setdefault(kind_of(one.name), []).append(read + written)
    return found


def _nested(one: Operation) -> tuple[str, int]:
    """Returns the computation that a call or a loop runs, and how often."""
    if one.kind == "call" and (applied := re.search(r"to_apply=%([\w.\-]+)", one.rest)):
        return applied[1], 1
    if (found := _LOOP.search(one.rest)) is None:
        raise ValueError(f"how often the operations of {one.name}, a {one.kind}, run is not known.")
    return found["body"], int(found["turns"])


def _operations(text: str) -> list[Operation]:
    """Returns those of a computation in their order, each after what it is given."""
    made = []
    for match in map(_INSTRUCTION.match, text.splitlines()):
        if match:
            operands, size = match["rest"].split(")")[0], sum(size for _, size in arrays(match["type"]))
            names = tuple(re.findall(r"%([\w.\-]+)", operands))
            made.append(Operation(match["name"], match["kind"], size, names, match["rest"]))
    return made


def _parameter(operations: Iterable[Operation], number: int) -> str:
    return next(one.name for one in operations if one.kind == "parameter" and one.rest.startswith(f"{number})"))


def _taken(operations: Sequence[Operation], name: str, size: int) -> int:
    """Returns how many bytes of an array of that size the operations read."""
    names = {name}
    for one in operations:
        if one.kind == "bitcast" and names & {*one.operands}:
            names.add(one.name)
    users = [one for one in operations if names & {*one.operands} and one.name not in names]
    partly = all(one.kind in _PARTIAL and one.operands[0] in names for one in users)
    return min(size, sum(one.bytes for one in users)) if users and partly else size
