"""GeoPackages by SQLite: what was saved is seen, whoever has the file open, and nothing is written."""

import sqlite3

import geopandas
import pyogrio
import pytest
import shapely

from geood.errors import DataError
from geood.geo import gpkg
from geood.geo.gpkg import HeldError, count_filled, embed_choices, open_read_only, snapshot


@pytest.fixture
def package(tmp_path):
    """A GeoPackage with three polygons and an empty column for verdicts."""
    frame = geopandas.GeoDataFrame(
        {"verdict": [None, None, None], "n": [1, 2, 3]}, geometry=[shapely.box(i, 0, i + 1, 1) for i in range(3)]
    ).set_crs(32633)
    frame["verdict"] = frame["verdict"].astype("string")
    frame.to_file(tmp_path / "a.gpkg", layer="anomalies", driver="GPKG", engine="pyogrio")
    return tmp_path / "a.gpkg"


def typed(database, verdict, n):
    for name in ("ST_IsEmpty", "ST_MinX", "ST_MaxX", "ST_MinY", "ST_MaxY"):
        database.create_function(name, 1, lambda _: 0)
    database.execute("UPDATE anomalies SET verdict = ? WHERE n = ?", (verdict, n))


def test_what_another_program_has_saved_is_seen_and_what_it_has_not_is_not(package):
    """In WAL mode, as QGIS keeps a file that is open."""
    other = sqlite3.connect(package, isolation_level=None)
    other.execute("PRAGMA journal_mode=wal")
    typed(other, "real", 1)
    assert package.with_name("a.gpkg-wal").stat().st_size > 0
    assert count_filled(package, ["verdict", "no such column"]) == 1
    other.execute("BEGIN")
    typed(other, "false", 2)
    assert count_filled(package, ["verdict"]) == 1
    with snapshot(package) as copy:
        assert pyogrio.read_dataframe(copy)["verdict"].dropna().tolist() == ["real"]
    other.execute("COMMIT")
    assert count_filled(package, ["verdict"]) == 2
    other.close()


def test_reading_leaves_no_trace(package):
    with sqlite3.connect(package) as database:
        database.execute("PRAGMA journal_mode=wal")
    database.close()
    before = package.read_bytes(), sorted(p.name for p in package.parent.iterdir())
    assert count_filled(package, ["verdict"]) == 0
    with snapshot(package) as copy:
        assert len(pyogrio.read_dataframe(copy)) == 3
    assert (package.read_bytes(), sorted(p.name for p in package.parent.iterdir())) == before


def test_a_file_that_is_being_written_is_said_to_be_held(package, monkeypatch):
    monkeypatch.setattr(gpkg, "PATIENCE_S", 0.05)
    other = sqlite3.connect(package, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(HeldError, match=r"another program is writing to it .* save or close it there"):
        count_filled(package, ["verdict"])
    other.execute("ROLLBACK")
    other.close()
    assert count_filled(package, ["verdict"]) == 0


@pytest.mark.parametrize("content", [b"", b"no database at all", b"SQLite format 3\0" + bytes(90)])
def test_what_is_no_geopackage_is_said(tmp_path, content):
    path = tmp_path / "a.gpkg"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.gpkg"):
        count_filled(path, ["verdict"])
    with pytest.raises(DataError, match="no such file"), open_read_only(tmp_path / "none.gpkg"):
        pass


def test_choices_are_those_of_the_schema_extension(package):
    for _ in range(2):  # the second time changes nothing
        embed_choices(package, "anomalies", "verdict", name="v", choices={"real": "r", "false": "f"}, title="t")
    with sqlite3.connect(package) as database:
        [column] = database.execute("SELECT table_name, column_name, constraint_name FROM gpkg_data_columns")
        rows = database.execute("SELECT constraint_type, value FROM gpkg_data_column_constraints").fetchall()
        known = database.execute("SELECT table_name FROM gpkg_extensions WHERE extension_name = 'gpkg_schema'")
        assert len(known.fetchall()) == 2
    database.close()
    assert column == ("anomalies", "verdict", "v") and sorted(rows) == [("enum", "false"), ("enum", "real")]
