"""QGIS's own Python, in which the outputs are opened as a person opens them."""

import json
import subprocess
import tempfile
from functools import cache

import pytest

PYTHON = "/usr/bin/python3"  # QGIS comes with the system's Python, not with ours
START = """
import json, os, sys
from qgis.core import *
app = QgsApplication([], False)
app.initQgis()
"""
END = """
print("FOUND", json.dumps(found), flush=True)
os._exit(0)  # QGIS crashes now and then while it is taken down
"""


@cache
def _missing():
    try:
        return subprocess.run(
            [PYTHON, "-c", "import qgis.core"], capture_output=True, check=False, timeout=60
        ).returncode
    except OSError:
        return 1


def need_qgis():
    """Skip the test where there is no QGIS."""
    if _missing():
        pytest.skip("QGIS is not installed: apt-get install --no-install-recommends python3-qgis qgis-providers")


def environment(folder, **more):
    """Return the variables of a QGIS without a screen, whose settings are in `folder`."""
    own = {"QT_QPA_PLATFORM": "offscreen", "HOME": str(folder), "XDG_RUNTIME_DIR": str(folder), "PATH": "/usr/bin:/bin"}
    return own | {"TMPDIR": tempfile.gettempdir()} | more


def ask_qgis(script, *arguments, folder, **variables):
    """Run a script in QGIS and return what it leaves in `found`; the test is skipped without QGIS."""
    need_qgis()
    done = subprocess.run(
        [PYTHON, "-c", START + script + END, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment(folder, **variables),
        check=False,
        timeout=180,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    assert lines, done.stdout + done.stderr
    return json.loads(lines[0].removeprefix("FOUND "))
