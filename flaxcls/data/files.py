"""The images below a folder. What is left out is listed: other files, what tools leave behind, what patterns select."""

import fnmatch
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from flaxcls.data.stored import SUFFIXES
from flaxcls.errors import InputError
from flaxcls.storage import printable

# The first bytes of the formats that are read and that can be told from text and other data. HEIC and JPEG XL are
# here too, so that they are reported as unreadable images, not passed over.
STARTS = re.compile(
    rb"\xff\xd8\xff"  # JPEG
    rb"|\x89PNG\r\n\x1a\n"
    rb"|GIF8[79]a"
    rb"|RIFF....WEBP"
    rb"|II[*+]\0|MM\0[*+]"  # TIFF, BigTIFF
    rb"|BM.{12}[\x0c(48@l|]\0\0\0"  # BMP: its second header has one of few lengths; text may begin with BM, too
    rb"|P[1-6Ff]\s+[#\d]|P7\n[#DHMTW]"  # PBM, PGM, PPM, PFM, PAM
    rb"|\xff\x4f\xff\x51|\0\0\0\x0cjP  \r\n\x87\n"  # JPEG 2000
    rb"|qoif|DDS |8BPS"
    rb"|....ftyp(avi[fs]|hei[cmsx]|hev[cmsx]|mif1|msf1)"  # AVIF, HEIC
    rb"|\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n",  # JPEG XL
    re.DOTALL,
)
START = 32  # bytes that `STARTS` needs at most
# In lower case. Names that begin with a dot are left out as well.
LEFT_BY_TOOLS = {
    *("__macosx", "__pycache__", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found"),
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"),
}


@dataclass(frozen=True)
class Below:
    """What lies below a folder: paths relative to it with slashes, in order.

    images: the files that are images, or have the name of one.
    others: the other files.
    hidden: files that are hidden, or that tools leave behind. No other field has them or their folders.
    unselected: files that the patterns leave out.
    folders: folders without those that hold `unselected` files.
    unused: patterns that match nothing.
    """

    images: list[str]
    others: list[str]
    hidden: list[str]
    unselected: list[str]
    folders: list[str]
    unused: list[str]


def find_below(folder: Path, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> Below:
    """Returns what lies below a folder. Links are followed. Raises InputError if a folder cannot be listed."""
    found = sorted(_walk(str(folder)), key=lambda entry: entry[0].split("/"))  # as `Path` sorts
    files = [path for path, is_folder in found if not is_folder]
    hidden = [path for path in files if hidden_part(path)]
    seen = [path for path in files if not hidden_part(path)]
    selected, unused = select(seen, include, exclude)
    chosen = set(selected)
    unselected = [path for path in seen if path not in chosen]
    with_unselected = {str(parent) for path in unselected for parent in PurePosixPath(path).parents}
    folders = [path for path, is_folder in found if is_folder and not hidden_part(path) and path not in with_unselected]
    images = [path for path in selected if is_image(f"{folder}/{path}")]
    taken = set(images)
    others = [path for path in selected if path not in taken]
    return Below(images, others, hidden, unselected, folders, unused)


def is_image(path: str) -> bool:
    """True if a file has the name of an image or begins like one. So a damaged image is one, too."""
    if path.lower().endswith(SUFFIXES):
        return True
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 (a Path costs as much as the reading)
            return STARTS.match(file.read(START)) is not None
    except OSError:
        return False


def hidden_part(path: str) -> str | None:
    """Returns the first part of a relative path that is hidden or left behind by a tool, or None."""
    return next((part for part in path.split("/") if part.startswith(".") or part.lower() in LEFT_BY_TOOLS), None)


def select(paths: Sequence[str], include: Sequence[str], exclude: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns the paths that match a pattern of `include`, if there is one, and none of `exclude`; and unused patterns.

    A pattern is compared, as by `fnmatch.fnmatchcase`, with the path, with each of its parts, and with the path of each
    folder above. So * matches slashes, too. **/ may also match nothing.
    """
    if not include and not exclude:
        return list(paths), []
    rules = {pattern: re.compile(_regex(pattern)) for pattern in (*include, *exclude)}
    used: set[str] = set()

    def matches(pattern: str, path: str) -> bool:
        parts = path.split("/")
        above = ("/".join(parts[:end]) for end in range(1, len(parts) + 1))
        found = any(map(rules[pattern].match, (*above, *parts[1:])))
        if found:
            used.add(pattern)
        return found

    selected = []
    for path in paths:
        included = [matches(pattern, path) for pattern in include]  # all are tried, to know which are used
        excluded = [matches(pattern, path) for pattern in exclude]
        if (any(included) or not include) and not any(excluded):
            selected.append(path)
    return selected, [pattern for pattern in rules if pattern not in used]


def _regex(pattern: str) -> str:
    pattern = pattern.removesuffix("/")
    return "|".join(map(fnmatch.translate, dict.fromkeys((pattern, pattern.replace("**/", "")))))


def _walk(folder: str, prefix: str = "", above: tuple[str, ...] = ()) -> Iterator[tuple[str, bool]]:
    """Yields the relative path of each file and folder, and True for a folder. A link back to a folder above ends."""
    here = os.path.realpath(folder)
    if here in above:
        return
    try:
        with os.scandir(folder) as entries:
            children = list(entries)
    except OSError as error:
        raise InputError(
            f"the folder {printable(folder)} cannot be listed: {error.strerror or error}. Make it readable, or move it "
            "away."
        ) from error
    for child in children:
        is_link = child.is_symlink()
        if Path(child.path).is_dir() if is_link else child.is_dir():  # of a link to itself, `DirEntry.is_dir` raises
            yield prefix + child.name, True
            yield from _walk(child.path, f"{prefix}{child.name}/", (*above, here))
        elif is_link or child.is_file():  # a link to nothing counts, so that it is reported
            yield prefix + child.name, False


def few(names: Iterable[str], most: int = 10) -> str:
    """Returns up to `most` names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(map(printable, names[:most])) + more


def describe_left_out(others: Sequence[str], hidden: Sequence[str]) -> list[str]:
    """Returns a line on the files that are no images, and one on hidden files, if there are any."""
    lines = []
    if others:
        lines.append(f"passed over, as they are no images ({len(others):,}): {few(others)}")
    if hidden:
        by_part = Counter(str(hidden_part(path)) for path in hidden)
        parts = (f"{part} ({count:,})" for part, count in by_part.most_common())
        lines.append(f"left out, as they are hidden or left behind by tools ({len(hidden):,}): {few(parts)}")
    return lines


def describe_unselected(count: int, total: int) -> str:
    """Returns a line on the files that the patterns leave out."""
    return f"data.include and data.exclude leave out {count:,} of {total:,} files"


def check_selection(place: Path, selected: int, left_out: int, unused: Sequence[str]) -> None:
    """Raises InputError if a pattern matches nothing, or if the patterns leave no file.

    Args:
      place: the folder or table of the files.
      selected: number of files that the patterns leave.
      left_out: number of the others.
      unused: patterns that match nothing.
    """
    if unused:
        raise InputError(
            f"data.include or data.exclude has {', '.join(map(repr, unused))}, which matches nothing in "
            f"{printable(place)}: a pattern is compared with the path of a file from there on, with its name and with "
            "its folders; correct it, or leave it out."
        )
    if left_out and not selected:
        raise InputError(
            f"data.include and data.exclude leave none of the {left_out:,} files in {printable(place)}: let some stay."
        )


# What is added to the name of an image for the picture that marks its parts, such as in cat_mask.png, cat_seg_2.png.
MASK = re.compile(
    r"(?P<image>.+)(?P<end>[ _.-](?:masks?|seg|segmentation|annotations?|gt|groundtruth|labels?))(?:[ _-]?\d+)?",
    re.IGNORECASE,
)


def describe_masks(images: Sequence[str]) -> str | None:
    """Returns a line that suggests a pattern if a tenth of the images seem to be masks of others, or None."""
    stems = {path.rpartition(".")[0] or path for path in images}
    matches = [match for stem in sorted(stems) if (match := MASK.fullmatch(stem)) and match["image"] in stems]
    if not matches or 10 * len(matches) < len(images):
        return None
    patterns = " ".join(f"'*{end}*'" for end in dict.fromkeys(match["end"] for match in matches))
    return (
        f"{len(matches):,} of {len(images):,} images have the name of another one and an ending, such as "
        f"{printable(matches[0][0])}: if they are masks, leave them out with --data.exclude {patterns}"
    )


def describe_twins(images: Sequence[str]) -> str | None:
    """Returns a line that suggests a pattern if a tenth of the images differ from another only in .jpg, .png and so on.

    Such pairs are usually a photo and its mask, which is no JPEG since its values must survive.
    """
    endings: dict[str, list[str]] = {}
    for path in sorted(images):
        stem, dot, ending = path.rpartition(".")
        if dot:
            endings.setdefault(stem, []).append(f".{ending}")
    twins = {stem: found for stem, found in endings.items() if len(found) > 1}
    count = sum(len(found) - 1 for found in twins.values())
    if not twins or 10 * count < len(images):
        return None
    stem, (one, *_, other) = next(iter(twins.items()))
    if other.lower() in (".jpg", ".jpeg"):
        one, other = other, one
    return (
        f"{count:,} of {len(images):,} images have the name of another one with another ending, such as "
        f"{printable(stem + other)} beside {one}: if they are masks or copies, leave them out with --data.exclude "
        f"'*{other}'"
    )
