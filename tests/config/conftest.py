"""Fixtures of the tests of configs."""

import pytest


@pytest.fixture
def write(tmp_path):
    """A function of a text and a name: write a config file, and return its path."""

    def write(text, name="my.yaml"):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path / name

    return write
