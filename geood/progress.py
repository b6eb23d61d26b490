"""Progress display: a live bar on a terminal, periodic log lines elsewhere.

All long jobs use the same class, so that their logs look alike. It knows nothing of what is counted.
"""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from geood.errors import printable

T = TypeVar("T")
log = logging.getLogger("geood")


class Progress:
    """Progress display of a job of `total` steps; use it as a context manager and call `advance`.

    On a terminal it is a bar with elapsed and remaining time; elsewhere a log line with the same content every
    `every_s` seconds. Figures given to `advance` (losses, rates) are shown after the count. A `brief` job usually ends
    within `every_s`: its bar is removed at the end, and it writes no log lines unless it takes longer.
    """

    def __init__(self, title: str, total: int, *, start: int = 0, every_s: float = 10.0, brief: bool = False) -> None:
        self.title, self.total, self.done, self.start = printable(title), total, start, start
        self.every_s, self.brief = every_s, brief
        self._began = self._said = time.monotonic()
        self._bar: RichProgress | None = None
        if sys.stderr is not None and sys.stderr.isatty():  # None: a program without a terminal, as QGIS on Windows
            self._bar = RichProgress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[figures]}", markup=False),
                console=Console(stderr=True),
                transient=brief,
            )
            self._task = self._bar.add_task(self.title, total=total, completed=start, figures="")

    def __enter__(self) -> Progress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()
        elif kind is None and self.done not in (self._last_said, self.start) and not self._over_at_once:
            self._say("")

    _last_said = -1

    def advance(self, steps: int = 1, **figures: Any) -> None:
        """Advance by `steps` and show the figures (floats with 4 significant digits)."""
        self.done += steps
        text = "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in figures.items())
        if self._bar:
            self._bar.update(self._task, completed=self.done, figures=text)
        elif time.monotonic() - self._said >= self.every_s or (self.done >= self.total and not self._over_at_once):
            self._say(text)

    @property
    def _over_at_once(self) -> bool:
        return self.brief and time.monotonic() - self._began < self.every_s

    def _say(self, text: str) -> None:
        now = time.monotonic()
        self._said, self._last_said = now, self.done
        rate = (self.done - self.start) / max(now - self._began, 1e-9)
        left = (self.total - self.done) / rate if rate > 0 else float("nan")
        log.info(
            "%s %d/%d, %s, %s left  %s", self.title, self.done, self.total, clock(now - self._began), clock(left), text
        )


def clock(seconds: float) -> str:
    """Return a duration as h:mm:ss, rounded to seconds; ?:??:?? for one that is not known."""
    if not math.isfinite(seconds):
        return "?:??:??"
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def tracked(title: str, steps: Iterable[T], total: int) -> Iterator[T]:
    """Iterate over the steps of a usually brief job and show its progress."""
    with Progress(title, total, brief=True) as progress:
        for step in steps:
            yield step
            progress.advance()
