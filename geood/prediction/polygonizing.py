"""`polygonize`: polygons cut again from a score raster, with another threshold, area or outline, without the model.

All that is needed lies in the tags of the raster: its threshold and settings, the names of its classes, and the table
of false polygons of the model that made it. A raster of an older geood has no such table; the model may stand in.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any, Literal

from geood.atomic import check_output
from geood.calibration import PolygonTable
from geood.config import PredictConfig
from geood.errors import ConfigError, DataError
from geood.geo.score_raster import MODEL_TAG, SAME_RUN, SCORE_TAG, SETTING_TAGS, read_tags, score_tags
from geood.models import AnyBundle, ModelBundle, bundle_path_of, takes_bundle
from geood.polygons import OUTPUT_SUFFIXES, write_anomalies
from geood.prediction.run_table import said, write_cut
from geood.prediction.threshold_choice import ThresholdChoice, table_in, table_of


@takes_bundle
def polygonize(  # noqa: PLR0913 - the options of a verb
    scores: str | Path,
    out: str | Path,
    *,
    threshold: float | None = None,
    fpr: float | None = None,
    false_per_km2: float | None = None,
    top: int | None = None,
    min_area_m2: float | None = None,
    simplify_m: float | None = None,
    connectivity: Literal[4, 8] | None = None,
    bundle: AnyBundle | None = None,
    overwrite: bool = False,
    discard_verdicts: bool = False,
    bundle_path: str | Path | None = None,
) -> int:
    """Extract polygons again from a score raster of `predict`, without the model.

    Class names come from the class raster that `predict` wrote beside the scores, if it is still there.

    Args:
        scores: the score raster.
        out: `x.gpkg`, `.geojson`, `.parquet` or `.fgb`.
        threshold: score above which a pixel belongs to a polygon; None: that of the prediction.
        fpr: choose the threshold that this share of inlier validation ground exceeds.
        false_per_km2: choose the threshold at which inlier validation ground has so many polygons per km2.
        top: keep so many polygons, the first by rank.
        min_area_m2: least area of a polygon, square metres; None: that of the prediction.
        simplify_m: size of the details removed from outlines, metres; None: as in the prediction.
        connectivity: 8 if pixels that touch at corners are connected, 4 if not; None: as in the prediction.
        bundle: the model that made the scores (an object, its file or its run's folder), for `fpr` and `false_per_km2`
            of rasters without a table of them.
        overwrite: replace outputs that exist.
        discard_verdicts: replace also polygons in which a person has typed verdicts.
        bundle_path: the former name of `bundle`.

    Returns:
        The number of polygons.

    Raises:
        BundleError: the bundle cannot be read.
        ConfigError: the suffix of `out` is not that of a polygon format, a number is none, or options exclude each
            other.
        DataError: `scores` is not a score raster of geood, or one of its tags is missing or wrong.
        OutputError: `out` exists, holds verdicts, or cannot be written.

    Example:
        >>> import geood
        >>> geood.polygonize("scores.tif", "high.geojson", threshold=1.0)
        0
    """
    scores, out = Path(scores), Path(out)
    bundle_path = None if bundle is None else bundle_path_of(bundle)
    choice = ThresholdChoice(threshold, fpr, false_per_km2, top)
    if out.suffix not in OUTPUT_SUFFIXES:
        raise ConfigError(f"{out}: polygons are written as {', '.join(OUTPUT_SUFFIXES)}; choose one of these suffixes")
    check_output(out, overwrite=overwrite)
    tags, texts = score_tags(scores, threshold=threshold), read_tags(scores)
    changes = {"min_area_m2": min_area_m2, "simplify_m": simplify_m, "connectivity": connectivity}
    settings = _changed(tags.predict, {name: value for name, value in changes.items() if value is not None})
    table = table_in(texts, scores)
    if table is None and bundle_path is not None:
        table = table_of(_same_model(Path(bundle_path), texts, scores))
    if table is not None and settings.connectivity != tags.predict.connectivity:
        table = table.without_polygons()
    classes = scores.with_suffix(".classes.tif")
    if classes.exists():
        beside = read_tags(classes, dtype="uint8")
        if (tags.model, tags.scene) != tuple(beside.get(tag) for tag in SAME_RUN):
            raise DataError(
                f"{classes}: is not of the same prediction as {scores.name}; move it away, or predict again"
            )
    settled = choice.settle_by_tags(texts, table, settings, default=tags.threshold)

    def tell_promise(made: Path, count: int) -> None:
        """Write what is promised of these polygons into their file, while it has no name yet."""
        same = settings.connectivity == tags.predict.connectivity and top is None
        promise = _promised(table, texts, settings, threshold=settled, count=count if same else None)
        named = scores.name if scores.absolute().parent == out.absolute().parent else None
        write_cut(made, {"scene": tags.scene, "scores": named, "threshold": settled} | promise)

    return write_anomalies(
        scores,
        out,
        threshold=settled,
        classes=classes if classes.exists() else None,
        class_names=tags.class_names,
        predict=settings,
        model=tags.model,
        overwrite=overwrite,
        discard_verdicts=discard_verdicts,
        failed=tags.failed,
        most=top,
        finish=tell_promise if out.suffix == ".gpkg" else None,
    )


def _promised(
    table: PolygonTable | None, texts: dict[str, str], settings: PredictConfig, *, threshold: float, count: int | None
) -> dict[str, float | None]:
    """Return what is promised of polygons of a score raster that were cut at a threshold, for the table `run`.

    Without a `count` they are not those that the table counts: the best-ranked alone, or connected otherwise.
    """
    told = said(texts).get("km2")
    km2 = float(told) if isinstance(told, (int, float)) and abs(told) <= sys.float_info.max else 0.0
    least = settings.min_area_m2 or 0.0
    false = table.at(threshold, least) if table is not None and count is not None and km2 > 0 else None
    return {
        "promised": None if table is None else table.share_above(threshold),
        "polygons_per_km2": count / km2 if km2 > 0 and count is not None else None,
        "false_per_km2": None if false is None else false.rate,
        "min_area_m2": least,
        "connectivity": settings.connectivity,
    }


def _changed(settings: PredictConfig, changes: dict[str, Any]) -> PredictConfig:
    """Return settings with other values.

    Raises:
        ConfigError: a value makes no sense.
    """
    for name, option in (("min_area_m2", "--min-area"), ("simplify_m", "--simplify")):
        value = changes.get(name, 0)
        if not 0 <= value < math.inf:
            what = "an area; give square metres" if name == "min_area_m2" else "a length; give metres"
            raise ConfigError(f"{option} {value}: not {what}, 0 or more")
    if changes.get("connectivity", 8) not in (4, 8):
        raise ConfigError(f"--connectivity {changes['connectivity']}: choose 4 or 8")
    return settings.model_copy(update=changes)


def _same_model(path: Path, texts: dict[str, str], scores: Path) -> ModelBundle:
    """Return the bundle with the score that the raster holds, and its settings: a table of others would not fit it.

    Raises:
        ConfigError: a tag of the raster does not hold a setting.
        DataError: it did not make these scores.
    """
    bundle = ModelBundle.load(path, flow=False)
    if texts.get(MODEL_TAG) != bundle.identity:
        raise DataError(f"{path}: did not make {scores.name}, whose tag {MODEL_TAG} is {texts.get(MODEL_TAG)}")
    kind = texts.get(SCORE_TAG, bundle.config.score.kind)
    given = {key: texts[tag].replace("None", "null") for key, tag in SETTING_TAGS.items() if tag in texts}
    return bundle.with_settings([f"score.kind={kind}", *(f"score.{key}={value}" for key, value in given.items())])
