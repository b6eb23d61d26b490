"""The program as a process of another environment: found, told of, followed and stopped."""

import configparser
import logging
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from geood import __version__
from geood.progress import Progress
from geood_qgis import program
from geood_qgis.program import ProgramError, check_program, environment_of, find_program, progress_of, run_program

ROOT = Path(__file__).parent.parent.parent
GENTLE = """
import signal, sys, time
def stop(*_):
    print("geood: interrupted", flush=True)
    sys.exit(130)
signal.signal(signal.SIGINT, stop)
print("scene 1/4, 1 s, 3 s left  ", flush=True)
time.sleep(60)
"""


def fake(folder, code, name="geood"):
    """A program that runs `code`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f"#!{sys.executable} -S\n{code}")
    path.chmod(0o755)
    return path


def test_the_program_is_that_of_the_setting_else_the_first_in_path(tmp_path):
    own, other = fake(tmp_path / "env" / "bin", ""), fake(tmp_path / "other", "")
    path = os.pathsep.join([str(tmp_path), str(other.parent)])
    for setting in (str(own), str(own.parent), str(own.parent.parent), f' "{own}" '):
        assert find_program(setting, path=path) == str(own)
    assert find_program("", path=path) == str(other)
    for setting, searched in (("", str(tmp_path)), (str(tmp_path / "nowhere"), path)):
        with pytest.raises(
            ProgramError, match=r"(not in PATH|not at .*nowhere)\..*`geood doctor`.*Options > Processing"
        ):
            find_program(setting, path=searched)


def test_another_program_of_that_name_is_refused(tmp_path):
    assert "geood-toolkit" in check_program(str(fake(tmp_path, "print('geood 9 (distribution geood-toolkit)')")))
    for code in ("print('geood 0.1.6')", "raise SystemExit('no module named geood')"):
        with pytest.raises(ProgramError, match="not the program that this plugin needs"):
            check_program(str(fake(tmp_path, code)))
    with pytest.raises(ProgramError, match="does not start"):
        check_program(str(tmp_path))


def test_the_program_gets_no_variables_that_lead_to_the_files_of_qgis(tmp_path):
    given = {"PYTHONHOME": "/qgis", "PYTHONPATH": "/qgis", "PROJ_LIB": "/qgis", "GDAL_DATA": "/qgis", "LANG": "de"}
    variables = environment_of(str(tmp_path / "bin" / "geood"), given | {"PATH": "/usr/bin"})
    assert "/qgis" not in variables.values() and variables["LANG"] == "de"
    assert variables["PATH"].split(os.pathsep) == [str(tmp_path / "bin"), "/usr/bin"]


def test_on_windows_the_program_of_an_environment_is_found_and_gets_its_libraries(tmp_path, monkeypatch):
    monkeypatch.setattr(program, "WINDOWS", True)
    monkeypatch.setattr(program, "NAMES", ("geood.exe", "geood.bat", "geood"))
    monkeypatch.setattr(program.os, "pathsep", ";")
    own = fake(tmp_path / "env" / "Scripts", "", "geood.exe")
    assert find_program(str(tmp_path / "env")) == find_program(f'"{own}"') == str(own)
    given = {
        "OSGEO4W_ROOT": r"C:\OSGeo4W",
        "PATH": r"C:\OSGeo4W\bin;c:\osgeo4w\apps\qgis;C:\Windows",
        "PythonHome": "x",
    }
    variables = environment_of(str(own), given)
    env = tmp_path / "env"
    near = [str(own.parent), str(env / "Library" / "bin"), str(env)]
    assert variables["PATH"] == ";".join([*near, r"C:\Windows"]) and "PythonHome" not in variables
    monkeypatch.setattr(program.shutil, "which", lambda name, path: None)
    with pytest.raises(ProgramError, match="`where geood`"):
        find_program("")


def test_on_windows_a_run_is_interrupted_by_a_break_or_ended(monkeypatch):
    class Process:
        def __init__(self, console):
            self.console, self.told = console, []

        def send_signal(self, number):
            if not self.console:
                raise OSError("no console")
            self.told.append(number)

        def terminate(self):
            self.told.append("terminated")

    monkeypatch.setattr(program, "WINDOWS", True)
    monkeypatch.setattr(program.signal, "CTRL_BREAK_EVENT", 1, raising=False)
    for name, value in (("CREATE_NEW_PROCESS_GROUP", 0x200), ("CREATE_NO_WINDOW", 0x8000000)):
        monkeypatch.setattr(program.subprocess, name, value, raising=False)
    for console, told in ((True, [1]), (False, ["terminated"])):
        process = Process(console)
        program._interrupt(process)
        assert process.told == told
    assert program._hidden() == {"creationflags": 0x8000200}


def test_on_macos_the_home_in_a_setting_is_known_and_the_variables_of_the_app_are_taken_away(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    own = fake(tmp_path / "miniforge3" / "envs" / "geood" / "bin", "")
    assert find_program("~/miniforge3/envs/geood") == str(own)
    app = "/Applications/QGIS.app/Contents"
    given = {"PYTHONHOME": f"{app}/MacOS", "GDAL_DATA": f"{app}/Resources/gdal", "QT_PLUGIN_PATH": f"{app}/PlugIns"}
    variables = environment_of(str(own), given | {"PATH": "/usr/bin:/bin"})
    assert not any(app in value for value in variables.values())
    assert variables["PATH"].split(":") == [str(own.parent), "/usr/bin", "/bin"]


def test_lines_of_progress_are_those_that_geood_writes(caplog):
    with caplog.at_level(logging.INFO, logger="geood"), Progress("my 1/2 scene.tif", 8, every_s=0.0) as progress:
        progress.advance(2)
        progress.advance(6, loss=0.5)
    assert [progress_of(line) for line in caplog.messages] == [25.0, 100.0]
    for line in ("polygons   x.gpkg: 3 above 0.9", "x.tif: 1/2 of the scene", "scene 0/0, 0 s"):
        assert progress_of(line) is None


def test_all_lines_arrive_and_so_does_the_exit_code(tmp_path):
    lines = []
    code = "import sys\nprint('ä' * 9)\nprint('geood: no', file=sys.stderr)\nsys.exit(3)"
    assert run_program(str(fake(tmp_path, code)), [], said=lines.append, cancelled=lambda: False) == 3
    assert lines == ["ä" * 9, "geood: no"]


def test_a_run_is_interrupted_once_and_one_that_does_not_end_is_ended(tmp_path, monkeypatch):
    lines = []
    gentle = str(fake(tmp_path, GENTLE))
    assert run_program(gentle, [], said=lines.append, cancelled=lambda: bool(lines)) == program.INTERRUPTED
    assert lines == ["scene 1/4, 1 s, 3 s left  ", "geood: interrupted"]
    monkeypatch.setattr(program, "STOP_S", 0.1)
    monkeypatch.setattr(program, "END_S", 0.1)
    stubborn, lines = GENTLE.replace("signal.SIGINT, stop", "signal.SIGINT, signal.SIG_IGN"), []
    assert run_program(str(fake(tmp_path, stubborn)), [], said=lines.append, cancelled=lambda: bool(lines)) < 0


def test_the_zip_holds_the_plugin_with_its_version_and_licence(tmp_path):
    out = tmp_path / "build" / "geood_qgis.zip"
    subprocess.run([sys.executable, ROOT / ".ci" / "qgis_plugin.py", out], check=True, capture_output=True)
    with zipfile.ZipFile(out) as archive:
        names, metadata = archive.namelist(), configparser.ConfigParser()
        metadata.read_string(archive.read("geood_qgis/metadata.txt").decode())
    assert {"geood_qgis/__init__.py", "geood_qgis/LICENSE", "geood_qgis/icon.svg"} <= set(names)
    assert {Path(name).name for name in names} >= {path.name for path in (ROOT / "geood_qgis").glob("*.py")}
    general = metadata["general"]
    assert (general["version"], general["hasprocessingprovider"]) == (__version__, "yes")
