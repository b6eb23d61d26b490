"""pyogrio wrapper: vector files under names that it does not take for addresses, offline, and without times of writing.

pyogrio parses each path as an address: what follows a `;` is dropped, a `!` separates an archive from a member, tabs
and newlines vanish. So a file of such a name, or in such a folder, is reached through a link of a plain name. Drivers
put the time of writing into files; here it is a fixed one, so that equal maps have equal bytes. GDAL opens a file with
any driver that knows its content, also those for services; here the content has to be what the suffix says. pyogrio's
wheel carries its own GDAL: the options of `geood.geo.gdal` do not reach it.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from geood.errors import DataError
from geood.geo.gdal import OFFLINE
from geood.geo.vrt import is_allowed

WRITTEN = "2000-01-01T00:00:00.000Z"  # the time of writing in every file
# First bytes of a file by its suffix; blanks before them are passed over.
_STARTS: dict[str, tuple[bytes, ...]] = {
    ".gpkg": (b"SQLite format 3\0",),
    ".fgb": (b"fgb",),
    ".parquet": (b"PAR1",),
    ".shp": (b"\0\0\x27\x0a",),
    ".dbf": (b"\x03",),
    ".geojson": (b"{", b"["),
    ".json": (b"{", b"["),
}
_PARSED = re.compile(r"[;?!\t\r\n]|^\w+:|\.zip", re.IGNORECASE)  # what pyogrio parses, or drops, in a path


@contextmanager
def plain_path(path: Path) -> Iterator[Path]:
    """Yield a path of the same file, to be read or written, that pyogrio takes as it is.

    Raises:
        DataError: the name cannot be told to GDAL: it is no valid text.
        OSError: the link cannot be made.
    """
    whole = path.absolute()
    try:
        str(whole).encode()
    except UnicodeEncodeError:
        raise DataError(f"{str(path)!a}: its name is no valid text, so GDAL cannot open it; rename it") from None
    if not _PARSED.search(str(whole)):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="geood-") as folder:
        link, name = Path(folder, "folder"), whole.name
        link.symlink_to(whole.parent, target_is_directory=True)
        if _PARSED.search(name):  # links to the file and what lies beside it, such as the parts of a shapefile
            for beside in os.listdir(whole.parent):
                if beside.startswith(whole.stem):
                    Path(folder, f"file{beside[len(whole.stem) :]}").symlink_to(whole.parent / beside)
            yield Path(folder, f"file{whole.suffix}")
        else:
            yield link / name


@contextmanager
def local_file(path: Path) -> Iterator[Path]:
    """Yield a plain path of a vector file to be read, during which pyogrio's GDAL reaches no server.

    Raises:
        DataError: its content is of another kind than its suffix says, so that GDAL might open it with any driver, also
            one for services; or its name is no valid text.
        OSError: it cannot be read.
    """
    starts = _STARTS.get(path.suffix.lower(), ())
    with path.open("rb") as file:
        head = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()
    if starts and not head.startswith(starts):
        raise DataError(
            f"{path}: cannot be read as a vector file (by its content it is no {path.suffix}); copy it again, or give "
            "it the suffix of its format"
        )
    with plain_path(path) as plain, _options({} if is_allowed() else OFFLINE):
        yield plain


@contextmanager
def fixed_time() -> Iterator[None]:
    """Let the files written in the block hold the time `WRITTEN` in place of the present."""
    with _options({"OGR_CURRENT_DATE": WRITTEN}):
        yield


@contextmanager
def _options(options: Mapping[str, str]) -> Iterator[None]:
    """Set options of pyogrio's GDAL in the block; they hold for all threads."""
    import pyogrio  # here, as workers need the other names of `geo` alone

    before = {key: pyogrio.get_gdal_config_option(key) for key in options}
    pyogrio.set_gdal_config_options(options)
    try:
        yield
    finally:
        pyogrio.set_gdal_config_options(before)
