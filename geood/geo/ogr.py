"""pyogrio wrapper: vector files under names that it does not take for addresses, and without the time of writing.

pyogrio parses each path as an address: what follows a `;` is dropped, a `!` separates an archive from a member, tabs
and newlines vanish. So a file of such a name, or in such a folder, is reached through a link of a plain name. Drivers
put the time of writing into files; here it is a fixed one, so that equal maps have equal bytes. pyogrio's wheel carries
its own GDAL: the options of `geood.geo.gdal` do not reach it.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from geood.errors import DataError

WRITTEN = "2000-01-01T00:00:00.000Z"  # the time of writing in every file
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
        if _PARSED.search(name):  # a link to the file alone, so one that is written has to exist or have a plain name
            name = f"file{whole.suffix}"
            Path(folder, name).symlink_to(whole)
            yield Path(folder, name)
        else:
            yield link / name


@contextmanager
def fixed_time() -> Iterator[None]:
    """Let the files written in the block hold the time `WRITTEN` in place of the present."""
    import pyogrio  # here, as workers need the other names of `geo` alone

    before = pyogrio.get_gdal_config_option("OGR_CURRENT_DATE")
    pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": WRITTEN})
    try:
        yield
    finally:
        pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": before})
