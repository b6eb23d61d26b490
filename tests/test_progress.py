"""Progress counts to its end, says so in plain lines where no terminal is, and repeats nothing."""

import io
import logging
from types import SimpleNamespace

from geood.progress import Progress, clock, tracked


def lines(caplog):
    return [r.getMessage() for r in caplog.records]


def test_the_end_is_said_once_with_its_figures(caplog):
    with caplog.at_level(logging.INFO, "geood"), Progress("work", 3) as progress:
        for i in range(3):
            progress.advance(loss=0.123456, crops=i)
    [line] = lines(caplog)
    assert line.startswith("work 3/3") and "loss 0.1235" in line and "crops 2" in line


def test_work_that_stops_early_is_said_too_and_work_done_before_is_not(caplog):
    with caplog.at_level(logging.INFO, "geood"):
        with Progress("early", 9) as progress:
            progress.advance(4)
        with Progress("finished before", 5, start=5):
            pass
    [line] = lines(caplog)
    assert line.startswith("early 4/9") and "nan" not in line


def test_time_left_counts_this_run_only(caplog):
    with caplog.at_level(logging.INFO, "geood"), Progress("resumed", 100, start=90, every_s=0) as progress:
        progress.advance(5)
        progress.advance(5)
    assert lines(caplog)[-1].startswith("resumed 100/100") and " 0:00:00 left" in lines(caplog)[-1]


def test_progress_needs_no_stderr_and_takes_titles_as_they_are(caplog, monkeypatch):
    monkeypatch.setattr("sys.stderr", None)
    with caplog.at_level(logging.INFO, "geood"), Progress("[/red]\x1b[2J.tif", 1) as progress:
        progress.advance()
    assert lines(caplog)[0].startswith("[/red]\\x1b[2J.tif 1/1")


def test_a_bar_takes_brackets_in_a_title_as_they_are(monkeypatch):
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stderr", terminal)
    with Progress("[/red].tif", 1) as progress:
        progress.advance(loss="[/b]")
    assert "[/red].tif" in terminal.getvalue()


def test_what_is_over_at_once_is_not_spoken_of(caplog, monkeypatch):
    with caplog.at_level(logging.INFO, "geood"):
        assert list(tracked("brief", "abc", 3)) == list("abc")
        assert not lines(caplog)
        now = iter(range(0, 1000, 20))
        monkeypatch.setattr("geood.progress.time", SimpleNamespace(monotonic=lambda: next(now)))
        assert list(tracked("long", "abc", 3)) == list("abc")
    assert lines(caplog)[0].startswith("long 1/3") and lines(caplog)[-1].startswith("long 3/3")


def test_durations_are_told_as_a_clock_does():
    assert [clock(s) for s in (0, 9.6, 69011, -1, float("nan"))] == [
        "0:00:00",
        "0:00:10",
        "19:10:11",
        "0:00:00",
        "?:??:??",
    ]
