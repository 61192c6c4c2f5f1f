"""A page that shows how well a run has learned, or compares several runs."""

from flaxcls.analysis.report.content import RunContent, read_run
from flaxcls.analysis.report.page import render

__all__ = ["RunContent", "read_run", "render"]
