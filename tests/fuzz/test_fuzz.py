"""Some hundred damaged or crafted inputs of every kind: geood's own errors come out of them, or right results."""

import os
import subprocess
import sys
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzz import KINDS
from fuzz.labels import GRID
from fuzz.law import examine
from geood.config.loading import apply_override
from geood.errors import GeoodError
from geood.geo.aoi import AreaOfInterest
from geood.geo.band_matching import parse_bands
from geood.geo.bands import Bands
from geood.prediction.budget import parse_bytes

CASES = 25  # `make fuzz` tries 20,000 of each kind
OTHERS = {"bundles": 80, "work_folders": 12}  # of bundles, one in twenty is right; each work folder is a prediction
LIMIT_S = 60.0  # far beyond what a busy machine needs


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # rasterio logs GDAL's odd bytes so
@pytest.mark.parametrize("name", KINDS)
def test_damaged_inputs_end_well(name, tmp_path):
    kind, cases = KINDS[name], OTHERS.get(name, CASES)
    stock = kind.stock(tmp_path)
    with getattr(kind, "around", nullcontext)():
        endings = [examine(name, kind, seed, stock=stock, folder=tmp_path, limit_s=LIMIT_S) for seed in range(cases)]
    faults = [f"seed {ending.seed}: {ending.fault}" for ending in endings if ending.fault]
    assert not faults, f"{len(faults)} of {cases} (python -m fuzz {name} --seed N):\n" + "\n".join(faults[:20])
    assert len({ending.outcome for ending in endings}) > 1  # else nothing was tried


@pytest.mark.slow
def test_the_long_run_tells_how_cases_ended(tmp_path):
    tests = Path(__file__).parents[1]
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(tests.parent), str(tests)])}
    command = [sys.executable, "-m", "fuzz", "--cases", "40", "--jobs", "2", "--save", str(tmp_path / "saved")]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split()[:3] for line in done.stdout.splitlines()[1:]] == [[name, "40", "cases"] for name in KINDS]
    assert not list(tmp_path.iterdir())


BANDS = Bands(("red", "green"), (1, 2), (0.0, 0.0), (255.0, 255.0), (0.5, 0.5), (0.1, 0.1))
WORDS = st.text() | st.lists(
    st.sampled_from(["red", "=", ",", "1", "-1", "nan", "1e999", ".", "GB", "EPSG:4326", " "])
).map("".join)
PARSERS = {
    "--bands": lambda text: parse_bands(text, BANDS),
    "--bbox": lambda text: AreaOfInterest.from_bbox(text, GRID),
    "--max-ram": parse_bytes,
    "--set": lambda text: apply_override({"score": {}}, text),
}


@pytest.mark.parametrize("option", PARSERS)
@given(text=WORDS)
@settings(max_examples=100, deadline=None)
def test_any_text_of_an_option_is_read_or_refused(option, text):
    with suppress(GeoodError):
        PARSERS[option](text)
