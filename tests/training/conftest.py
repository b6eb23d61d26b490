"""Fixtures of the tests of training."""

import pytest

from geood.training.feed import Feed
from support.apart import start_server


@pytest.fixture(autouse=True)
def short_training(little_effort):
    """Training of all these tests that ends soon."""


@pytest.fixture
def forked_loaders(monkeypatch):
    """Workers that read crops as forks of the process of `support.apart`, rather than each an interpreter anew."""
    start_server()

    def forked(*given, multiprocessing_context=None, **how):
        return Feed(*given, multiprocessing_context=multiprocessing_context and "forkserver", **how)

    monkeypatch.setattr("geood.training.feed.Feed", forked)
