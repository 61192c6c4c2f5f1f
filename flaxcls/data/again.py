"""The images of a run that goes on: those of its list, as they are now."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from flaxcls.config import DataConfig
from flaxcls.data.contents import Digest, digest_files, number_contents
from flaxcls.data.dataset import Dataset, from_splits
from flaxcls.data.folder import arrange_files, describe_source, make_splits, members_of, number_labels
from flaxcls.data.found import base_of, find_assignments
from flaxcls.data.listed import (
    Changes,
    Listed,
    check_there,
    compare,
    describe_changes,
    has_options,
    is_same_set,
    unpack,
)
from flaxcls.storage import printable

ADVICE_FOR_RUN = (
    "Put them back or repair them, or go on with --resume --data.unreadable replace, which takes the next image of the "
    "class in place of each."
)


def load_listed(config: DataConfig, listing: bytes) -> Dataset | None:
    """Returns the examples of a list in their splits, and notes on what has changed since it was made.

    What has come since is not used, and what is missing cannot be read. None: the list was made with other options.

    Raises InputError if half of the files that are listed are not there, or are others, or if some may not be missing.
    """
    listed = unpack(listing, partial(base_of, config))
    if not has_options(listed, config):
        return None
    files, heads = listed.files, listed.heads
    digests = digest_files(files, wholly=lambda file: False)
    changes = _changes(config, listed, digests)
    advice = None if config.unreadable == "replace" else ADVICE_FOR_RUN
    check_there(listed, changes, printable(str(config.dir)), advice)
    labels, members = number_labels(files, listed.class_names), members_of(files)
    found = arrange_files(files, heads, labels, members, config, advice=ADVICE_FOR_RUN, prepared=listed.preparation)
    parts = make_splits(found, files, heads, labels, number_contents(files, digests), members)
    lines = list(describe_changes(changes))
    dataset = from_splits(
        parts["train"],
        parts.get("validation"),
        parts["test"],
        class_names=listed.class_names,
        name=printable(Path(str(config.dir)).expanduser().resolve().stem),
        notes=[*lines, *found.notes],
        preparation=listed.preparation,
        fingerprint=listed.fingerprint,
        listing=listing,
        source=describe_source(config),
        origins=dict.fromkeys(parts, "as when the run began"),
    )
    return replace(dataset, changes=lines)


def is_listed(config: DataConfig, listing: bytes) -> bool:
    """True if a folder or a table, perhaps moved, is the data set of a list.

    It names the listed images and no others, and a table gives them no other labels and splits. If `config.unreadable`
    is "replace", less than half of the files may be missing or damaged.
    """
    listed = unpack(listing, partial(base_of, config))
    changes = _changes(config, listed, digest_files(listed.files, wholly=lambda file: False))
    if changes.come or changes.dropped or changes.reassigned:
        return False
    return is_same_set(listed, changes) if config.unreadable == "replace" else not (changes.missing or changes.changed)


def _changes(config: DataConfig, listed: Listed, digests: Sequence[Digest]) -> Changes:
    now = [digest.ends if digest.is_readable else None for digest in digests]
    return compare(listed, now, find_assignments(config))
