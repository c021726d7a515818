"""The report: one self-contained HTML file about one detector, or two side by side.

It needs no network and no script to be read: charts are SVG made here, pictures are part of the
file. A little JavaScript adds the choice of a class.
"""

from rankdet.eval.report.page import write_report
from rankdet.eval.report.runs import RunForReport

__all__ = ["RunForReport", "write_report"]
