"""What a run keeps of images in files: examples.parquet, the list of them, and replaced.jsonl, those not read."""

import json
from collections.abc import Callable
from pathlib import Path

import jax

from flaxcls.data import Dataset
from flaxcls.data.images import Unread
from flaxcls.run.multihost.sync import is_first
from flaxcls.storage import append, children, write_whole

EXAMPLES, REPLACED = "examples.parquet", "replaced"
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

    Each is kept and said once in a run, by the process that read it; each process has a file of its own, because
    nothing can be appended to a file in a bucket. From the 11th on, they are only counted.
    """
    number = jax.process_index()
    path = workdir / (f"{REPLACED}-{number}.jsonl" if number else f"{REPLACED}.jsonl")
    known = {(line["split"], line["name"]) for line in _read_lines(path)}
    seen = dict.fromkeys(dataset.splits, 0)

    def record(say: Callable[[str], None]) -> None:
        lines = []
        for part, split in dataset.splits.items():
            if len(split.unread) == seen[part]:
                continue
            names = split.ids
            for index, unread in list(split.unread.items())[seen[part] :]:
                seen[part] += 1
                if (part, names[index]) in known:
                    continue
                known.add((part, names[index]))
                instead = names[unread.instead] if part == "train" and unread.instead is not None else None
                lines.append({"split": part, "name": names[index], "reason": unread.reason, "instead": instead})
                if len(known) <= SHOWN:
                    say(_describe(part, names[index], unread, instead))
                elif len(known) == SHOWN + 1:
                    say(f"more examples cannot be read: {path.name} in the run directory lists them")
        if lines:
            append(path, "".join(json.dumps(line) + "\n" for line in lines))

    return record


def count_replaced(workdir: Path) -> int:
    """Returns the number of examples that could not be read, over all processes and sessions of the run."""
    files = [path for path in children(workdir) if path.name.startswith(REPLACED) and path.suffix == ".jsonl"]
    return len({(line["split"], line["name"]) for path in files for line in _read_lines(path)})


def _describe(part: str, name: str, unread: Unread, instead: str | None) -> str:
    done = f"is replaced by {instead}" if instead else "is left out of the evaluation"
    return f"{name} of {part} {done}: {unread.reason}"


def _read_lines(path: Path) -> list[dict[str, str]]:
    texts = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(text) for text in texts if text.endswith("\n")]  # a crash may have cut the last one short
