"""Processor time of the tests, file by file: what is told at the end of a run about the suite's budget.

The suite is to end within five minutes on two cores, so it may take some 450 s of one core. Time is that of the
processes that run the tests and of those that they started and saw end, so it is nearly the same on a busy machine. A
run of everything tells when it is over the budget; `--cpu` lists the slowest files and tests of any run.
"""

import gc
import os
import sys
from collections import Counter
from pathlib import Path

import pytest

BUDGET_S = 450.0  # of the whole suite
FILE_S = 40.0  # of one file, which one process runs from its beginning to its end
SHOWN = 25
LONGEST = ("test_trainer.py", "test_faults.py", "test_pipeline.py", "test_end_to_end.py")  # files to begin with
TOGETHER = (  # files of one process, as they need that of `support.apart`, which takes long to load
    *LONGEST,
    "test_tuning.py",
    "test_scene_crops.py",
    "test_docstrings.py",
)

_so_far = 0.0
_of_files: Counter[str] = Counter()
_of_tests: Counter[str] = Counter()


def slow(*cases):
    """Return further cases of a law that others hold, marked as slow; a tuple is a case of several values."""
    return [pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow) for case in cases]


def pytest_addoption(parser):
    """Add `--cpu`."""
    parser.addoption("--cpu", action="store_true", help="list the files and tests that take most processor time")


def pytest_collection_modifyitems(items):
    """Begin with the longest files, lest one process runs one of them while others have nothing left to do."""
    rank = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


def pytest_collection_finish():
    """Begin to count, when tests are imported; what is loaded by then stays, and is not to be searched for garbage."""
    global _so_far
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)  # half a million objects come and go with imports; few make circles
    _so_far = _used()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Hand out whole files, as `--dist loadfile` does, and those that belong together to one process."""
    from xdist.scheduler import LoadFileScheduling

    class WholeFiles(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            return TOGETHER[0] if Path(file).name in TOGETHER else file

    return WholeFiles(config, log) if config.getoption("dist") == "loadfile" else None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    """Note in each report (of a test's set-up, call or tear-down) what was used since the last."""
    global _so_far
    report = yield
    now = _used()
    report.cpu_s, _so_far = now - _so_far, now
    return report


def pytest_runtest_logreport(report):
    """Add it up, where reports of all processes arrive."""
    _of_files[report.nodeid.split("::")[0]] += getattr(report, "cpu_s", 0.0)
    _of_tests[report.nodeid] += getattr(report, "cpu_s", 0.0)


def pytest_terminal_summary(terminalreporter, config):
    """Tell what took longer than it may, or with `--cpu` what took longest."""
    asked, total = config.getoption("--cpu"), sum(_of_files.values())
    slow = [(name, spent) for name, spent in _of_files.most_common(SHOWN) if asked or spent > FILE_S]
    if asked or slow or total > BUDGET_S:
        terminalreporter.section("processor time")
        terminalreporter.line(f"{total:8.1f} s in all, of {BUDGET_S:g} s for the whole suite")
        for name, spent in slow:
            terminalreporter.line(f"{spent:8.1f} s {name}" + (f"  (more than {FILE_S:g} s)" if spent > FILE_S else ""))
        for name, spent in _of_tests.most_common(SHOWN) if asked else ():
            terminalreporter.line(f"{spent:8.1f} s {name}")


def _used() -> float:
    """Return the seconds used by this process, by its children that ended, and by those of `support.apart`."""
    apart = sys.modules.get("support.apart")
    return sum(os.times()[:4]) + (apart.used() if apart else 0.0)
