"""A person's verdicts on a map: what they say of it, and what the next training learns from them.

`reading` takes reviewed files, also those that QGIS has open, and several reviewers together. `ground` tells the area
searched, `intervals` what a count is worth, and `auditing` puts them together. `lessons` turns false alarms into
labelled ground of the next training and real things into a set to measure it on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from geood._lazy import lazy_exports

if TYPE_CHECKING:
    from geood.review.auditing import Audit, audit
    from geood.review.lessons import Feedback, feedback
    from geood.review.reading import ReviewNames, misspelt_lines

__all__ = ["Audit", "Feedback", "ReviewNames", "audit", "feedback", "misspelt_lines"]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "Audit": "auditing",
        "Feedback": "lessons",
        "ReviewNames": "reading",
        "audit": "auditing",
        "feedback": "lessons",
        "misspelt_lines": "reading",
    },
)
