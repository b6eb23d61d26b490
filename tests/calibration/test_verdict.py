"""Law of what `predict` tells, in lines and as JSON: each figure is found again in the rasters it wrote."""

import dataclasses
import json
import re
from collections import defaultdict
from types import SimpleNamespace

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from scipy import ndimage, stats
from typer.testing import CliRunner

from geood.calibration import CellMaps, PolygonTable, drift_of, pooled_features, statistic_names, tile_cells
from geood.calibration.exchangeability import Difference, Drift, family_of
from geood.calibration.judgement import verdict_of
from geood.calibration.rates import rate_interval
from geood.calibration.tiled_scoring import ImageSource, prediction_tiles
from geood.calibration.verdict import SceneFacts
from geood.cli.app import app
from geood.datasets.scene_crops import open_scenes
from geood.geo.display import grid_of
from geood.models import ModelBundle, for_inference
from geood.models.calibration_record import CalibrationRecord
from geood.reporting.tables import verdict_bars
from geood.training.calibration import calibrated
from support.bundles import make_bundle
from support.cpu import slow
from support.rasters import picture, write_raster
from support.scenery import config, truth

IMAGES, LEAST_M2 = 8, 2.25
NUMBER = re.compile(r"(?<![\w.])\d[\d,]*\.?\d*(?:e[-+]?\d+)?")


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    """A bundle that is calibrated on a scene whose blocks are told as those of eight images, and scenes."""
    folder = tmp_path_factory.mktemp("ground")
    image = picture(480, 480)
    write_raster(folder / "a.tif", image)
    write_raster(folder / "truth.tif", truth(image), nodata=255)
    crops = open_scenes(config(folder, block_m=40.0, validation=0.5, crops=4))
    bundle = dataclasses.replace(make_bundle(folder / "bare.safetensors"), resolution=crops.resolution_m)
    bundle = calibrated(bundle, crops)
    record = bundle.record
    shares = {"spread": tuple(tuple(0.1 for _ in row) for row in record.spread)}
    shares |= {"block_image": tuple(i % IMAGES for i in range(record.blocks))}
    dataclasses.replace(bundle, record=record.model_copy(update=shares)).save(folder / "model.safetensors")
    array = picture(200, 270, seed=5)
    array[:, 40:90, 100:170] = 0
    write_raster(folder / "alike.tif", array, nodata=0)
    write_raster(folder / "dark.tif", np.where(array > 0, array // 3 + 1, 0).astype(np.uint8), nodata=0)
    write_raster(folder / "bare.tif", array, nodata=0, transform=Affine.identity(), crs=None)
    return folder


def test_false_polygons_are_counted_on_the_grid_of_images_that_are_finer_than_the_model(tmp_path):
    image = picture(320, 320)
    write_raster(tmp_path / "a.tif", image)
    write_raster(tmp_path / "truth.tif", truth(image), nodata=255)
    crops = open_scenes(config(tmp_path, block_m=40.0, validation=0.5, crops=4, resolution=1.0))
    assert crops.resolution_m == pytest.approx(2 * grid_of(tmp_path / "a.tif").resolution_m)
    bundle = dataclasses.replace(make_bundle(tmp_path / "bare.safetensors"), resolution=crops.resolution_m)
    record = calibrated(bundle, crops).record
    assert record.least_px == (1, 4, 8, 16, 32, 64, 128, 256) and record.pixel_m == pytest.approx(0.5, rel=1e-2)
    assert record.km2 == pytest.approx(record.pixels * 0.25e-6, rel=1e-2) and sum(record.polygons[0])
    table = PolygonTable.of(record)
    assert table.at_budget(1e6, 9.1) in record.thresholds
    counted = [table.at(record.thresholds[0], least).rate * record.km2 for least in (0.0, 1.1, 63.0, 65.0)]
    assert counted == pytest.approx([record.polygons[row][0] for row in (0, 1, 6, 7)]) and counted[0] > counted[1]


def measured(bundle, scene, scores, classes):
    """Cells (n, S) from the scene, the rasters that were written of it, and the network's features."""
    with rasterio.open(scene) as file:
        pixels, known = file.read(), file.dataset_mask() > 0
    source, found = ImageSource(pixels, known), []
    channel = np.full(256, 255, np.uint8)
    channel[list(bundle.class_ids)] = np.arange(len(bundle.class_ids))
    for tile in prediction_tiles(*known.shape, 1.0, bundle):
        image, valid = source.read(tile.read)
        scaled = bundle.bands.scale(image, valid)
        with torch.inference_mode():
            features = pooled_features(for_inference(bundle).infer(torch.from_numpy(scaled[None])).features)[0].numpy()
        inside = tile.write.slices
        maps = CellMaps(scaled, scores[inside], channel[classes[inside]], features, len(bundle.class_ids))
        found.append(tile_cells(maps, tile, known[inside], scale=1.0))
    return np.concatenate(found)


def false_polygons(record, threshold, least_px, km2):
    """False polygons per km2 of a record at a threshold, and the 90 % interval for a scene of `km2`, by definition."""
    at = np.searchsorted(record.thresholds, threshold, "right") - 1
    row = np.flatnonzero(np.array(record.least_px) <= least_px)[-1]
    count, images = record.polygons[row][at], len(set(record.block_image))
    mean = max(count, 0.5) / record.km2 * km2
    more = mean**2 * (record.spread[row][at] * (1 + 1 / images) + 1 / max(count, 0.5))
    law = stats.nbinom(mean**2 / more, mean / (mean + more))
    return count / record.km2, law.ppf(0.05) / km2, law.ppf(0.95) / km2


def figures(bundle, folder, name, threshold, *, promised):
    """Every figure that may be told of a map, by definition, from what was written."""
    with rasterio.open(folder / f"{name}.tif") as file:
        score = file.read(1)
    with rasterio.open(folder / f"{name}.classes.tif") as file:
        classes = file.read(1)
    known, record = np.isfinite(score), bundle.record
    side = grid_of(folder / f"{name}.tif").resolution_m
    least_px = round(LEAST_M2 / side**2) if side else 0
    parts, count = ndimage.label(known & (np.nan_to_num(score, nan=-np.inf) > threshold), np.ones((3, 3)))
    polygons = int((np.bincount(parts.ravel(), minlength=count + 1)[1:] >= max(1, least_px)).sum())
    found = {
        "px": int(known.sum()),
        "polygons": polygons,
        "threshold": threshold,
        "above": (score[known] > threshold).mean(),
    }
    if side:
        found |= {"km2": known.sum() * side**2 / 1e6, "per km2": polygons / (known.sum() * side**2 / 1e6)}
    if promised and threshold >= record.thresholds[0]:
        at = np.searchsorted(record.thresholds, threshold, "right") - 1
        above, pixels = np.array(record.above)[:, at], np.array(record.block_px)
        blocks = known.sum() * (side / record.pixel_m if side else 1.0) ** 2 / pixels.mean()
        low, high = rate_interval(above, pixels, np.array(record.block_image), blocks=blocks)
        found |= {"promised": above.sum() / pixels.sum(), "low": low, "high": high}
        found |= {"at most": ((above / pixels).sum() + 1) / (len(pixels) + 1)}
        if side:
            false = false_polygons(record, threshold, least_px, found["km2"])
            found |= dict(zip(("false", "false low", "false high"), false, strict=True))
    names = statistic_names(bundle.bands.names, len(bundle.class_ids))
    cells = measured(bundle, folder.parent / f"{name}.tif", score, classes)
    drift = drift_of(cells, record, names=names)
    return found | {"distance": drift.distance, "p": drift.p}, differences(cells, record, names)


def differences(cells, record, names):
    """Texts of the figures of which words on what differs may consist, by family of statistics."""
    assert names == record.statistics
    ground, texts = np.array(record.cells), defaultdict(set)
    scene, usual = cells.mean(0, dtype=float), ground.mean(0)
    least = {"level": 0.01, "contrast": 0.01, "likeness": 0.02, "detail": 0.05, "noise": 0.1}
    least |= {"class": 0.05, "dark": 0.01, "order": 0.02}
    for i, name in enumerate(names):
        if name.startswith("within "):
            continue  # never told by itself
        kind, gap = name.split()[0], abs(scene[i] - usual[i])
        apart = gap / max(ground[:, i].std(), least.get(kind, 1e-3))
        ways = {
            "level": [f"{gap:.2f}"],
            "contrast": [f"{scene[i] / max(usual[i], 1e-6):.1f}"],
            "class": [f"{100 * scene[i]:.0f}", f"{100 * usual[i]:.0f}"],
        }
        texts[family_of(name)].update(ways.get(kind, [f"{np.exp(gap):.1f}", f"{apart:.1f}"]))
    return texts


def digits(value):
    """A figure as it is printed: three digits that count."""
    return f"{float(f'{value:.3g}'):,.0f}" if value >= 1000 else f"{value:.3g}"


def expected(found, told):
    """The printed lines that hold figures of a map, from figures found again."""
    share = {key: f"{100 * found[key]:.3g} %" for key in ("above", "promised", "low", "high") if key in found}
    area = f"{found['km2']:.4g} km2" if "km2" in found else f"{found['px']:,} pixels"
    promise, false = "nothing promised", ""
    if "promised" in found:
        promise = f"{share['promised']} promised ({share['low']} to {share['high']} in such a scene)"
    if "false" in found:
        each = [digits(found[key]) for key in ("false", "false low", "false high")]
        false = f", {each[0]} false ones expected ({each[1]} to {each[2]} in such a scene)"
    lines = [
        f"scene      {told.scene}: {found['px']:,} pixels scored",
        f"polygons   {told.polygons}: {found['polygons']} above {found['threshold']:.4g}",
        f"above      {share['above']} of {area}, {promise}",
    ]
    if "per km2" in found:
        lines.append(f"per km2    {digits(found['per km2'])} polygons{false}")
    if "promised" in found and found["above"] > 3 * max(found["promised"], found["high"]):
        times = f"{found['above'] / found['promised']:.0f} times what is promised"
        lines.append(f"WARNING    {share['above']} of this scene lies above the threshold, {times}")
    return lines


FIELDS = {  # of a verdict, and what each is called among figures found again
    "threshold": "threshold",
    "valid_px": "px",
    "km2": "km2",
    "above": "above",
    "promised": "promised",
    "low": "low",
    "high": "high",
    "at_most": "at most",
    "polygons_per_km2": "per km2",
    "false_per_km2": "false",
    "false_low": "false low",
    "false_high": "false high",
    "p": "p",
    "distance": "distance",
}


def check_json(rows, found, scene):
    """Compare what `predict` wrote as JSON with figures found again; every number has to be one of them."""
    [row] = rows
    assert (row["scene"], row["anomalies"], row["failed_tiles"]) == (str(scene), found["polygons"], 0)
    fields = row["verdict"]
    numbers = {name for name, value in fields.items() if isinstance(value, (int, float)) and name != "relative"}
    assert numbers == {name for name, key in FIELDS.items() if key in found}
    for name in numbers:
        assert fields[name] == pytest.approx(found[FIELDS[name]], rel=1e-5, abs=1e-9), name
    assert fields["threshold"] == found["threshold"]


@dataclasses.dataclass(frozen=True)
class Told:
    """Names of a scene and of its polygons, as they are printed."""

    scene: str
    polygons: str


@pytest.mark.parametrize(
    ("scene", "options"),
    [
        ("alike", []),
        ("dark", ["--on-drift", "relative"]),
        *slow(("dark", []), ("bare", []), ("alike", ["--threshold", "0"]), ("alike", ["--top", "2"])),
    ],
)
def test_every_figure_that_is_printed_is_found_again_in_what_was_written(ground, scene, options):
    folder = ground / f"out{scene}{''.join(options)}"
    folder.mkdir()
    path, out = ground / f"{scene}.tif", folder / f"{scene}.gpkg"
    line = ["predict", str(path), "--out", str(out), "--model", str(ground / "model.safetensors")]
    line += ["--set", f"predict.min_area_m2={LEAST_M2}", "--json", str(folder / "told.json"), *options]
    shown = CliRunner().invoke(app, line, catch_exceptions=False).output
    bundle = ModelBundle.load(ground / "model.safetensors", tell=False)
    with rasterio.open(folder / f"{scene}.tif") as file:
        threshold = float(file.tags()["GEOOD_THRESHOLD"])
    found, differs = figures(bundle, folder, scene, threshold, promised="relative" not in options)
    if "--top" in options:
        assert found["polygons"] > 2 and found.pop("per km2")  # the others were not cut, so there is no figure of all
        found["polygons"] = 2
    assert found["polygons"] == len(gpd.read_file(out, layer="anomalies"))
    check_json(json.loads((folder / "told.json").read_text()), found, path)
    lines = shown.splitlines()
    for text in expected(found, Told(str(path), str(out))):
        assert text in lines
        lines.remove(text)
    [likeness] = [text for text in lines if text.startswith("likeness")]
    assert ("unlike" in likeness) == (found["distance"] > 1) == (scene == "dark")
    if "unlike" not in likeness:
        assert f"({found['distance']:.2f} of the distance that would be too far)" in likeness
    for part in likeness.split(": ", 1)[1].split("), ") if "unlike" in likeness else ():
        family = next((kind for word, kind in WORDS.items() if word in part), None)
        assert {*NUMBER.findall(part)} <= differs[family]
    [budget] = [text for text in lines if text.startswith("budget")]
    assert {*NUMBER.findall(budget)} <= {f"{100 * found['above']:.3g}"}
    rest = [text for text in lines if str(ground) not in text and text not in (likeness, budget)]
    assert not NUMBER.findall(" ".join(rest)), "a figure that nothing explains"


WORDS = {"bands": "light", "shadows": "light", "contrast": "light", "detail": "texture", "grain": "texture"}
WORDS |= {"cover": "cover", "content": "features", "scores": "score"}


def record_of(images, thresholds, above):
    """A record of blocks of 1,000 pixels in these images, with what lies above each threshold."""
    return CalibrationRecord(
        kind="jsd",
        pixels=len(images) * 1000,
        pixel_m=0.5,
        intervals={},
        thresholds=thresholds,
        block_px=(1000,) * len(images),
        block_image=tuple(images),
        above=above,
    )


@pytest.fixture
def judge():
    """A function of pixels above a threshold, of 100,000, and of changes: the verdict by a record of 20 blocks."""
    record = record_of([i % 5 for i in range(20)], (0.5, 0.9), ((10, 0),) * 20)
    settings = SimpleNamespace(score=SimpleNamespace(kind="jsd"), predict=SimpleNamespace(connectivity=8))

    def judge(above, *, differs=(), threshold=0.95, record=record):
        bundle = SimpleNamespace(thresholds={"0.01": 0.5}, record=record, config=settings, class_names={})
        facts = SceneFacts(100_000, above, 0.025, None, threshold, LEAST_M2, 0.5)
        return verdict_of(facts, bundle, Drift(0.5, 0.4, differs, 50))

    return judge


UNLIKE = (Difference("level red", 0.5, 0.1, 2.0),)


@pytest.mark.parametrize("above", [1, 3000])
@pytest.mark.parametrize("differs", [(), UNLIKE])
def test_of_little_above_all_calibration_ground_nothing_is_known(judge, above, differs):
    verdict = judge(above, differs=differs)
    assert (verdict.answer, verdict.high, verdict.loud) == ("cannot be told", None, False)
    assert "no pixel of calibration ground lies above the threshold" in verdict.why
    lower = judge(above, differs=differs, threshold=0.7)
    assert lower.high == pytest.approx(0.01) and not lower.loud
    assert judge(4000, differs=differs, threshold=0.7).loud


def test_above_all_calibration_ground_nothing_is_as_promised_and_more_than_is_guaranteed_is_not(judge):
    assert judge(0).answer == "holds" and not judge(0).loud
    assert judge(0, differs=UNLIKE).why.startswith("no more lies above than the promise allows, but")
    assert judge(0).at_most == pytest.approx(1 / 21)
    much, most = judge(5000, differs=UNLIKE), judge(20_000)
    assert (much.answer, much.loud) == ("does not hold", False)
    assert (most.answer, most.loud) == (
        "cannot be told",
        True,
    ) and "more lies above than the promise allows" in most.why
    assert "WARNING    20 % of this scene lies above the threshold, and 0 is promised" in most.lines()


def test_less_above_than_is_promised_is_not_more_where_all_calibration_pixels_above_lie_in_one_image(judge):
    record = record_of(range(40), (0.5,), ((40,), *((0,),) * 39))
    verdict = judge(50, record=record)
    assert (verdict.promised, verdict.high) == (0.001, 0.0)
    assert verdict.answer == "holds" and judge(50, record=record, differs=UNLIKE).answer == "cannot be told"
    assert judge(101, record=record, differs=UNLIKE).answer == "does not hold"
    outside = [verdict_bars(judge(above, record=record))[0].outside for above in (50, 101)]
    assert outside == [False, True]


def test_a_scene_that_may_lie_so_far_by_chance_is_not_called_like_without_a_word(judge):
    near, far = (dataclasses.replace(judge(0), distance=distance) for distance in (0.61, 1.14))
    assert (
        "likeness   like the ground it was calibrated on (0.61 of the distance that would be too far)" in near.lines()
    )
    [line] = [line for line in far.lines() if line.startswith("likeness")]
    assert line.endswith("calibrated on, as far as so few squares tell (1.14 of the distance that would be too far)")


def test_the_threshold_of_a_verdict_is_told_exactly_for_another_cut(judge):
    assert judge(10, threshold=0.92675781254).fields()["threshold"] == 0.92675781254
