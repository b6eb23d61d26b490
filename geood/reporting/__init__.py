"""Report of runs, maps and evaluations: one page of HTML that needs no network, its pictures and its plots.

`runs`, `maps` and `evaluations` read what is there, each as plain values; `pictures`, `gallery` and `charts` draw them;
`page` puts all into the templates. What is not there is said to be absent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from geood._lazy import lazy_exports

if TYPE_CHECKING:
    from geood.reporting.charts import draw_curves
    from geood.reporting.page import report
    from geood.reporting.runs import run_lines

__all__ = ["draw_curves", "report", "run_lines"]

__getattr__, __dir__ = lazy_exports(__name__, {"draw_curves": "charts", "report": "page", "run_lines": "runs"})
