"""Try the wheel and the source archive in a folder: what is in them, and the commands of an installed wheel.

The wheel goes alone into an empty environment, which borrows the packages it depends on from `.venv` by a .pth file:
so only geood's own files can be missing, in a second and without the network. Usage: try_wheel.py FOLDER.
"""

import subprocess
import sys
import tarfile
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("tests/conftest.py", "configs/aerial.yaml", "docs/architecture.md", "examples/README.md", "constraints.txt")
COMMANDS = (["--version"], ["--help"], ["export", "--help"], ["info", str(ROOT / "configs" / "aerial.yaml")])


def check_sources(archive: Path) -> None:
    """Check that a source archive holds what building and testing takes."""
    with tarfile.open(archive) as held:
        names = {name.partition("/")[2] for name in held.getnames()}
    if missing := [name for name in SOURCES if name not in names]:
        sys.exit(f"{archive.name} lacks {', '.join(missing)}; see MANIFEST.in")


def try_wheel(wheel: Path, packages: Path) -> None:
    """Install a wheel alone into an empty environment and run its commands."""
    with tempfile.TemporaryDirectory(prefix="geood-wheel-") as folder:
        place = Path(folder)
        venv.create(place, with_pip=True)
        python = place / "bin" / "python"
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel], check=True)
        where = subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            capture_output=True,
            text=True,
            check=True,
        )
        own = Path(where.stdout.strip())
        (own / "borrowed.pth").write_text(f"{packages}\n", encoding="utf-8")
        found = subprocess.run(
            [python, "-c", "import geood; print(geood.__file__)"], capture_output=True, text=True, check=True, cwd=place
        )
        if not found.stdout.startswith(str(own)):
            sys.exit(f"the wheel is not what was imported: {found.stdout.strip()}")
        for arguments in COMMANDS:
            done = subprocess.run(
                [place / "bin" / "geood", *arguments], capture_output=True, text=True, cwd=place, check=False
            )
            if done.returncode or not done.stdout:
                sys.exit(f"geood {' '.join(arguments)} ended with {done.returncode}: {done.stderr}")
            print(f"geood {' '.join(arguments)}: fine")


if __name__ == "__main__":
    made = Path(sys.argv[1])
    [sources], [wheel] = made.glob("*.tar.gz"), made.glob("*.whl")
    libraries = next((ROOT / ".venv").glob("lib/python*/site-packages"), None)
    if libraries is None:
        sys.exit("there is no .venv, whose packages the wheel could borrow; run make install")
    check_sources(sources)
    try_wheel(wheel.resolve(), libraries)
