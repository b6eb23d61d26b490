"""What is shown cannot command a terminal, whatever streams there are; an empty value is never taken for none."""

import io
import os
import subprocess
import sys

import pytest

from geood.cli.process import _run
from geood.cli.terminal import Shown, check_not_empty
from geood.errors import ConfigError, OutputError, counted, printable

EVIL = [
    "\x1b[31mred",
    "a\rb",
    "bell\x07",
    "\x9b2J",
    "turned\u202egpj",
    "half \ud800",
    "hidden\u200b",
    "\x7f",
    "two\nlines",
]


@pytest.mark.parametrize("name", EVIL)
def test_what_a_terminal_would_obey_is_escaped(name):
    assert printable(name).isprintable() and printable(name).encode("utf-8")
    assert "\\" in printable(name)


@pytest.mark.parametrize("name", ["road", "Straße", "道路", "a b", "50 %", "C:\\x", "🏠", "می‌خواهم"])
def test_what_is_printable_stays_as_it_is(name):
    assert printable(name) == name


def test_lines_and_columns_stay():
    stream = io.StringIO()
    print("a\tb\nc\x1b[2J", file=Shown(stream))
    assert stream.getvalue() == "a\tb\nc\\x1b[2J\n"


def test_a_name_that_the_encoding_cannot_spell_is_escaped():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    print("Straße", file=Shown(stream))
    assert raw.getvalue() == rb"Stra\xdfe" + os.linesep.encode()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_under_stdout_is_an_error():
    with open("/dev/full", "w") as full, pytest.raises(OutputError, match="standard output: cannot be written"):
        print("a", file=Shown(full))


def test_a_reader_that_went_away_is_none():
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream:
        shown = Shown(stream)
        print("a", file=shown)
        print("b", file=shown)


@pytest.mark.parametrize(
    "option",
    [
        *("--bbox", "--aoi", "--bands", "--threshold", "--out", "--model", "--set", "--scheduler", "--max-ram"),
        *("--nodata", "--workers", "--tls-cert"),
    ],
)
@pytest.mark.parametrize("form", [["{}", ""], ["{}="], ["{}", "  "]])
def test_an_empty_value_of_any_option_is_refused(capsys, option, form):
    given = [part.format(option) for part in form]
    assert _run(["predict", "s.tif", "--out", "x.tif", *given], debug=False) == 2
    assert f"{option}: the value is empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    "verb", [["predict", "", "--out", "x.tif"], ["info", ""], ["train", ""], ["data", "check", "x", ""]]
)
def test_an_empty_name_is_refused_by_every_verb(verb):
    assert _run(verb, debug=False) == 2


def test_values_that_are_not_empty_pass():
    check_not_empty(["predict", "a=", "--set", "bands.names=", "--set=data.hold_out=", "-", "--overwrite", "0"])
    with pytest.raises(ConfigError):
        check_not_empty(["--set", ""])


@pytest.mark.parametrize("number", ["nan", "inf", "1e400", "-inf"])
def test_a_threshold_is_a_finite_number(number):
    assert _run(["polygonize", "s.tif", "--out", "x.gpkg", f"--threshold={number}"], debug=False) == 2
    assert _run(["polygonize", "s.tif", "--out", "x.gpkg", f"--min-area={number}"], debug=False) == 2
    assert _run(["predict", "s.tif", "--out", "x.gpkg", f"--threshold={number}"], debug=False) == 2


STREAMS = {
    "closed stderr": ("info {} 2>&-", 3),
    "closed stdout": ("--version >&-", 0),
    "full stdout": ("--version > /dev/full", 2),
    "full help": ("--help > /dev/full", 2),
    "all closed": ("data list <&- >&- 2>&-", 0),
}


@pytest.mark.parametrize("case", STREAMS.values(), ids=STREAMS)
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a POSIX shell and /dev/full")
def test_a_process_without_its_streams_ends_as_it_should(tmp_path, case):
    line, code = case
    shell = f"{sys.executable} -m geood {line.format(tmp_path / 'none.tif')}"
    done = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=False)
    assert done.returncode == code and "Traceback" not in done.stderr, done


def test_an_archive_member_cannot_recolour_an_error(capsys):
    assert _run(["info", "\x1b[31mnone.tif"], debug=False) == 3
    said = capsys.readouterr().err
    assert "\x1b" not in said and "\\x1b[31mnone.tif" in said


def test_one_thing_is_not_told_as_several():
    assert [counted(n, "row") for n in (0, 1, 2, 1000)] == ["0 rows", "1 row", "2 rows", "1,000 rows"]
    assert [counted(n, "miss", "misses") for n in (1, 2)] == ["1 miss", "2 misses"]
