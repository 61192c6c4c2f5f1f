"""The page of an inspection: one self-contained HTML file on a data set, in the look of the report."""

import re
from collections.abc import Sequence

from markupsafe import Markup, escape

from flaxcls.analysis.gallery import Gallery
from flaxcls.analysis.report.page import ENVIRONMENT, render_template
from flaxcls.data import Dataset
from flaxcls.data.copies import describe_copies
from flaxcls.data.inspection import (
    UNREADABLE,
    UNUSABLE,
    Inspection,
    describe_kinds,
    describe_memory,
    describe_preparation,
    describe_sizes,
    warn_of_memory,
)

LISTED_SIZES = 5  # that the line on sizes names
LONG = 40  # characters of a name, above which its middle is left out where it is not needed
OPTION = re.compile(r"--[a-z]+(?:[-.][a-z]+)*|(?<![\w/.-])data\.[a-z]+(?:_[a-z]+)*")


def render_inspection(
    dataset: Dataset,
    inspection: Inspection,
    gallery: Gallery,
    *,
    mixing: Sequence[str] = (),
    columns: Sequence[str] = (),
) -> str:
    """Returns the HTML of a page on a data set, which loads nothing.

    Args:
      dataset: the data set.
      inspection: its facts.
      gallery: its pictures.
      mixing: those of mixup and CutMix that are on.
      columns: the columns of a table that name the files of each channel, if it has several.
    """
    facts = [
        ("source", inspection.source),
        *((part, f"{count:,}, {where}") for part, (count, where) in inspection.origins.items()),
        ("sizes (height x width)", describe_sizes(inspection, LISTED_SIZES)),
        ("channels and depth", describe_kinds(inspection)),
        ("brought to size", describe_preparation(inspection)),
        ("exact copies", describe_copies(inspection.copies).removeprefix("exact copies: ")),
        ("memory", describe_memory(inspection.memory).removeprefix("memory: ")),
    ]
    headers_only = not inspection.memory.in_memory and inspection.on_unreadable != "skip"
    headings = {
        "problems": "What training refuses" * bool(inspection.problems),
        "facts": "Facts",
        "classes": "Classes" * dataset.is_labelled,
        "sheet": "Contact sheet",
        "extremes": "Smallest, largest and most changed" * bool(gallery.extremes or gallery.not_shown),
        "copies": "Exact copies" * bool(gallery.copies),
        "unreadable": "Not readable" * bool(inspection.unreadable or headers_only),
        "unusable": "Readable, but no input of the model" * bool(inspection.unusable),
    }
    return render_template(
        "inspection.html",
        title=f"Inspection of {inspection.name}",
        headings={name: heading for name, heading in headings.items() if heading},
        described=dataset.described,
        inspection=inspection,
        facts=facts,
        warning=warn_of_memory(inspection.memory),
        sizes=list(inspection.sizes.items()) if len(inspection.sizes) > LISTED_SIZES else [],
        class_names=dataset.class_names,
        counts=dataset.class_counts,
        gallery=gallery,
        on_unreadable=UNREADABLE[inspection.on_unreadable],
        on_unusable=UNUSABLE,
        mixing=mixing,
        columns=columns if len(columns) > 1 else (),
        more_pairs=(len(inspection.copies.pairs) if inspection.copies else 0) - len(gallery.copies),
        headers_only=headers_only,
    )


def _mark_options(text: str) -> Markup:
    """Returns a text in which no option is broken."""
    found = str(escape(text))  # on Python 3.11, sub escapes what it puts into a Markup
    return Markup(OPTION.sub(r'<code class="option">\g<0></code>', found))


def _shorten(name: str) -> str:
    """Returns a name without its middle if it is long; word joiners (U+2060) keep it in one line."""
    head, tail = name[: LONG // 3], name[-(LONG - LONG // 3 - 1) :]
    return name if len(name) <= LONG else f"{head}\u2060…\u2060{tail}"


def _shorten_names(text: str) -> Markup:
    """Returns a text in which no option is broken and long names are shortened; a pointer shows the whole."""

    def mark(word: str) -> Markup:
        name = word.rstrip(",;:.)")
        if len(name) <= LONG:
            return _mark_options(word)
        return Markup('<span title="{}">{}</span>{}').format(name, _shorten(name), word[len(name) :])

    return Markup("").join(mark(word) for word in re.split(r"(\s+)", text))


def _break_names(name: str) -> Markup:
    """Returns a name that is broken behind its separators where that is possible."""
    return Markup("<wbr>").join(re.split(r"(?<=[/_])", name))


ENVIRONMENT.filters.update(
    mark_options=_mark_options, shorten=_shorten, shorten_names=_shorten_names, break_names=_break_names
)
