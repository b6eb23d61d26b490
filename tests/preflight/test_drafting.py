"""Laws of a first config: it loads, says what is in the files, and holds out what is asked for."""

from dataclasses import replace
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import yaml
from affine import Affine
from shapely.geometry import LineString, box

from geood.calibration import LEAST_BLOCKS
from geood.cli.process import _run
from geood.config.loading import load_config
from geood.datasets import labelled_blocks
from geood.errors import ConfigError, DataError, OutputError
from geood.preflight import drafting, settings, trial
from geood.preflight.checking import check_config
from geood.preflight.config_text import _near, config_lines, config_text, write_config
from geood.preflight.drafting import Inputs, Wishes, _check_wishes, _is_none, first_config, patterns
from geood.preflight.found_classes import FoundClass, FoundLabels
from geood.preflight.imagery import look_at
from geood.preflight.machine import Machine, Start
from geood.preflight.settings import propose, smaller_crops
from geood.training.pace import Pace, StagePace
from support.rasters import UTM, picture, write_raster


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two scenes of half a metre with labels of the classes 0 to 2, and 7 in one corner."""
    folder = tmp_path_factory.mktemp("ground")
    for name, seed in (("a", 0), ("b", 1)):
        image = picture(320, 320, seed=seed)
        ids = (np.arange(320)[:, None] // 107 + np.zeros((1, 320), int)).astype("uint8")
        ids[:40, :40] = 7
        write_raster(folder / f"{name}.tif", image)
        write_raster(folder / f"{name}_labels.tif", ids)
    return folder


@pytest.fixture(autouse=True)
def light(monkeypatch):
    """Every draft starts from a network that is fast to time."""
    monkeypatch.setattr(drafting, "best_start", lambda machine: Start("resnet10t", None))
    monkeypatch.setattr(drafting, "this_machine", lambda: Machine(None, 2))
    monkeypatch.setattr(trial, "TRIAL_CROPS", 20)
    monkeypatch.setattr(trial.Trial, "pace", lambda self: Pace((StagePace("segmenter", 10, 0.5, 1.0),), 0.01, False))


@pytest.fixture(scope="module")
def drafted(folder):
    patch = pytest.MonkeyPatch()
    with patch.context() as context:
        context.setattr(drafting, "best_start", lambda machine: Start("resnet10t", None))
        context.setattr(drafting, "this_machine", lambda: Machine(None, 2))
        context.setattr(trial, "TRIAL_CROPS", 20)
        wishes = Wishes(("7",), {0: "land", 2: "water"})
        sources = Inputs.of([str(folder)], [str(folder / "*_labels.tif")], wishes)
        return sources, first_config(sources, wishes)


def test_a_first_config_loads_and_says_what_was_found(folder, drafted, tmp_path):
    sources, made = drafted
    assert [path.name for path in sources.imagery.paths] == ["a.tif", "b.tif"]  # labels in the folder are no images
    assert made.config.data.classes == {0: "land", 1: "class_1", 2: "water"} and made.config.data.anomaly == [7]
    write_config(made, tmp_path / "a first.yaml")
    text = (tmp_path / "a first.yaml").read_text(encoding="utf-8")
    loaded = load_config(tmp_path / "a first.yaml")
    assert loaded == made.config
    shares = {found.class_id: found.share for found in sources.labels.classes}
    assert sum(shares.values()) == pytest.approx(1) and shares[7] == pytest.approx(1600 / 320**2)
    for said in (
        "33.4 %",
        "guessed: the name",
        "held out: id 7 (1.56 %)",
        "2 scenes, 0.0512 km2 at 0.5 m",
        f"geood check '{tmp_path / 'a first.yaml'}'",
    ):
        assert said in text, said
    with pytest.raises(OutputError, match="exists"):
        write_config(made, tmp_path / "a first.yaml")


def test_paths_are_relative_beside_the_data_alone(folder, drafted, tmp_path):
    _, made = drafted
    assert _near(folder, folder / "x.yaml") == "." and _near(folder, folder.parent / "x.yaml") == folder.name
    assert _near(folder, tmp_path / "deep" / "down" / "x.yaml") == str(folder)
    assert 'root: "."' in config_text(made, folder / "x.yaml")


def test_the_verb_writes_a_config_and_asks_nothing(folder, tmp_path, capsys):
    out = tmp_path / "aerial.yaml"
    given = ["init", "--images", str(folder), "--labels", str(folder / "*_labels.tif"), "--out", str(out), "--yes"]
    assert _run([*given, "--hold-out", "7"], debug=False) == 0
    said = capsys.readouterr().out
    assert "class      7: 1.56 % of the labelled ground" in said and f"geood train {out}" in said
    assert load_config(out).data.anomaly == [7]
    assert _run(given, debug=False) == 2 and "exists" in capsys.readouterr().err
    assert _run([*given, "--overwrite", "--hold-out", "boat"], debug=False) == 2
    assert "--hold-out boat: no such class in the labels; they hold 0, 1, 2, 7" in capsys.readouterr().err


def test_too_few_classes_are_refused(folder, tmp_path):
    sources = Inputs.of([str(folder / "?.tif")], [str(folder / "*_labels.tif")], Wishes())
    with pytest.raises(ConfigError, match=r"leave 1 class to be learned \(2\)"):
        first_config(sources, Wishes(("0", "1", "7")))
    with pytest.raises(DataError, match="every image is named by --labels"):
        Inputs.of([str(folder)], [str(folder)], Wishes())


def test_what_no_label_fulfils_is_refused_and_names_that_were_given_can_be_held_out(folder, tmp_path, capsys):
    given = ["init", "--images", str(folder), "--labels", str(folder / "*_labels.tif"), "--yes"]
    given += ["--out", str(tmp_path / "a.yaml")]
    for more, said in (
        (["--name", "30=water"], "--name 30=water: the labels hold no 30, but 0, 1, 2, 7"),
        (["--label-layer", "x"], "--label-layer is for vector files"),
        (["--label-attribute", "x"], "--label-attribute is for vector files"),
    ):
        assert _run([*given, *more], debug=False) == 2 and said in capsys.readouterr().err
    assert _run([*given, "--name", "7=Boat", "--hold-out", "boat"], debug=False) == 0
    assert load_config(tmp_path / "a.yaml").data.anomaly == {7: "Boat"}, "a name that was given is kept"
    assert "class      7 Boat: 1.56 % of" in capsys.readouterr().out
    assert "held out: Boat (1.56 %)" in (tmp_path / "a.yaml").read_text(encoding="utf-8")
    assert _run([*given, "--overwrite", "--name", "7=boat", "--name", "0=boat", "--hold-out", "7"], debug=False) == 0
    assert load_config(tmp_path / "a.yaml").data.anomaly == [7], "a name that a class has is none of an anomaly"
    left, bottom, right, top = bounds_of(folder / "a.tif")
    rows = {
        "kind": ["roof", "road"],
        "geometry": [box(left, bottom, left + 9, top), box(right - 9, bottom, right, top)],
    }
    gpd.GeoDataFrame(rows, crs=UTM).to_file(tmp_path / "l.gpkg")
    with pytest.raises(ConfigError, match="--name is for labels that hold numbers, and these hold names, such as road"):
        Inputs.of([str(folder / "a.tif")], [str(tmp_path / "l.gpkg")], Wishes(names={0: "x"}))
    some = (FoundClass(0, None, 1, 0.5, None), FoundClass(1, None, 1, 0.5, None))
    sample = FoundLabels((Path("a.tif"), Path("b.tif")), some, vector=False, counted=1)
    _check_wishes(Wishes(names={7: "boat"}), sample)  # which the other file may hold
    with pytest.raises(ConfigError, match="the labels hold no 7"):
        _check_wishes(Wishes(names={7: "boat"}), replace(sample, counted=2))
    masks = FoundLabels((), (FoundClass(0, None, 1, 1.0, None),), vector=False, masks=True)
    _check_wishes(Wishes(names={0: "land", 1: "boat", 255: "boat"}), masks)


def test_labels_of_names_and_numbers_are_refused(folder, tmp_path):
    left, bottom, right, top = bounds_of(folder / "a.tif")
    for name, values in (("l", ["roof", "road"]), ("m", [1, 2])):
        rows = {"kind": values, "geometry": [box(left, bottom, left + 9, top), box(right - 9, bottom, right, top)]}
        gpd.GeoDataFrame(rows, crs=UTM).to_file(tmp_path / f"{name}.gpkg")
    with pytest.raises(DataError, match="classes as names, such as road, and as numbers, such as 1"):
        Inputs.of([str(folder / "a.tif")], [str(tmp_path / "*.gpkg")], Wishes())


def test_no_name_in_a_file_becomes_a_key_of_the_config(folder, drafted, tmp_path):
    """Names of bands stand in comments and names of classes in values, whatever they hold."""
    _, made = drafted
    bands = ("red", "green\ntrain:\n  seed: 666\n#", "blue\x85x")
    odd = "a\u2028b\x85c\x7f\udcff"
    tree = made.tree | {"data": made.tree["data"] | {"label_attribute": odd}}
    made = replace(made, imagery=replace(made.imagery, bands=bands), classes={**made.classes, 0: odd}, tree=tree)
    text = config_text(made, tmp_path / "x\ny.yaml")
    (tmp_path / "x.yaml").write_text(text, encoding="utf-8")
    loaded = yaml.safe_load(text)
    assert loaded["train"] == made.tree["train"] and list(loaded) == ["version", *made.tree]
    assert loaded["data"]["classes"][0] == odd and loaded["data"]["label_attribute"] == odd


def test_masks_of_0_and_255_are_two_classes(folder, tmp_path):
    mask = np.zeros((320, 320), "uint8")
    mask[100:200] = 255
    for name in "ab":
        write_raster(tmp_path / f"{name}.tif", mask)
    made = first_config(Inputs.of([str(folder / "?.tif")], [str(tmp_path)], Wishes()), Wishes())
    assert made.config.data.label_ids == {255: 1} and made.config.data.classes == {0: "background", 1: "class_1"}


def test_polygons_with_ids_choose_their_attribute(folder, tmp_path):
    left, bottom, right, top = bounds_of(folder / "a.tif")
    middle = (bottom + top) / 2
    halves = [box(left, bottom, right, middle), box(left, middle, right, top)]
    rows = {"name": ["x", "y"], "class": [1, 2], "geometry": halves}
    gpd.GeoDataFrame(rows, crs=UTM).to_file(tmp_path / "l.gpkg")
    sources = Inputs.of([str(folder / "a.tif")], [str(tmp_path / "l.gpkg")], Wishes())
    assert sources.labels.attribute == "class" and sources.labels.chosen
    made = first_config(sources, Wishes())
    assert made.config.data.label_attribute == "class" and set(made.config.data.classes) == {1, 2}
    assert "label_attribute" in config_text(made, tmp_path / "x.yaml")


def test_two_layers_are_written_into_the_config_and_checked_together(folder, tmp_path):
    left, bottom, right, top = bounds_of(folder / "a.tif")
    middle = (bottom + top) / 2
    halves = {"Class": ["field", "road"], "geometry": [box(left, bottom, right, middle), box(left, middle, right, top)]}
    gpd.GeoDataFrame(halves, crs=UTM).to_file(tmp_path / "l.gpkg", layer="cover")
    track = {"class": ["track"], "geometry": [LineString([(left, middle), (right, middle)])]}
    gpd.GeoDataFrame(track, crs=UTM).to_file(tmp_path / "l.gpkg", layer="tracks")
    said = Inputs.of([str(folder / "a.tif")], [str(tmp_path / "l.gpkg")], Wishes()).lines()
    [told] = [text for label, text in said if label == "note" and "not read" in text]
    assert told.startswith("layers that are not read: tracks (1 LineString); name each that holds classes with")
    wishes = Wishes(layers=("cover", "tracks"))
    made = first_config(Inputs.of([str(folder / "a.tif")], [str(tmp_path / "l.gpkg")], wishes), wishes)
    write_config(made, tmp_path / "x.yaml")
    config = load_config(tmp_path / "x.yaml")
    assert config.data.label_layer == ["cover", "tracks"] and config.data.label_buffer_m == 3
    lines = list(check_config(config, tmp_path / "seen.png"))
    classes = [text.split(":")[0] for label, text in lines if label == "class"]
    assert classes == ["0 field", "1 road", "2 track"], "all layers are looked at"
    drawn = [text for label, text in Inputs.of([str(folder / "a.tif")], [str(tmp_path / "l.gpkg")], wishes).lines()]
    share = 988 / (160 * 160 + 988)  # 160 m with 3 m on each side, and its round ends
    [found] = [text for text in drawn if text.startswith("track: ")]
    assert float(found.split()[1]) == pytest.approx(100 * share, rel=0.01), "widened lines have ground"
    assert not [text for label, text in lines if "rare" in text]


def test_names_beside_the_labels_are_taken_and_those_given_win(folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    entries = "".join(f"<Category>{name}</Category>" for name in ("land", "road", "void", "", "", "", "", "boat"))
    text = f"<PAMDataset><PAMRasterBand><CategoryNames>{entries}</CategoryNames></PAMRasterBand></PAMDataset>"
    (tmp_path / "a_labels.tif.aux.xml").write_text(text)
    wishes = Wishes(("boat",), {1: "street"})
    sources = Inputs.of([str(tmp_path)], [str(tmp_path / "*_labels.tif")], wishes)
    assert ("class", "1 street: 33.4 % of the labelled ground, 0.0171 km2") in sources.lines()
    made = first_config(sources, wishes)
    assert made.config.data.classes == {0: "land", 1: "street"} and made.config.data.anomaly == {7: "boat"}
    text = config_text(made, tmp_path / "first.yaml")
    assert "named beside the labels" in text and "# left out: void" in text and "held out: boat" in text
    assert not any("without a name" in text for _, text in config_lines(made))


def test_ids_without_a_name_are_told_with_the_way_to_name_them(drafted):
    _, made = drafted
    assert ("note", "classes without a name: 1; name them by --name 1=NAME, or in the config") in config_lines(made)


def test_the_time_expected_counts_the_crops_that_are_screened(drafted):
    _, made = drafted
    made = replace(made, pace=replace(made.pace, read_s=7200 / made.config.data.crops))
    [said] = [text for label, text in config_lines(made) if label == "expected" and text.startswith("On ")]
    assert "2.0 h of it for screening crops" in said
    assert any(label == "shorter" for label, _ in config_lines(made)) is not made.pace.on_gpu


def test_shapes_of_one_named_class_stand_on_a_background(folder, tmp_path):
    left, bottom, right, top = bounds_of(folder / "a.tif")
    rows = {
        "kind": ["Roof", "roof "],
        "geometry": [box(left, bottom, left + 60, top), box(right - 9, bottom, right, top)],
    }
    gpd.GeoDataFrame(rows, crs=UTM).to_file(tmp_path / "l.gpkg")
    made = first_config(Inputs.of([str(folder / "a.tif")], [str(tmp_path / "l.gpkg")], Wishes()), Wishes())
    assert made.config.data.classes == {0: "Roof", 1: "background"} and made.config.data.background == "background"
    write_config(made, tmp_path / "x.yaml")
    assert load_config(tmp_path / "x.yaml").data == made.config.data


def test_shapes_that_cover_more_than_the_images_are_told(folder, tmp_path):
    left, bottom, right, top = bounds_of(folder / "a.tif")
    rows = {"kind": ["roof", "road"], "geometry": [box(left, bottom, right, top), box(left, bottom, right + 500, top)]}
    gpd.GeoDataFrame(rows, crs=UTM).to_file(tmp_path / "l.gpkg")
    said = Inputs.of([str(folder / "a.tif")], [str(tmp_path / "l.gpkg")], Wishes()).lines()
    [told] = [text for label, text in said if label == "note" and "the shapes cover" in text]
    assert told.startswith("the shapes cover 0.131 km2, and the images 0.0256 km2: ")


def bounds_of(path):
    with rasterio.open(path) as file:
        return tuple(file.bounds)


def test_patterns_name_their_files_and_no_others(tmp_path):
    images = [tmp_path / f"t{i}.tif" for i in range(20)]
    labels = [tmp_path / f"t{i}_labels.tif" for i in range(20)]
    for path in (*images, *labels):
        path.touch()
    assert patterns(labels, tmp_path, apart=images) == ["*_labels.tif"]
    assert patterns(images, tmp_path, apart=labels) == ["*[!s].tif"]
    (tmp_path / "u.tif").touch()  # named by neither
    assert patterns(images, tmp_path, apart=labels) == sorted(path.name for path in images)
    assert patterns(images[:3], tmp_path, apart=labels) == ["t0.tif", "t1.tif", "t2.tif"]
    assert patterns(labels, Path(tmp_path.anchor), apart=images) == [(tmp_path / "*_labels.tif").as_posix()]


def test_images_and_labels_may_lie_on_several_drives(folder, monkeypatch):
    def refuse(paths):
        raise ValueError("paths don't have the same drive")

    monkeypatch.setattr(drafting.os.path, "commonpath", refuse)
    assert Inputs.of([str(folder)], [str(folder / "*_labels.tif")], Wishes()).root == Path(folder.anchor)


def test_patterns_name_files_of_folders_side_by_side(tmp_path):
    images = [tmp_path / "x" / folder / f"t{i}.tif" for folder in ("east", "west") for i in range(9)]
    labels = [path.with_name(f"{path.stem}_labels.tif") for path in images]
    for path in (*images, *labels):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert patterns(labels, tmp_path, apart=images) == ["x/*/*_labels.tif"]
    assert patterns(images, tmp_path / "x", apart=labels) == ["*/*[!s].tif"]
    (tmp_path / "x" / "north").mkdir()
    (tmp_path / "x" / "north" / "u.tif").touch()  # named by neither
    assert (
        len(patterns(images, tmp_path, apart=labels))
        == 18
        == len(patterns(images[:17] + labels[:1], tmp_path, apart=[]))
    )


@pytest.mark.parametrize(
    ("side_m", "px", "km2", "times"),
    [(0.5, 1024, 1.0, 1), (0.075, 1024, 1.0, 4), (0.075, 400, 1.0, 2), (0.0625, 512, 1.0, 3), (0.075, 1024, 0.02, 2)],
)
def test_fine_pixels_are_read_coarser_until_a_crop_shows_a_house(folder, side_m, px, km2, times):
    """As far as crop and blocks fit; in units of the CRS, which need not be metres on the ground."""
    found = {"shortest_px": px, "km2": km2, "resolution_m": side_m, "resolution": 2 * side_m}
    imagery = replace(look_at([folder / "a.tif"]), **found)
    made = propose(imagery, Machine(None, 8), Start("resnet18", None))
    assert (made.resolution or imagery.resolution) == pytest.approx(times * imagery.resolution)
    assert made.tree()["data"].get("resolution") == made.resolution and (made.resolution is None) == (times == 1)
    assert made.pixel_m == pytest.approx(times * side_m) and made.crop_px * times <= max(64, 0.75 * px)
    assert made.block_m >= 0.97 * 1.5 * made.crop_px / 0.75 * made.pixel_m


def test_a_coarser_resolution_is_told_beside_its_key(tmp_path):
    for name, west in (("a", 0), ("b", 84)):
        place = Affine(0.07, 0, 500_000 + west, 0, -0.07, 4_600_000)
        write_raster(tmp_path / f"{name}.tif", picture(1200, 1200), transform=place)
        ids = (np.arange(1200)[:, None] // 600 + np.zeros((1, 1200), int)).astype("uint8")
        write_raster(tmp_path / f"{name}_labels.tif", ids, transform=place)
    made = first_config(Inputs.of([str(tmp_path / "?.tif")], [str(tmp_path / "*_labels.tif")], Wishes()), Wishes())
    write_config(made, tmp_path / "x.yaml")
    assert load_config(tmp_path / "x.yaml").data.resolution == 0.14
    assert made.trial.crops.resolution_m == pytest.approx(0.14, rel=1e-3)
    said = (tmp_path / "x.yaml").read_text(encoding="utf-8")
    assert "null: the images' own, at which a crop shows 8.96 m alone" in said and "(17.9 m)" in said


def test_blocks_are_small_enough_for_validation_to_have_an_interval_or_it_is_said(tmp_path, monkeypatch, drafted):
    """Though half of the images has no label, as blocks are counted of what is labelled."""
    monkeypatch.setattr(settings, "CPU_CROP_PX", 64)
    write_raster(tmp_path / "a.tif", picture(1600, 1600))
    ids = (np.arange(1600)[:, None] // 600 + np.zeros((1, 800), int)).astype("uint8")
    write_raster(tmp_path / "a_labels.tif", ids)
    made = first_config(Inputs.of([str(tmp_path / "a.tif")], [str(tmp_path / "a_labels.tif")], Wishes()), Wishes())
    guessed = settings.block_for(made.imagery, made.proposal.crop_px, made.proposal.pixel_m)
    assert made.config.data.block_m < guessed and made.tree["data"]["block_m"] == made.config.data.block_m
    assert labelled_blocks(made.trial.crops.ground, made.config, LEAST_BLOCKS) == LEAST_BLOCKS
    assert not [text for _, text in config_lines(made) if "blocks of validation" in text]
    [text] = [text for label, text in config_lines(drafted[1]) if "blocks of validation" in text]
    assert text.startswith("labelled blocks of validation ground: 1; with fewer than 8 it is not known how far")


def test_a_second_trial_that_fails_leaves_the_first(folder, monkeypatch):
    """One with smaller blocks may leave no crop to validate; the config is as if it had not been tried."""
    tried, real = [], drafting.try_crops

    def once(config):
        tried.append(config.data.block_m)
        if len(tried) > 1:
            raise DataError("none of the validation crops holds a labelled pixel of a class")
        return real(config)

    monkeypatch.setattr(drafting, "try_crops", once)
    monkeypatch.setattr(drafting, "smaller_blocks", lambda proposal, _: replace(proposal, block_m=proposal.block_m / 2))
    images = [str(folder / f"{name}.tif") for name in "ab"], [str(folder / f"{name}_labels.tif") for name in "ab"]
    made = first_config(Inputs.of(*images, Wishes()), Wishes())
    assert tried == [made.config.data.block_m, made.config.data.block_m / 2]
    assert any("blocks of validation" in text for _, text in config_lines(made))
    monkeypatch.setattr(drafting, "smaller_crops", lambda proposal, _: replace(proposal, crop_px=64))
    monkeypatch.setattr(drafting, "FEW_CLEAN", 2.0)
    monkeypatch.setattr(trial.Trial, "with_anomaly", 1.0)
    tried.clear()
    assert first_config(Inputs.of(*images, Wishes()), Wishes()).config == made.config and len(tried) == 3


def test_settings_suit_ground_and_machine(folder):
    imagery = look_at([folder / "a.tif"])
    cpu, gpu = (propose(imagery, Machine(name, 8), Start("resnet18", None)) for name in (None, "H100"))
    assert cpu.crop_px == 128 and gpu.crop_px == 224  # as much as the images allow
    assert cpu.segmenter_steps < gpu.segmenter_steps and gpu.workers == 7
    assert cpu.block_m + 1 >= 1.5 * 128 / 0.75 * 0.5 and cpu.patch_max_px * 2 <= cpu.crop_px
    tuned = propose(imagery, Machine(None, 8), Start("resnet18", "imagenet"))
    assert tuned.encoder_lr_factor < 1 and tuned.segmenter_steps < cpu.segmenter_steps
    small = smaller_crops(cpu, imagery)
    assert small.crop_px == 64 and small.patch_max_px * 2 <= 64 and smaller_crops(small, imagery) is None


def test_what_no_class_may_be_is_left_out():
    values = [(-1, None), (255, None), (0, None), (254, None), (3, "Void"), (4, "road")]
    classes = tuple(FoundClass(class_id, name, 1, 0.1, None) for class_id, name in values)
    labels = FoundLabels((), classes, vector=False, id_names={0: "unlabelled", 254: "road"})
    found = [_is_none(labels, each) for each in classes]
    assert found == [True, True, True, False, True, False]
