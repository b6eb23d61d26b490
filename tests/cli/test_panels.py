"""Laws of the list of verbs: each verb once, in the order of the work, its sentence whole."""

import pytest
from typer.main import get_command

from geood.cli.app import app
from geood.cli.panels import PANELS, first_sentence
from geood.cli.process import _run


def test_every_verb_is_in_one_panel():
    named = [name for names in PANELS.values() for name in names]
    assert sorted(named) == sorted(get_command(app).commands)


@pytest.mark.parametrize("width", [60, 80, 200])
def test_help_lists_verbs_in_the_order_of_the_work_and_whole(width, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    assert _run(["--help"], debug=False) == 0
    lines = capsys.readouterr().out.partition("\nBegin:")[2].splitlines()
    listed = [line.split()[0] for line in lines if line.startswith("  ") and line[2:3].islower()]
    assert listed == [name for names in PANELS.values() for name in names]
    text = " ".join(" ".join(lines).split())
    for command in get_command(app).commands.values():
        assert first_sentence(command.help or "") in text
    assert "..." not in text


def test_a_first_sentence_ends_where_it_ends():
    assert first_sentence("Do a thing: x.gpkg, y") == "Do a thing: x.gpkg, y."
    assert first_sentence("Do a\nthing. Then more.\n\nAnd more.") == "Do a thing."
