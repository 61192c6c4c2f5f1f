"""One page that shows what a run has learned, or what sets several runs apart."""

from flaxcls.analysis.report.content import RunContent, read_run
from flaxcls.analysis.report.page import render

__all__ = ["RunContent", "read_run", "render"]
