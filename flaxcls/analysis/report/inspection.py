"""The page of an inspection: one self-contained HTML file on a data set, in the look of the report."""

from flaxcls.analysis.gallery import Gallery
from flaxcls.analysis.report.page import render_template
from flaxcls.data import Dataset
from flaxcls.data.inspection import (
    UNREADABLE,
    Inspection,
    describe_copies,
    describe_kinds,
    describe_memory,
    describe_preparation,
    describe_sizes,
    warn_of_memory,
)


def render_inspection(dataset: Dataset, inspection: Inspection, gallery: Gallery, *, draws: int) -> str:
    """Returns the HTML of a page on a data set, which loads nothing.

    Args:
      dataset: the data set.
      inspection: its facts.
      gallery: its pictures.
      draws: number of random draws of the augmentation that are shown.
    """
    facts = [
        ("source", inspection.source),
        *((part, f"{count:,}, {where}") for part, (count, where) in inspection.origins.items()),
        ("sizes", describe_sizes(inspection)),
        ("channels and depth", describe_kinds(inspection)),
        ("brought to size", describe_preparation(inspection)),
        ("copies", describe_copies(inspection.copies).removeprefix("exact copies: ")),
        ("memory", describe_memory(inspection.memory).removeprefix("memory: ")),
    ]
    return render_template(
        "inspection.html",
        title=f"Inspection of {inspection.name}",
        described=dataset.described,
        inspection=inspection,
        facts=facts,
        warning=warn_of_memory(inspection.memory),
        sizes=list(inspection.sizes.items()),
        class_names=dataset.class_names,
        counts=dataset.class_counts,
        gallery=gallery,
        on_unreadable=UNREADABLE[inspection.on_unreadable],
        draws=draws,
        copies_line=describe_copies(inspection.copies).capitalize(),
        pairs_found=len(inspection.copies.pairs) if inspection.copies else 0,
        headers_only=not inspection.memory.in_memory and inspection.on_unreadable != "skip",
    )
