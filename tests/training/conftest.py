"""Fixtures of the tests of training."""

import pytest

from geood.training.feed import Feed
from support.apart import FIT_CROPS, start_server


@pytest.fixture(autouse=True, scope="session")
def few_crops_to_fit():
    """Training that fits its inlier statistics in a moment, on few crops."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("geood.training.calibration.FIT_CROPS", FIT_CROPS)
        yield


@pytest.fixture
def forked_loaders(monkeypatch):
    """Workers that read crops as forks of the process of `support.apart`, rather than each an interpreter anew."""
    start_server()

    def forked(*given, multiprocessing_context=None, **how):
        return Feed(*given, multiprocessing_context=multiprocessing_context and "forkserver", **how)

    monkeypatch.setattr("geood.training.feed.Feed", forked)
