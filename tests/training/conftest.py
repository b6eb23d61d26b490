"""Fixtures of the tests of training."""

import pytest

from support.apart import FIT_CROPS


@pytest.fixture(autouse=True, scope="session")
def few_crops_to_fit():
    """Training that fits its inlier statistics in a moment, on few crops."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("geood.training.calibration.FIT_CROPS", FIT_CROPS)
        yield
