"""Printing of results on the command line: predictions, and the contents of bundles and score rasters.

Names in files may be of any length and hold anything: they are shown cut and escaped. What is printed is not computed
here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from geood._version import DISTRIBUTION
from geood.errors import counted, printable, shown

if TYPE_CHECKING:
    from geood.config import DataConfig
    from geood.models import BundleHeader

MOST_SCENES = 3  # that a command to type next names
LONGEST_LINE = 10_000  # characters of a value
CURVE_PX = (32, 64, 128, 256, 352)


def print_predictions(made: Sequence[Any]) -> None:
    """Print what was written for each scene."""
    for prediction in made:
        print(f"scene      {printable(prediction.scene)}: {counted(prediction.valid_pixels, 'pixel')} scored")
        print(f"scores     {prediction.scores}")
        if prediction.classes:
            print(f"classes    {prediction.classes}")
        if prediction.polygons:
            print(f"polygons   {prediction.polygons}: {prediction.anomalies} above {prediction.threshold:.4g}")
        if prediction.overview:
            print(f"overview   {prediction.overview}")
        if prediction.verdict is not None:
            for line in prediction.verdict.lines():
                print(printable(line))


def print_next(made: Sequence[Any]) -> None:
    """Print what to type after a prediction: how its maps are looked at, and how verdicts on them are counted."""
    maps = list(dict.fromkeys(prediction.polygons or prediction.scores for prediction in made))
    if not maps:
        return
    first = maps[0] if len(maps) == 1 else maps[0].parent
    stem = first.with_suffix("") if len(maps) == 1 else first / "all"
    scenes = [Path(str(p.scene)) for p in made if Path(str(p.scene)).is_file()]
    places = scenes if len(made) == 1 else [path.parent for path in scenes if path.parent != maps[0].parent]
    told = list(dict.fromkeys(map(str, places)))[:MOST_SCENES]
    given = "".join(f" --scene {quote(place)}" for place in told)
    print(printable(f"next       geood project {quote(str(first))}{given} --out {quote(f'{stem}.qgz')}"))
    if made[0].polygons is None:
        out = quote(str(made[0].scores.with_suffix(".gpkg")))
        print(printable(f"then       geood polygonize {quote(str(made[0].scores))} --out {out}"))
    elif not any(prediction.valid_pixels for prediction in made):
        print("then       look at the scene: nothing in it holds data; nodata and area are options of predict")
    elif not any(prediction.anomalies for prediction in made):
        print(printable(f"then       {_lower(made[0])}, as nothing lies above the threshold"))
    else:
        print(printable(f"then       geood audit {quote(str(maps[0]))}, once polygons have verdicts"))


def _lower(prediction: Any) -> str:
    """Return the command that cuts what stands out most, of a map without a polygon."""
    from geood.geo.display import drawn_shape, grid_of, read_average, score_range

    grid = grid_of(prediction.scores)
    threshold = score_range(read_average(prediction.scores, drawn_shape(grid.height, grid.width))).high
    out = prediction.scores.with_name(f"{prediction.scores.stem}.lower.gpkg")
    return f"geood polygonize {quote(str(prediction.scores))} --out {quote(str(out))} --threshold {threshold:.4g}"


def print_cut(out: Path, count: int) -> None:
    """Print what `polygonize` wrote, at which threshold where the file tells it, and what to type next."""
    from geood.polygons import run_rows

    rows = run_rows(out)
    told = [f" above {row['threshold']:.4g}" for row in rows]
    print(printable(f"polygons   {out}: {count}{''.join(told[:1])}"))
    for row in rows[:1]:
        found, false = row.get("polygons_per_km2"), row.get("false_per_km2")
        if found is not None and false is not None:
            from geood.calibration import in_digits

            print(f"per km2    {in_digits(found)} polygons, {in_digits(false)} false ones expected")
    if count:
        print(printable(f"next       geood project {quote(str(out))} --out {quote(str(out.with_suffix('.qgz')))}"))
        print(printable(f"then       geood audit {quote(str(out))}, once polygons have verdicts"))


def print_pairs(pairs: dict[str, Any]) -> None:
    """Print names and values of a file, one a line."""
    for key, value in pairs.items():
        print(shown(f"{key.removeprefix('GEOOD_').lower():<22} {value}", most=LONGEST_LINE))


def print_bundle(header: BundleHeader) -> None:
    """Print what the header of a bundle tells."""
    config, bands = header.config, header.bands
    ranges = zip(bands.names, bands.low, bands.high, strict=True)
    print_pairs(
        {
            "written by": f"{DISTRIBUTION} {header.geood}, format {header.written}",
            "classes": ", ".join(f"{i} {config.data.classes[i]}" for i in header.class_ids),
            "held out": _held_out(config.data),
            "bands": ", ".join(f"{name} [{low:g}, {high:g}]" for name, low, high in ranges),
            "resolution": "none" if header.resolution is None else f"{header.resolution:.4g} m per pixel",
            **({"photographs": f"{header.photo_width} px wide"} if header.photo_width else {}),
            "encoder": config.segmenter.encoder,
            **_halo(header),
            "negatives": config.negatives.told,
            "third stage": config.train.third_stage,
            "score": _score(header),
            "other scores": ", ".join(kind for kind in header.calibration if kind != config.score.kind),
            **{
                f"threshold at {rate}": f"{value:.6g}{_achieved(header, rate)}"
                for rate, value in header.calibration.get(config.score.kind, {}).items()
            },
            **_calibration(header),
            **{k: f"{v:.4g}" for k, v in header.metrics.items()},
        }
    )


def _held_out(data: DataConfig) -> str:
    """Return ids that are held out, with their names where these are known."""
    names = data.anomaly_names
    return ", ".join(f"{i} {names[i]}" if i in names else str(i) for i in data.anomaly) or "none"


def _halo(header: BundleHeader) -> dict[str, str]:
    """Return the halo of a bundle, what is lost with it, and how its network's reach falls off."""
    given, reach = header.config.predict.halo_px, header.reach
    if reach is None:
        return {"halo": f"{given} px, not measured" if given != "auto" else "not measured", **_lacks(header)}
    seam = "" if reach.seam is None else f", seams {reach.seam:.3g} times the usual step"
    changed = "" if reach.changed is None else f", {100 * reach.changed:.3g} % of anomalous pixels change side there"
    own = "" if given == "auto" else f"; predict.halo_px is {given}"
    curve = (px for px in CURVE_PX if px <= 32 * len(reach.beyond))
    return {
        "halo": f"{reach.halo_px} px{seam}{changed}{own}",
        "reach": ", ".join(f"{100 * reach.lost(px):.3g} % beyond {px} px" for px in curve),
    }


def _lacks(header: BundleHeader) -> dict[str, str]:
    return {"lacks": "; ".join(header.missing)} if header.missing else {}


def _achieved(header: BundleHeader, rate: str) -> str:
    """Return the interval of the rate on other ground, in words; empty if it is not known."""
    record = header.record
    interval = record.intervals.get(header.config.score.kind, {}).get(rate) if record else None
    return "" if interval is None else f" (on other ground {100 * interval[0]:.3g} to {100 * interval[1]:.3g} %)"


def _calibration(header: BundleHeader) -> dict[str, str]:
    """Return what the record of the calibration tells, and false polygons at the default threshold."""
    record, config = header.record, header.config
    if record is None:
        return {"calibrated on": "no record: predict cannot tell whether a map's budget holds; train again"}
    from geood.calibration import LEAST_BLOCKS, MORE_BLOCKS, PolygonTable, in_digits, least_area

    area = f"{record.km2:.4g} km2" if record.km2 is not None else counted(record.pixels, "pixel")
    parts = counted(record.blocks, "block"), counted(len(record.cells), "cell")
    said = {"calibrated on": f"{area} of {counted(record.images, 'image')}, {', '.join(parts)}"}
    if record.blocks < LEAST_BLOCKS:
        said["on other ground"] = f"not known: an interval needs {LEAST_BLOCKS} blocks; {MORE_BLOCKS}"
    threshold = header.calibration.get(record.kind, {}).get(str(config.score.fpr))
    if threshold is not None and record.kind == config.score.kind and header.resolution:
        least = least_area(config.predict.min_area_m2, header.resolution)
        false = PolygonTable.of(record).at(threshold, least, record.km2)
        if false is not None:
            rate, low, high = (in_digits(number) for number in (false.rate, *false.interval))
            said["false polygons"] = f"{rate} per km2 of {least:.3g} m2 or more ({low} to {high}), at {threshold:.6g}"
    return said


def _score(header: BundleHeader) -> str:
    """Return the default score with what it was given: a temperature, or an offset."""
    from geood.config import SCORES

    settings = header.config.score
    row = SCORES[settings.kind]
    said = [settings.kind]
    if row.tempered:
        said.append(f"temperature {settings.temperature}")
    if row.shifted:
        offset = header.offsets.get(str(settings.veto_share), 0.0)
        said.append(f"offset {offset:.4g} for {settings.veto_share} of inliers" if offset else "no offset")
    return ", ".join(said)
