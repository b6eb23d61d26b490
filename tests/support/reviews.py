"""Reviewed polygons, made on the spot: squares in a row with scores, verdicts and, if asked for, a sample of cells."""

import geopandas
import pyogrio
import shapely

SIDE = 10.0
WEST, SOUTH = 500_000.0, 4_600_000.0


def square(i, side=SIDE):
    """The i-th square of a row, in EPSG:32633."""
    return shapely.box(WEST + 2 * side * i, SOUTH, WEST + 2 * side * i + side, SOUTH + side)


def reviewed(verdicts, *, rank=True, **columns):
    """A frame of polygons with falling scores; other columns override or add."""
    count = len(verdicts)
    values = {
        "score_max": [1 - i / 100 for i in range(count)],
        "class_name": ["land"] * count,
        "area_m2": [SIDE**2] * count,
        "area_px": [400] * count,
        "model": ["abc"] * count,
        "verdict": verdicts,
        "true_class": [None] * count,
        "reviewer": [None] * count,
    }
    values |= {"rank": list(range(1, count + 1))} if rank else {}
    frame = geopandas.GeoDataFrame(values | columns, geometry=[square(i) for i in range(count)], crs=32633)
    for name in ("verdict", "true_class", "reviewer"):
        frame[name] = frame[name].astype("string")
    return frame


def cells(misses, complete, *, stands_for_m2=1e6, area_m2=1e5, places=None):
    """A sample of cells; `places` are their polygons."""
    count = len(misses)
    return geopandas.GeoDataFrame(
        {
            "cell": range(1, count + 1),
            "seed": [0] * count,
            "area_m2": [area_m2] * count,
            "stands_for_m2": [stands_for_m2] * count,
            "misses": misses,
            "complete": complete,
        },
        geometry=places or [square(100 + i) for i in range(count)],
        crs=32633,
    )


def save(path, frame, sample=None, *, layer="anomalies"):
    """Write polygons, and cells, to a file, and return its path."""
    pyogrio.write_dataframe(frame, path, layer=layer)
    if sample is not None:
        pyogrio.write_dataframe(sample, path, layer="sample")
    return path
