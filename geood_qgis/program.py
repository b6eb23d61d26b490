"""The program geood as a process of another environment: where it is, how it is run, followed and stopped.

Nothing here needs QGIS. QGIS lends its processes variables that lead Python, GDAL and PROJ to its own files, which are
of other versions than those of the other environment, so these are taken away. A run is stopped as Ctrl-C would stop
it, and keeps what it has finished; one that does not end is ended.
"""

from __future__ import annotations

import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

WINDOWS = sys.platform == "win32"
NAMES = ("geood.exe", "geood.bat", "geood") if WINDOWS else ("geood",)
PLACES = ("", "Scripts", "bin")  # of a program in the folder of its environment
FOREIGN = (  # variables that QGIS sets for itself
    "PYTHONHOME",
    "PYTHONPATH",
    "PYTHONSTARTUP",
    "PYTHONEXECUTABLE",
    "GDAL_DATA",
    "GDAL_DRIVER_PATH",
    "PROJ_LIB",
    "PROJ_DATA",
    "QT_PLUGIN_PATH",
    "QT_QPA_PLATFORM_PLUGIN_PATH",
    "GEOTIFF_CSV",
)
PROGRESS = re.compile(r"^(?P<title>.*\S) (?P<done>\d+)/(?P<total>\d+), ")
STOP_S, END_S, POLL_S = 60.0, 10.0, 0.2
INTERRUPTED, SOME_FAILED = 130, 4  # exit codes of geood
NOT_FOUND = (
    "{what}. geood runs in a Python environment of its own, outside QGIS. Install it there, let `geood doctor` tell "
    "whether it works, and give the path of that program ({how}) under Settings > Options > Processing > Providers > "
    "geood, or put it in PATH"
)


class ProgramError(Exception):
    """Program that is not there, or is another one."""


def find_program(setting: str, *, path: str | None = None) -> str:
    """Return the program: that of the setting, a file or the folder of an environment, else the first in PATH.

    Raises:
        ProgramError: there is none.
    """
    if setting.strip():
        given = Path(setting.strip().strip('"')).expanduser()
        candidates = [given, *(given / place / name for place in PLACES for name in NAMES)]
        for candidate in candidates:
            if candidate.is_file():
                return str(candidate)
        raise _not_found(f"The program geood is not at {given}")
    found = shutil.which("geood", path=path)
    if found is None:
        raise _not_found("The program geood is not in PATH")
    return found


def check_program(program: str) -> str:
    """Return what the program says of its version.

    Raises:
        ProgramError: it does not start, or is another program of that name.
    """
    try:
        done = subprocess.run(
            [program, "--version"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=environment_of(program),
            check=False,
            timeout=120,
            **_hidden(),
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _not_found(f"{program} does not start ({error})") from None
    said = done.stdout.decode("utf-8", "replace").strip()
    if done.returncode or "geood-toolkit" not in said:
        last = said.splitlines()[-1] if said else f"exit code {done.returncode}"
        raise _not_found(f"{program} is not the program that this plugin needs, of the package geood-toolkit ({last})")
    return said


def environment_of(program: str, given: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the variables for the program: those of QGIS without its own, with the program's folder first in PATH."""
    variables = {name: value for name, value in given.items() if name.upper() not in FOREIGN}
    folder, own = Path(program).absolute().parent, given.get("OSGEO4W_ROOT", "")
    near = [str(folder)]
    if WINDOWS:  # libraries of a conda environment, which is not activated here
        near += [str(folder.parent / "Library" / "bin"), str(folder.parent)]
    before = variables.get("PATH", "").split(os.pathsep)
    kept = [place for place in before if not (WINDOWS and own and place.lower().startswith(own.lower()))]
    return {**variables, "PATH": os.pathsep.join([*near, *kept]), "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"}


def progress_of(line: str) -> float | None:
    """Return the per cent that a line of the program tells; None if it tells none."""
    found = PROGRESS.match(line)
    if found is None or not int(found["total"]):
        return None
    return 100.0 * int(found["done"]) / int(found["total"])


def run_program(
    program: str, arguments: Sequence[str], *, said: Callable[[str], None], cancelled: Callable[[], bool]
) -> int:
    """Run the program to its end and return its exit code; every line that it says is handed to `said`.

    Once `cancelled` returns True it is interrupted, which keeps finished tiles, and waited for.

    Raises:
        ProgramError: it does not start.
    """
    try:
        process = subprocess.Popen(
            [program, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment_of(program),
            **_hidden(),
        )
    except OSError as error:
        raise _not_found(f"{program} does not start ({error})") from None
    lines: queue.Queue[str] = queue.Queue()
    reader = threading.Thread(target=_read, args=(process, lines), daemon=True)
    reader.start()
    stopped: float | None = None
    steps = [(0.0, _interrupt), (STOP_S, _interrupt), (STOP_S + END_S, subprocess.Popen.kill)]
    try:
        while process.poll() is None:
            _hand_over(lines, said)
            if stopped is None and cancelled():
                stopped = time.monotonic()
            if stopped is not None and steps and time.monotonic() - stopped >= steps[0][0]:
                steps.pop(0)[1](process)
        reader.join(timeout=END_S)
        _hand_over(lines, said)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    return process.returncode


def _read(process: subprocess.Popen[bytes], lines: queue.Queue[str]) -> None:
    assert process.stdout is not None
    with process.stdout as said:
        for line in said:
            lines.put(line.decode("utf-8", "replace").rstrip("\r\n"))


def _hand_over(lines: queue.Queue[str], said: Callable[[str], None]) -> None:
    """Hand over the lines there are; wait a moment for one."""
    try:
        said(lines.get(timeout=POLL_S))
        while True:
            said(lines.get_nowait())
    except queue.Empty:
        pass


def _interrupt(process: subprocess.Popen[bytes]) -> None:
    """Interrupt a process as a person at its terminal would; where that cannot be done, end it: its files are safe."""
    if not WINDOWS:
        process.send_signal(signal.SIGINT)
        return
    try:
        process.send_signal(signal.CTRL_BREAK_EVENT)
    except OSError:  # QGIS has no console that both could share
        process.terminate()


def _hidden() -> dict[str, object]:
    """Return the options that keep a console from being shown, and signals for QGIS from reaching the program."""
    if WINDOWS:
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}
    return {"start_new_session": True}


def _not_found(what: str) -> ProgramError:
    return ProgramError(NOT_FOUND.format(what=what, how="`where geood`" if WINDOWS else "`which geood`"))
