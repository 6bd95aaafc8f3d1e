"""The end of a run of the cardiac study: its tables and its page."""

from __future__ import annotations

from collections.abc import Sequence

from cardiac.report.page import write_page
from study.report import conclusion
from study.report.tables import Row
from study.run.outputs import Outputs


def conclude(outputs: Outputs, published: Sequence[Row] = ()) -> None:
    """Write scores, tables, curves and the page of every training that is done in a folder, and print the table."""
    conclusion.conclude(outputs, published, page=write_page)
