"""What a run keeps of images in files: examples.parquet, the list of them, and unread.jsonl, those not read."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from flaxcls.data import Dataset
from flaxcls.run.multihost.sync import is_first
from flaxcls.storage import append, children, write_whole

EXAMPLES, UNREAD = "examples.parquet", "unread"
SHOWN = 10  # examples that are named in the log


def read_listing(workdir: Path) -> bytes | None:
    """Returns the list of the run's examples, or None if there is none, as in runs of earlier versions."""
    path = workdir / EXAMPLES
    return path.read_bytes() if path.is_file() else None


def keep_listing(workdir: Path, dataset: Dataset) -> None:
    """Writes the list of the run's examples, on the first process, if the run directory does not have it yet."""
    if dataset.listing is not None and is_first() and read_listing(workdir) != dataset.listing:
        write_whole(workdir / EXAMPLES, dataset.listing)


def make_recorder(workdir: Path, dataset: Dataset) -> Callable[[Callable[[str], None]], None]:
    """Returns a function that keeps and says which examples have turned out not to be readable since its last call.

    Each is kept and said once in a run, by the process that read it, and again if another image takes its place. Each
    process has a file of its own, because nothing can be appended to a file in a bucket. From the 11th on, they are
    only counted.
    """
    number = jax.process_index()
    path = workdir / (f"{UNREAD}-{number}.jsonl" if number else f"{UNREAD}.jsonl")
    earlier, damaged = _read_lines(path)
    known = {_key(line) for line in earlier}
    unsaid = [f"{path.name}: lines that a crash has cut short are passed over ({damaged:,})"] if damaged else []
    seen = dict.fromkeys(dataset.splits, 0)

    def record(say: Callable[[str], None]) -> None:
        while unsaid:
            say(unsaid.pop())
        lines = []
        for part, split in dataset.splits.items():
            if len(split.unread) == seen[part]:
                continue
            names = split.ids
            for index, unread in list(split.unread.items())[seen[part] :]:
                seen[part] += 1
                instead = names[unread.instead] if part == "train" and unread.instead is not None else None
                line = {
                    "split": part,
                    "name": names[index],
                    "reason": unread.reason,
                    "done": "replaced" if instead else "left out",
                    "replaced_by": instead,
                }
                if _key(line) in known:
                    continue
                known.add(_key(line))
                lines.append(line)
                if len(known) <= SHOWN:
                    say(_describe(line))
                elif len(known) == SHOWN + 1:
                    say(f"more examples cannot be read: {path.name} in the run directory lists them")
        if lines:
            append(path, "".join(json.dumps(line) + "\n" for line in lines))

    return record


def count_unread(workdir: Path) -> dict[str, int]:
    """Returns the number of examples of each split that could not be read, over all processes and sessions of the run.

    A split whose examples could all be read is left out.
    """
    files = [path for path in children(workdir) if path.name.startswith(UNREAD) and path.suffix == ".jsonl"]
    examples = {(line["split"], line["name"]) for path in files for line in _read_lines(path)[0]}
    counts = Counter(split for split, _ in examples)
    return {split: counts[split] for split in ("train", "validation", "test") if counts[split]}


def _describe(line: dict[str, Any]) -> str:
    done = f"is replaced by {line['replaced_by']}" if line["replaced_by"] else "is left out"
    return f"{line['name']} of {line['split']} {done}: {line['reason']}"


def _key(line: dict[str, Any]) -> tuple[str, ...]:
    return line["split"], line["name"], str(line["replaced_by"])


def _read_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Returns the lines of a file that `make_recorder` writes, and the number of others, such as a crash leaves."""
    lines, damaged = [], 0
    for text in path.read_bytes().decode(errors="replace").splitlines() if path.exists() else ():
        try:
            line = json.loads(text)
            _key(line)
            lines.append(line)
        except (ValueError, KeyError, TypeError):
            damaged += 1
    return lines, damaged
