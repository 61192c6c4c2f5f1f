"""Chooses the examples that are held out of train. Copies of an image, and images of one group, stay in one split."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from flaxcls.data.dataset import Split
from flaxcls.data.table import ImageFile


def hash_split(
    labels: np.ndarray, hashes: Sequence[bytes], fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns sorted indices (rest, held out); of each class, about the share `fraction` of its examples is held out.

    The seed and the hash of an example decide, not its name or position. So equal hashes are never separated, and an
    example keeps its side when others are added. A class with two or more hashes has at least one on each side;
    a hash with more than half of a class is not held out.
    """
    members: dict[bytes, list[int]] = {}
    for index, digest in enumerate(hashes):
        members.setdefault(digest, []).append(index)
    by_class: dict[int, list[bytes]] = {}
    for digest, indices in members.items():  # copies with different labels go with the first label
        by_class.setdefault(int(labels[indices[0]]), []).append(digest)
    held_out = np.zeros(len(labels), bool)
    for digests in by_class.values():
        total = sum(len(members[digest]) for digest in digests)
        wanted = fraction * total
        # one with more than half of the class comes last, so that it is not held out
        digests.sort(
            key=lambda digest: (2 * len(members[digest]) > total, hashlib.sha256(b"%d " % seed + digest).digest())
        )
        taken = 0
        for number, digest in enumerate(digests[:-1]):
            if number and taken + len(members[digest]) / 2 > wanted:
                break
            held_out[members[digest]] = True
            taken += len(members[digest])
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def explain_share(labels: np.ndarray, hashes: Sequence[bytes], count: int, fraction: float, *, in_groups: bool) -> str:
    """Returns a text on the share that was asked for if `hash_split` holds out another one, not by rounding alone.

    Args:
      labels: i32[n], of all examples.
      hashes: of all examples.
      count: number of examples that are held out.
      fraction: share of them that was asked for.
      in_groups: True if a hash may stand for a group.
    """
    hashes_of: dict[int, set[bytes]] = {}
    for label, digest in zip(labels.tolist(), hashes, strict=True):
        hashes_of.setdefault(label, set()).add(digest)
    if abs(count - fraction * len(labels)) <= len(hashes_of) / 2:  # as each class is rounded
        return ""
    single = sum(len(of_class) == 1 for of_class in hashes_of.values())
    reasons = []
    if len(set(hashes)) < len(hashes) and single < len(hashes_of):
        reasons.append(f"{'groups and ' * in_groups}copies stay together")
    if single:
        have = f"{single:,} of {len(hashes_of):,} classes {'has' if single == 1 else 'have'} no two different"
        reasons.append(f"{have} {'groups' if in_groups else 'images'} to be parted")
    return f"{100 * fraction:.3g} % were asked for, but {', and '.join(reasons) or 'each class gives at least one'}"


def hash_units(files: Sequence[ImageFile], digests: Sequence[bytes]) -> dict[str, bytes]:
    """Returns a hash of each example, by its name; examples that must stay together have the same.

    These are copies, which have the same content, and the examples of a group. Groups that share a copy are one group.
    Without groups, it is the digest.

    digests: SHA-256 of the content of each example.
    """
    groups = [
        digest if file.group is None else hashlib.sha256(b"group " + file.group.encode()).digest()
        for file, digest in zip(files, digests, strict=True)
    ]
    hashes, before = groups, None
    while hashes != before:  # the least hash spreads over all that must stay together
        before = hashes
        for together in (digests, groups):
            least: dict[bytes, bytes] = {}
            for key, value in zip(together, hashes, strict=True):
                least[key] = min(value, least.get(key, value))
            hashes = [least[key] for key in together]
    return dict(zip((file.name for file in files), hashes, strict=True))


def rarest_labels(labels: np.ndarray, hashes: Sequence[bytes]) -> np.ndarray:
    """Returns i32[n]: for each example, the rarest label among the examples with its hash.

    Split by these, rare classes get their share of groups that contain several classes.
    """
    counts = np.bincount(labels)
    rarest: dict[bytes, int] = {}
    for digest, label in zip(hashes, labels.tolist(), strict=True):
        rarest[digest] = min(label, rarest.get(digest, label), key=lambda label: (counts[label], label))
    return np.array([rarest[digest] for digest in hashes], labels.dtype)


def describe_absent(parts: Mapping[str, Split], class_names: Sequence[str]) -> Iterator[str]:
    """Yields a note for each split in which classes have no example, as groups stay together."""
    for part, split in parts.items():
        counts = np.bincount(split.labels, minlength=len(class_names))
        absent = [name for name, count in zip(class_names, counts, strict=True) if not count]
        if absent:
            yield (
                f"{part} has no example of {', '.join(absent[:10])}{', ...' * (len(absent) > 10)}, as groups stay "
                "together: another --data.split-seed or fraction may give it some"
            )
