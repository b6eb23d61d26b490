"""The long run: thousands of cases of each kind, in processes that may hang, crash or run out of memory.

    python -m fuzz [KIND ...] [--cases 20000] [--first 0] [--jobs N] [--save FOLDER]
    python -m fuzz KIND --seed N [--save FOLDER]

from the folder `tests`. Counts and times are printed for each kind; of each fault some inputs are saved, with a text
that tells what came. `--seed` runs one case in this process, so that its traceback can be seen.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import resource
import selectors
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
import traceback
import warnings
from collections import Counter, defaultdict
from pathlib import Path

from fuzz import KINDS
from fuzz.law import Ending, TooSlowError, case_of, examine, lay

LIMIT_S = 30.0  # of one case
DEAD_S = 3 * LIMIT_S  # without a word from a process: it hangs in a library
MORE_MEMORY = 4 << 30  # bytes of address space that cases may take beyond what the process has at its start
LARGEST_FILE = 1 << 30
PER_PROCESS = 2000  # cases until a process is replaced
SAVED = 3  # inputs of each fault


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m fuzz")
    parser.add_argument("kinds", nargs="*", choices=[*KINDS, []], default=[], metavar="KIND")
    parser.add_argument("--cases", type=int, default=int(os.environ.get("FUZZ_CASES", "20000")))
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="run one case here, and show what came")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--save", type=Path, default=Path("build/fuzz"), help="folder for inputs that broke the law")
    parser.add_argument("--worker", nargs=2, type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    names = given.kinds or list(KINDS)
    if given.worker:
        _work(names[0], *given.worker)
    elif given.seed is not None:
        sys.exit(_one(names[0], given.seed, given.save))
    else:
        print(f"{given.cases} cases of each kind from seed {given.first}, {given.jobs} at a time")
        broken = [name for name in names if _long(name, given)]
        sys.exit(bool(broken))


def _work(name: str, first: int, end: int) -> None:
    """Run the cases of some seeds, and print a line before and after each."""
    kind, out = KINDS[name], os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print
    _strict()
    with tempfile.TemporaryDirectory(prefix="geood-fuzz-") as folder:
        stock = kind.stock(Path(folder))
        with getattr(kind, "around", contextlib.nullcontext)():
            for seed in range(first, end):
                print(json.dumps([seed]), file=out, flush=True)
                ending = examine(name, kind, seed, stock=stock, folder=Path(folder), limit_s=LIMIT_S)
                print(json.dumps(ending), file=out, flush=True)
                if ending.outcome == TooSlowError.__name__:
                    os._exit(1)  # a thread may go on for ever
                if seed == first:  # libraries are loaded
                    _bounded()


def _strict() -> None:
    """Make errors of warnings, as the suite does, but for those that the suite lets pass."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    for line in project["tool"]["pytest"]["ini_options"]["filterwarnings"]:
        action, _, rest = line.partition(":")
        message, _, rest = rest.partition(":")
        category, _, module = rest.partition(":")
        owner, _, last = category.rpartition(".")
        kind = getattr(importlib.import_module(owner or "builtins"), last) if last else Warning
        warnings.filterwarnings(action, message=message, category=kind, module=module)


def _bounded() -> None:
    """Bound the memory of this process and the size of files."""
    pages = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (pages + MORE_MEMORY, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE, resource.RLIM_INFINITY))


def _long(name: str, given: argparse.Namespace) -> bool:
    """Run all cases of a kind, print how they ended, and return whether one broke the law."""
    start, endings, lock = time.monotonic(), [], threading.Lock()
    step, last = min(PER_PROCESS, -(-given.cases // given.jobs)), given.first + given.cases
    seeds = [(first, min(first + step, last)) for first in range(given.first, last, step)]

    def job() -> None:
        while True:
            with lock:
                if not seeds:
                    return
                first, end = seeds.pop(0)
            while first < end:
                done = _process(name, first, end)
                endings.extend(done)
                first = done[-1].seed + 1

    jobs = [threading.Thread(target=job) for _ in range(given.jobs)]
    for thread in jobs:
        thread.start()
    for thread in jobs:
        thread.join()
    counts = Counter(ending.outcome if not ending.fault else "FAULT" for ending in endings)
    told = ", ".join(f"{count} {outcome}" for outcome, count in counts.most_common())
    print(f"{name:<14} {len(endings)} cases in {time.monotonic() - start:.0f} s: {told}", flush=True)
    _tell_faults(name, endings, given.save)
    return bool(counts["FAULT"])


def _process(name: str, first: int, end: int) -> list[Ending]:
    """Run seeds in a process of its own; the last ending is that of the case which ended the process, if one did."""
    command = [sys.executable, "-m", "fuzz", name, "--worker", str(first), str(end)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    endings, begun = [], first
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env) as process:
        watched = selectors.DefaultSelector()
        watched.register(process.stdout, selectors.EVENT_READ)
        data, fault = b"", None
        while fault is None:
            if not watched.select(timeout=DEAD_S):
                process.kill()
                fault = f"hangs in a library: no word for {DEAD_S:g} s"
                break
            piece = os.read(process.stdout.fileno(), 1 << 16)
            if not piece:
                break
            *lines, data = (data + piece).split(b"\n")
            for line in lines:
                told = json.loads(line)
                begun = told[0]
                if len(told) > 1:
                    endings.append(Ending(*told))
    if not endings or endings[-1].seed < begun:
        endings.append(Ending(begun, "ended", fault or f"the process ended with {process.returncode}", 0.0))
    return endings


def _tell_faults(name: str, endings: list[Ending], folder: Path) -> None:
    """Print each fault with its number of cases and first seeds, and save some of their inputs."""
    kinds: dict[str, list[Ending]] = defaultdict(list)
    for ending in endings:
        if ending.fault:
            kinds[ending.fault.partition(": ")[0]].append(ending)
    if not kinds:
        return
    with tempfile.TemporaryDirectory() as temporary:
        stock = KINDS[name].stock(Path(temporary))
        for number, (what, those) in enumerate(sorted(kinds.items(), key=lambda item: -len(item[1])), 1):
            seeds = ", ".join(str(ending.seed) for ending in those[:SAVED])
            print(f"  {len(those):>6} x {what}, seeds {seeds}\n           {those[0].fault[:300]!r}", flush=True)
            for ending in those[:SAVED]:
                box = folder / name / f"{number:02}_seed_{ending.seed}"
                if not box.exists():
                    case = case_of(name, KINDS[name], ending.seed, stock)
                    lay(case, box)
                    (box / "options.json").write_text(json.dumps(case.options), encoding="utf-8")
                    (box / "fault.txt").write_text(f"{ending.fault}\n", "utf-8", "backslashreplace")
    print(f"  inputs in {folder / name}", flush=True)


def _one(name: str, seed: int, folder: Path) -> int:
    """Run one case here, with the traceback of what came out, and keep its input."""
    kind = KINDS[name]
    _strict()
    with tempfile.TemporaryDirectory() as temporary:
        stock = kind.stock(Path(temporary))
        case = case_of(name, kind, seed, stock)
        box = folder / name / f"seed_{seed}"
        if not box.exists():
            lay(case, box)
        print(f"input in {box}, options {json.dumps(case.options)}")

        class Loud:
            """The kind, whose errors are printed on their way."""

            kept, around = getattr(kind, "kept", None), None

            @staticmethod
            def case(*_: object) -> object:
                return case

            @staticmethod
            def run(*arguments: object) -> object:
                try:
                    return kind.run(*arguments)
                except BaseException:
                    traceback.print_exc()
                    raise

        if Loud.kept is None:
            Loud.kept = staticmethod(lambda _: False)
        with getattr(kind, "around", contextlib.nullcontext)():
            ending = examine(name, Loud, seed, stock=stock, folder=Path(temporary), limit_s=LIMIT_S)
    print(ending)
    return bool(ending.fault)


if __name__ == "__main__":
    main()
