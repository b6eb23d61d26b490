"""Vector polygons of anomalies from a score raster of any size, in one pass and in bounded memory.

The pass is streaming connected-component labelling: `runs` labels one window by its runs, `seams` joins labels across
windows, and `components` yields each component once it is closed. `statistics`, `quantiles` and `valid_counts` compute
its figures, `rings` its boundary, `simplification` a smoother one, and `geodesic_area` its area. `block_windows` reads
the raster. `evidence` sums what explains a component, `surroundings` finds what lies around its pixels, and `ranking`
says which is to be looked at first. `extraction` turns components into table rows, `external_sort` keeps rows on disk
until they can be sorted, and `formats` writes them, never over what a person typed (`typed_verdicts`). `review_layers`
adds what a review needs. `export` is the entry point.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from geood._lazy import lazy_exports

if TYPE_CHECKING:
    from geood.polygons.areas import areas_above, count_areas
    from geood.polygons.export import PolygonSource, anomalies, write_anomalies, write_together
    from geood.polygons.formats import is_anomalies
    from geood.polygons.names import (
        OUTPUT_SUFFIXES,
        check_stem,
        companions_of,
        raster_of,
        raster_of_scene,
        rasters_of,
        run_rows,
        scores_beside,
        style_of,
    )
    from geood.polygons.ranking import priority
    from geood.polygons.reading import in_pixels, maps_in, read_anomalies, upper_right
    from geood.polygons.typed_verdicts import check_nothing_typed

__all__ = [
    "OUTPUT_SUFFIXES",
    "PolygonSource",
    "anomalies",
    "areas_above",
    "check_nothing_typed",
    "check_stem",
    "companions_of",
    "count_areas",
    "in_pixels",
    "is_anomalies",
    "maps_in",
    "priority",
    "raster_of",
    "raster_of_scene",
    "rasters_of",
    "read_anomalies",
    "run_rows",
    "scores_beside",
    "style_of",
    "upper_right",
    "write_anomalies",
    "write_together",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "OUTPUT_SUFFIXES": "names",
        "PolygonSource": "export",
        "anomalies": "export",
        "areas_above": "areas",
        "check_nothing_typed": "typed_verdicts",
        "check_stem": "names",
        "companions_of": "names",
        "count_areas": "areas",
        "in_pixels": "reading",
        "is_anomalies": "formats",
        "maps_in": "reading",
        "priority": "ranking",
        "raster_of": "names",
        "raster_of_scene": "names",
        "rasters_of": "names",
        "run_rows": "names",
        "read_anomalies": "reading",
        "scores_beside": "names",
        "style_of": "names",
        "upper_right": "reading",
        "write_anomalies": "export",
        "write_together": "export",
    },
)
