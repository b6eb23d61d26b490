"""Laws of components: windows of any size give those of the whole mask, with the statistics of NumPy."""

import numpy as np
import pytest
import rasterio
import rasterio.features
import scipy.ndimage
import shapely
from affine import Affine
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rasterio.windows import Window as RasterioWindow

from geood.errors import ConfigError
from geood.geo.grid import Grid, Window
from geood.polygons.block_windows import is_absent, iter_windows, read_ahead, window_size
from geood.polygons.components import ComponentOptions, Components
from geood.polygons.quantiles import Tail, percentiles
from geood.polygons.rings import rings_from_vertices, to_multipolygons
from geood.polygons.seams import Seams
from geood.polygons.surroundings import OUTSIDE_PX as FAR
from geood.polygons.valid_counts import UNKNOWN


class Raster:
    """An array that is read as a rasterio dataset is; its blocks make the windows."""

    driver, nodata, name = "MEM", None, "memory"

    def __init__(self, array, block=(64, 64)):
        self.array, self.block_shapes = array, [block]

    def read(self, index, window):
        """Return the pixels (h, w), or those of all bands (B, h, w) if `index` is None."""
        bands = self.array if self.array.ndim == 3 else self.array[None]
        part = bands[:, window.row_off :, window.col_off :][:, : window.height, : window.width]
        return part if index is None else part[index - 1]


def components_of(scores, *, threshold=0.5, connectivity=8, window=(64, 64), classes=None, min_px=0):
    """Return all components as dictionaries, sorted by their first pixel."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("geood.polygons.components.window_size", lambda _: window)
        class_raster = None if classes is None else Raster(classes)
        options = ComponentOptions(threshold, connectivity, 0 if classes is None else 3, lambda _: min_px)
        extraction = Components(Raster(scores), class_raster, Grid(*scores.shape, Affine.identity()), options)
        batches = list(extraction)
        late = dict(zip(*(column.tolist() for column in extraction.deferred_counts()), strict=True))
    components = []
    for batch in batches:
        rings = rings_from_vertices(batch.vertices, batch.owner, len(batch.number))
        shapes = to_multipolygons(rings, rings.points.astype(float))
        for i, number in enumerate(batch.number.tolist()):
            component = {
                name: getattr(batch, name)[i]
                for name in ("area_px", "score_mean", "score_max", "score_p95", "valid_px")
            }
            evidence = {name: values[i] for name, values in batch.evidence._asdict().items()}
            component |= {name: None if np.isnan(value) else value for name, value in evidence.items()}
            component |= {"box": batch.box[i].tolist(), "shape": shapes[i]}
            component["valid_px"] = late[number] if component["valid_px"] == UNKNOWN else component["valid_px"]
            components.append(component)
    return sorted(components, key=lambda component: shapely.get_coordinates(component["shape"])[0][::-1].tolist())


def numbered(mask, connectivity):
    return scipy.ndimage.label(mask, np.ones((3, 3)) if connectivity == 8 else None)[0]


def polygons(mask):
    """Polygonize a whole mask with GDAL; make polygons valid where a ring passes a point twice."""
    traced = rasterio.features.shapes(mask.astype(np.uint8), mask=mask, connectivity=4, transform=Affine.identity())
    return {shapely.normalize(shapely.make_valid(shapely.geometry.shape(shape))) for shape, _ in traced}


def assert_as_one_pass(scores, *, threshold=0.5, connectivity=8, classes=None, **options):
    """Check components from windows against the whole raster: exact polygons, statistics as in NumPy."""
    number = numbered(scores > threshold, connectivity)
    components = components_of(scores, threshold=threshold, connectivity=connectivity, classes=classes, **options)
    assert len(components) == number.max()
    for component in components:
        assert component["shape"].is_valid and component["shape"].geom_type == "MultiPolygon"
        here = number == number[rasterio.features.rasterize([component["shape"]], scores.shape) > 0][0]
        parts = shapely.get_parts(component["shape"])
        assert len(parts) == len(polygons(here)) and set(map(shapely.normalize, parts)) == polygons(here)
        values = scores[here].astype(np.float64)
        rows, cols = np.nonzero(here)
        assert component["box"] == [rows.min(), cols.min(), rows.max() + 1, cols.max() + 1]
        assert (component["area_px"], component["score_max"]) == (len(values), values.max())
        assert component["score_mean"] == pytest.approx(values.mean(), rel=1e-12)
        assert component["score_p95"] == pytest.approx(np.percentile(values, 95), rel=1e-12)
        around = scores[max(0, rows.min() - 1) : rows.max() + 2, max(0, cols.min() - 1) : cols.max() + 2]
        assert component["valid_px"] == np.isfinite(around).sum()
        assert_evidence(component, scores, here, threshold=threshold, classes=classes)
    return components


def assert_evidence(component, scores, here, *, threshold, classes):
    """Check the evidence on a component pixel by pixel, by its definition."""
    around, beside = [], 0
    bands = None if classes is None else classes[None] if classes.ndim == 2 else classes

    def inside(row, col):
        return 0 <= row < scores.shape[0] and 0 <= col < scores.shape[1]

    for row, col in zip(*np.nonzero(here), strict=True):
        steps = [(-1, 0), (1, 0), (0, -1), (0, 1)]
        for down, across in steps:
            next_to, far = (row + down, col + across), (row + FAR * down, col + FAR * across)
            outline = not (inside(*next_to) and scores[next_to] > threshold)
            if outline and inside(*far) and np.isfinite(scores[far]) and not scores[far] > threshold:
                around.append(float(scores[far]))
        if bands is not None and bands[0, row, col] != 255:
            near = [bands[0, row + a, col + b] for a, b in steps if inside(row + a, col + b)]
            beside += any(other not in (255, bands[0, row, col]) for other in near)
    assert component["outside"] == (pytest.approx(np.mean(around), rel=1e-12) if around else None)
    if bands is None:
        assert (component["class_id"], component["runner_id"], component["signal_id"]) == (255, 255, 255)
        assert component["on_edge"] is component["margin"] is None
        return
    known = (bands[0] != 255) & here
    assert component["class_id"] == commonest(bands[0][here])
    assert component["on_edge"] == (pytest.approx(beside / known.sum()) if known.any() else None)
    if len(bands) > 1:
        others = bands[1][here & (bands[1] != component["class_id"])]
        margins = bands[2][here & (bands[2] != 255)] / 254
        assert component["runner_id"] == commonest(others)
        assert component["margin"] == (pytest.approx(margins.mean()) if margins.size else None)
        assert component["signal_id"] == commonest(bands[3][here])


def commonest(values):
    return np.bincount(values[values != 255], minlength=1).argmax() if (values != 255).any() else 255


def random_scores(shape, seed, holes):
    rng = np.random.default_rng(seed)
    scores = rng.random(shape, dtype=np.float32)
    scores[rng.random(shape) < holes] = np.nan
    return scores


@given(
    shape=st.tuples(st.integers(1, 17), st.integers(1, 17)),
    window=st.tuples(st.integers(1, 18), st.integers(1, 18)),
    connectivity=st.sampled_from([4, 8]),
    threshold=st.sampled_from([0.15, 0.35, 0.5, 0.65, 0.9]),
    seed=st.integers(0, 10**6),
    holes=st.sampled_from([0, 0.1]),
)
@settings(max_examples=80, deadline=None)
@example(shape=(9, 9), window=(1, 1), connectivity=8, threshold=0.5, seed=0, holes=0.1)
@example(shape=(9, 9), window=(1, 1), connectivity=4, threshold=0.15, seed=1, holes=0)
def test_components_in_windows_are_those_of_the_whole_mask(shape, window, connectivity, threshold, seed, holes):
    scores = random_scores(shape, seed, holes)
    rng = np.random.default_rng(seed)
    classes = np.stack([rng.choice([0, 1, 2, 255], shape), rng.choice([0, 1, 2, 255], shape)])
    more = np.stack([rng.integers(0, 256, shape), rng.choice([0, 1, 255], shape)])
    bands = np.concatenate([classes, more]).astype(np.uint8)[: 4 if seed % 2 else 1]
    assert_as_one_pass(scores, threshold=threshold, connectivity=connectivity, window=window, classes=bands)


def drawn(*rows):
    return np.array([[0.9 if pixel == "#" else 0.1 for pixel in row] for row in rows], np.float32)


# Where merging across seams has gone wrong elsewhere: xarray-spatial #2171, #2172, #2583, #2606, detectree2 #226.
SEAMS = {
    "corner to corner": drawn("##..", "##..", "..##", "..##"),
    "and the other way": drawn("..##", "..##", "##..", "##.."),
    "a corner at a seam": drawn(".....", ".#.#.", "#.#.#", ".#.#."),
    "near but apart": drawn("#.#.", "#.#.", "#.#.", "###."),
    "one on both sides that does not touch": drawn("####", "#...", "#.##", "#..#", "####"),
    "ring": drawn("......", ".####.", ".#..#.", ".#..#.", ".####.", "......"),
    "ring of contacts": drawn("..#..", ".#.#.", "#...#", ".#.#.", "..#.."),
    "hole that meets itself": drawn("#####", "#.###", "##.##", "#####"),
    "islands in holes": drawn("#######", "#.....#", "#.###.#", "#.#.#.#", "#.###.#", "#.....#", "#######"),
    "comb": drawn("#.#.#.#", "#.#.#.#", "#.#.#.#", "#######"),
    "comb upside down": drawn("#######", "#.#.#.#", "#.#.#.#", "#.#.#.#"),
    "zip": drawn("#.#.#", "##.##", "#.#.#", "##.##", ".#.#."),
    "spiral": drawn("#######", "......#", "#####.#", "#...#.#", "#.###.#", "#.....#", "#######"),
    "full": drawn("####", "####", "####"),
    "checkerboard": drawn("#.#.#", ".#.#.", "#.#.#", ".#.#."),
    "one pixel": drawn("#"),
    "nothing": drawn("...", "..."),
}


@pytest.mark.parametrize("scores", SEAMS.values(), ids=SEAMS)
@pytest.mark.parametrize("connectivity", [4, 8])
def test_no_seam_shows(scores, connectivity):
    whole = assert_as_one_pass(scores, connectivity=connectivity)
    for height in (1, 2, 3, 5):
        for width in (1, 2, 3, 4):
            components = components_of(scores, connectivity=connectivity, window=(height, width))
            assert [component | {"shape": component["shape"].wkb} for component in components] == [
                component | {"shape": component["shape"].wkb} for component in whole
            ]


def test_a_component_over_many_windows_is_whole():
    """Check a spiral of 257 x 257 pixels beside some noise, in windows of 16 x 24."""
    side = np.arange(257)
    ring = np.minimum(np.minimum(side[:, None], side), np.minimum(side[::-1, None], side[::-1]))
    scores = (ring % 2 == 0).astype(np.float32)
    for i in range(0, 126, 2):
        scores[i + 1, i] = 0
        scores[i + 2, i + 1] = 1
    scores = np.hstack([scores, random_scores((257, 4), 0, 0.05)])
    components = assert_as_one_pass(scores, connectivity=4, threshold=0.6, window=(16, 24))
    assert max(component["area_px"] for component in components) > 30_000


def test_rings_turn_at_every_vertex_and_shells_are_counterclockwise():
    scores = random_scores((60, 70), 0, 0)
    for component in components_of(scores, window=(7, 9)):
        for ring in shapely.get_rings(shapely.get_parts(component["shape"])):
            steps = np.diff(shapely.get_coordinates(ring), axis=0) != 0
            assert (steps.sum(axis=1) == 1).all() and (steps[1:] != steps[:-1]).all()
        shells = [shapely.get_exterior_ring(part) for part in shapely.get_parts(component["shape"])]
        assert not any(shapely.is_ccw(shells))  # y is the row here, so on screen they are


def test_columns_beyond_65536_are_sorted_correctly():
    scores = np.zeros((3, 70_000), np.float32)
    scores[0, 5:9], scores[1:, 65_530:65_540], scores[:, -3:] = 0.7, 0.8, 0.9
    components = components_of(scores, window=(2, 4096))
    wanted = [[5, 0, 9, 1], [69_997, 0, 70_000, 3], [65_530, 1, 65_540, 3]]
    assert [list(component["shape"].bounds) for component in components] == wanted


@pytest.mark.parametrize("window", [(64, 64), (5, 7)])
def test_components_below_min_px_are_left_out(window):
    scores = random_scores((40, 40), 3, 0)
    every = components_of(scores, threshold=0.7, window=window)
    large = components_of(scores, threshold=0.7, window=window, min_px=4)
    assert [component for component in every if component["area_px"] >= 4] == large
    assert 0 < len(large) < len(every)


def test_a_component_with_too_many_vertices_is_an_error_with_remedies(monkeypatch):
    monkeypatch.setattr("geood.polygons.seams.MAX_VERTICES", 500)
    with pytest.raises(ConfigError, match=r"more than 500 vertices.*--threshold"):
        components_of(random_scores((60, 60), 0, 0), window=(8, 8))


def test_no_component_stays_open():
    with pytest.MonkeyPatch.context() as patch:
        made = []
        patch.setattr("geood.polygons.components.Seams", lambda *a, **k: made.append(Seams(*a, **k)) or made[0])
        components_of(random_scores((50, 50), 0, 0.1), window=(6, 7))
    assert not made[0]._open


# The 95th percentile


@given(st.lists(st.lists(st.floats(0.25, 4, width=32), min_size=1), min_size=1, max_size=5))
@settings(deadline=None)
def test_percentiles_are_those_of_numpy(sets):
    ids = np.repeat(np.arange(len(sets)), [len(one) for one in sets])
    values = np.concatenate(sets).astype(np.float32) - np.float32(2)
    order = np.random.default_rng(0).permutation(len(ids))
    found = percentiles(ids[order], values[order], len(sets))
    assert found == pytest.approx([np.percentile(values[ids == i].astype(float), 95) for i in range(len(sets))])


@given(seed=st.integers(0, 10**6), cuts=st.lists(st.integers(0, 3000), max_size=12), scale=st.floats(1e-3, 1e3))
@settings(max_examples=40, deadline=None)
@pytest.mark.parametrize("large", [1000, 10**6])
def test_the_percentile_of_a_tail_does_not_depend_on_how_it_grew(large, seed, cuts, scale):
    rng = np.random.default_rng(seed)
    values = (rng.gamma(0.5, size=3000) * scale).astype(np.float32) + np.float32(1e-6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("geood.polygons.quantiles.EXACT_BELOW", large)
        patch.setattr("geood.polygons.quantiles.MAX_KEPT", 300)
        tails = [Tail(0.0)]
        for chunk in np.split(values, sorted(cuts)):
            tails[-1].add(chunk)
            if rng.random() < 0.4:
                tails.append(Tail(0.0))
        for other in tails[1:]:
            tails[0].merge(other)
        whole = Tail(0.0)
        whole.add(np.sort(values))
        found, again = tails[0].percentile(), whole.percentile()
    assert tails[0].count == 3000 and found == again
    exact = np.percentile(values.astype(float), 95)
    assert found == pytest.approx(exact, rel=1e-12) if large > 3000 else abs(found - exact) < values.max() / 1000


# Windows


def test_windows_partition_a_grid_and_are_whole_blocks():
    grid = Grid(100, 90, Affine.identity())
    seen = np.zeros((100, 90), int)
    for window in iter_windows(grid, (32, 40)):
        seen[window.slices] += 1
    assert (seen == 1).all()
    assert window_size(Raster(seen, (512, 512))) == (2048, 2048)
    assert window_size(Raster(seen, (1, 100_000))) == (41, 100_000)
    assert window_size(Raster(seen, (5000, 5000))) == (5000, 5000)


def test_reading_ahead_keeps_the_order_and_the_errors():
    all_windows = list(iter_windows(Grid(10, 10, Affine.identity()), (2, 2)))
    assert list(read_ahead(all_windows, lambda window: window)) == all_windows

    def read(window):
        if window.row == 4:
            raise KeyError(window)
        return window

    seen = []
    with pytest.raises(KeyError):
        seen.extend(iter(read_ahead(all_windows, read)))


@pytest.mark.parametrize(("nodata", "absent"), [(float("nan"), True), (0.0, False), (None, False)])
def test_blocks_that_are_not_in_the_file_are_recognized(tmp_path, nodata, absent):
    shape = {"width": 64, "height": 64, "count": 1, "dtype": "float32", "nodata": nodata}
    blocks = {"tiled": True, "blockxsize": 16, "blockysize": 16, "SPARSE_OK": True}
    with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", transform=Affine.scale(2), **shape, **blocks) as file:
        file.write(np.ones((1, 16, 16), np.float32), window=RasterioWindow(32, 16, 16, 16))
    with rasterio.open(tmp_path / "a.tif") as file:
        assert is_absent(file, Window(32, 0, 32, 32)) == absent
        assert not is_absent(file, Window(0, 0, 64, 64)) and not is_absent(file, Window(17, 40, 1, 1))
