"""Golden numbers of the benchmarks' official evaluators, and what a checkout of the user's own says now."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
GOLDEN = json.loads((HERE / "official_metrics.json").read_text())


def official_now(name):
    """What the user's own checkout says, run by the interpreter that has what it needs."""
    checkout = os.environ.get(f"GEOOD_ORACLE_{name.upper()}")
    if not checkout:
        pytest.skip(f"GEOOD_ORACLE_{name.upper()} names no checkout")
    python = sys.executable if name == "densehybrid" else os.environ.get("GEOOD_ORACLE_PYTHON", sys.executable)
    command = [python, HERE / "oracles.py", name, checkout]
    said = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert said["frames"] == GOLDEN["frames"]
    return said["answers"]
