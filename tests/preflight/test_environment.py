"""Laws of the doctor: all facts have a state, what is wrong has a remedy, JSON holds the same."""

import json

import pytest

from geood.cli.process import _run
from geood.preflight import environment
from geood.preflight.environment import Fact, _drivers, facts


def test_facts_are_fine_here_and_notes_have_remedies():
    found = facts()
    assert not [fact for fact in found if fact.state == "fault"]
    assert all(fact.remedy for fact in found if fact.state != "fine")
    names = [fact.name for fact in found]
    assert len(names) == len(set(names))
    assert {"geood", "torch", "torchvision fits", "GDAL", "PROJ data", "memory", "disk here", "other geood"} <= set(
        names
    )


def test_the_other_package_and_missing_drivers_are_faults(tmp_path, monkeypatch):
    folder = tmp_path / "geood-0.1.6.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: geood\nVersion: 0.1.6\nSummary: for LLMs\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    other = environment._other_package()
    assert other.state == "fault" and "pip uninstall geood" in other.remedy
    assert _drivers("d", ("GTiff", "XYZ"), {"GTiff"}, "").state == "fault"


def test_the_verb_speaks_json_and_ends_with_a_code(monkeypatch, capsys):
    monkeypatch.setattr(environment, "facts", lambda: [Fact("a", "b"), Fact("c", "d", "fault", "mend it")])
    import geood.preflight

    monkeypatch.setattr(geood.preflight, "facts", environment.facts, raising=False)
    assert _run(["doctor", "--json"], debug=False) == 2
    told = capsys.readouterr()
    assert [fact["state"] for fact in json.loads(told.out)] == [
        "fine",
        "fault",
    ] and "wrong here, 1 of 2 things: " in told.err
    assert _run(["doctor"], debug=False) == 2 and "d (FAULT)" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["MemFree: 1 kB\n", None])
def test_memory_that_nobody_tells_is_left_out(monkeypatch, text):
    def read(self, encoding=None):
        if text is None:
            raise OSError
        return text

    monkeypatch.setattr(environment.Path, "read_text", read)
    assert environment._free_memory() is None
