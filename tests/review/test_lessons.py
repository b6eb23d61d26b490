"""Lessons of a review: false alarms are inliers, real things nothing, and the same verdicts the same files."""

import shlex
import shutil
import sqlite3
from contextlib import closing

import geopandas
import numpy as np
import pandas as pd
import pyogrio
import pytest
import shapely
from affine import Affine
from typer.testing import CliRunner

from geood.cli.app import app
from geood.config import load_config
from geood.config.loading import to_yaml
from geood.errors import ConfigError, DataError, OutputError
from geood.evaluation.scenes import evaluate_scenes
from geood.review.lessons import feedback
from support.rasters import HALF_METRE, picture, write_raster
from support.reviews import SOUTH, WEST, cells, reviewed, save, square

CONFIG = """\
data:
  images: [scene.tif]
  labels: [labels.tif]
  classes: {0: land, 1: road, 2: roof}
  anomaly: [7]
segmenter: {encoder: resnet10t, outlier: head}
"""
TRANSFORM = HALF_METRE.translation(WEST, SOUTH + 60) * HALF_METRE.scale(0.5, -0.5)


@pytest.fixture
def folder(tmp_path):
    """A config, the scene that was searched, and an empty folder for a review."""
    (tmp_path / "aerial.yaml").write_text(CONFIG)
    write_raster(tmp_path / "scene.tif", picture(120, 300), transform=TRANSFORM)
    write_raster(tmp_path / "labels.tif", np.zeros((120, 300), np.uint8), transform=TRANSFORM)
    return tmp_path


def fed(folder, path, **options):
    return feedback([path], folder / "aerial.yaml", folder / "next.yaml", scenes=[folder / "scene.tif"], **options)


def labels(folder, name="next.reviewed.gpkg"):
    return geopandas.read_file(folder / name)


def test_false_alarms_become_ground_and_real_things_a_set_of_their_own(folder):
    frame = reviewed(
        ["false", "false", "false", "real", "unsure", None], true_class=["Road ", None, "shadow", "boat", None, None]
    )
    made = fed(folder, save(folder / "a.gpkg", frame))
    assert (made.counts["false"], made.counts["stated"], made.counts["real"]) == (3, 1, 1)
    ground = labels(folder)
    assert sorted(ground["class_id"]) == [1, 254, 254, 255]
    assert ground[ground["class_id"] == 255].union_all().equals(frame.geometry.iloc[3])
    held = labels(folder, "next.holdout.gpkg")
    assert sorted(held["class_id"]) == [0, 0, 1, 7]  # taken for land where nobody stated a class
    config = load_config(folder / "next.yaml")
    assert config.data.reviewed_images == [str(folder / "scene.tif")] and config.loss.inliers_by_crop
    assert config.data.images == ["scene.tif"] and config.data.classes[2] == "roof"
    assert load_config(folder / "next.holdout.yaml").data.test_images == [str(folder / "scene.tif")]


def test_a_true_class_that_the_model_does_not_know_is_told_with_those_that_it_does(folder):
    """Of false alarms any, which teach no class; of real things one that looks misspelt, as others are the find."""
    words = ["raod", " Raod", "shadow", "road", None, "rof", "boat", "rof"]
    frame = reviewed(["false"] * 5 + ["real", "real", "unsure"], true_class=words)
    made = fed(folder, save(folder / "a.gpkg", frame))
    assert made.counts["stated"] == 1
    assert made.notes == (
        "true_class 'raod' (road?) in 2 rows, 'shadow' in 1 row, 'rof' (roof?) in 1 row: no class of the model, so "
        "none is stated; it knows land, road, roof",
    )
    assert not fed(folder, save(folder / "b.gpkg", frame.assign(true_class="roof")), overwrite=True).counts["real"]


def test_the_hold_out_set_can_be_evaluated(folder, bundle):
    made = fed(folder, save(folder / "a.gpkg", reviewed(["real", "false"])))
    found = evaluate_scenes(made.holdout, bundle)
    assert found.anomaly_pixels == 400 and found.pixels == 800


def test_a_cell_without_a_miss_is_ground_but_for_what_is_not_decided(folder):
    place = shapely.box(WEST - 5, SOUTH - 5, WEST + 75, SOUTH + 15)
    far = shapely.box(WEST + 80, SOUTH + 20, WEST + 90, SOUTH + 30)
    sample = cells([0, 1, 0], [True, True, False], places=[place, far, far])
    frame = reviewed(["false", "real", None, None, "skip"], true_class=["roof"] + [None] * 4)
    made = fed(folder, save(folder / "a.gpkg", frame, sample))
    assert made.counts["cells"] == 1
    ground = labels(folder)
    assert ground["origin"].tolist() == ["cell", "false", "left out", "left out", "left out"]
    assert ground["class_id"].tolist() == [254, 2, 255, 255, 255]


@pytest.mark.parametrize("crossed", [False, True])
def test_parts_of_a_cut_polygon_on_which_nobody_decided_are_not_known(folder, crossed):
    place = shapely.box(WEST - 5, SOUTH - 5, WEST + 75, SOUTH + 15)
    frame = reviewed(["false", "false"])
    west, east = (shapely.box(WEST + x, SOUTH, WEST + x + 5, SOUTH + 10) for x in (0, 5))
    if crossed:
        east = shapely.Polygon([(WEST + x, SOUTH + y) for x, y in ((5, 0), (10, 10), (10, 0), (5, 10))])
    parts = pd.concat([frame, frame], ignore_index=True)  # the second is copied whole
    parts = parts.set_geometry([west, frame.geometry[1], east, frame.geometry[1]], crs=frame.crs)
    parts["verdict"] = parts["verdict"].where(parts.index < 2, None)
    fed(folder, save(folder / "a.gpkg", parts, cells([0], [True], places=[place])))
    ground = labels(folder)
    assert ground["origin"].tolist()[:3] == ["cell", "false", "false"]
    assert ground.geometry[3:].union_all().equals(shapely.make_valid(east)) and set(ground["class_id"][3:]) == {255}


def test_what_programs_and_hands_leave_of_outlines_is_no_bug(folder):
    """Points and lines beside areas, cells that cross themselves or are gone, areas with heights."""
    frame = reviewed(["false", "false", "real", "real"])
    bow = shapely.Polygon([(WEST, SOUTH), (WEST + 9, SOUTH + 9), (WEST + 9, SOUTH), (WEST, SOUTH + 9)])
    both = shapely.GeometryCollection([frame.geometry[0], shapely.Point(WEST, SOUTH)])
    line = shapely.LineString([(WEST, SOUTH), (WEST + 9, SOUTH)])
    shapes = [both, line, shapely.force_3d(frame.geometry[2]), shapely.MultiPolygon([frame.geometry[3]])]
    whole = shapely.box(WEST - 5, SOUTH - 5, WEST + 75, SOUTH + 15)
    sample = cells([0, 0, 0], [True] * 3, places=[whole, bow, None])
    made = fed(folder, save(folder / "a.gpkg", frame.set_geometry(shapes, crs=32633), sample))
    assert made.counts == {"false": 1, "stated": 0, "real": 2, "cells": 1}
    assert made.notes == ("1 judged polygon without an outline; left out", "2 cells without a valid outline; left out")
    ground = labels(folder)
    assert set(ground.geom_type) == {"Polygon"} and sorted(ground["class_id"]) == [254, 254, 255, 255]


def test_scenes_that_are_not_of_the_polygons_are_refused_or_told(folder):
    """Else the next training would meet no verdict, and end with another word, or learn nothing."""
    path = save(folder / "a.gpkg", reviewed(["false", "real", None]))
    far = write_raster(folder / "far.tif", picture(120, 300), transform=Affine.translation(0, 5000) * TRANSFORM)
    with pytest.raises(
        ConfigError, match=r"far\.tif: holds none of the 2 judged polygons; give the image that was searched"
    ):
        feedback([path], folder / "aerial.yaml", folder / "next.yaml", scenes=[far])
    assert not (folder / "next.yaml").exists()
    frame = reviewed(["false", "real"])
    apart = save(folder / "b.gpkg", frame.set_geometry([frame.geometry[0], shapely.box(0, 0, 9, 9)], crs=frame.crs))
    assert "1 judged polygon lies on none of the scenes" in fed(folder, apart).notes[0]
    both = feedback([path], folder / "aerial.yaml", folder / "c.yaml", scenes=[folder / "scene.tif", far])
    assert not both.notes


def test_cells_that_are_not_of_the_scenes_are_refused_or_told(folder):
    """A training would have learned nothing there, and nobody was told."""
    sample = cells([0, 0], [True, True], places=[square(0, 40), square(400)])
    made = fed(folder, save(folder / "a.gpkg", reviewed(["false"]), sample))
    assert made.notes == ("1 searched cell lies on none of the scenes, so nothing is learned there",)
    far = save(folder / "b.gpkg", reviewed(["false"]), sample.iloc[1:])
    assert len(fed(folder, far, overwrite=True).notes) == 1
    with pytest.raises(ConfigError, match=r"scene\.tif: holds none of the 1 searched cell; give the image"):
        fed(folder, save(folder / "c.gpkg", reviewed([None]), sample.iloc[1:]), overwrite=True)


def test_polygons_without_a_crs_are_refused(folder):
    frame = reviewed(["false"]).set_crs(None, allow_override=True)
    frame.to_parquet(folder / "a.parquet")
    with pytest.raises(DataError, match="have no CRS, and the scenes have"):
        fed(folder, folder / "a.parquet")


def test_feedback_twice_gives_the_same_files_and_replaces_nothing_else(folder):
    path = save(folder / "a.gpkg", reviewed(["real", "false"]))
    before = path.read_bytes()
    fed(folder, path)
    names = ["next.yaml", "next.reviewed.gpkg", "next.holdout.yaml", "next.holdout.gpkg"]
    first = {name: (folder / name).read_bytes() for name in names}
    fed(folder, path)
    assert {name: (folder / name).read_bytes() for name in names} == first and path.read_bytes() == before
    with (folder / "next.yaml").open("a") as file:
        file.write("# my own\n")
    with pytest.raises(OutputError, match=r"next\.yaml: exists with other content"):
        fed(folder, path)
    assert (folder / "next.yaml").read_text().endswith("# my own\n")
    fed(folder, path, overwrite=True)
    assert (folder / "next.yaml").read_bytes() == first["next.yaml"]
    assert sorted(p.name for p in folder.iterdir() if p.name.startswith(".")) == []


def test_a_second_round_keeps_the_first(folder):
    fed(folder, save(folder / "a.gpkg", reviewed(["false"])))
    second = save(folder / "b.gpkg", reviewed([None, "false"], true_class=[None, "roof"]))
    feedback([second], folder / "next.yaml", folder / "third.yaml", scenes=[folder / "scene.tif"])
    assert labels(folder, "third.reviewed.gpkg")["class_id"].tolist() == [254, 2]
    config = load_config(folder / "third.yaml")
    assert config.data.reviewed_images == [str(folder / "scene.tif")] and config.data.images == ["scene.tif"]


def test_ground_of_an_earlier_round_that_a_person_changed_keeps_whole_class_ids(folder):
    """Texts and NULLs made texts, or numbers that are none, of all class ids."""
    fed(folder, save(folder / "a.gpkg", reviewed(["false", "real"])))
    second, before = save(folder / "b.gpkg", reviewed(["false"])), labels(folder)

    def again(frame):
        frame.to_file(folder / "next.reviewed.gpkg", layer="labels")
        scenes = [folder / "scene.tif"]
        made = feedback([second], folder / "next.yaml", folder / "third.yaml", scenes=scenes, overwrite=True)
        return labels(folder, "third.reviewed.gpkg")["class_id"].tolist(), made.notes

    assert again(before.assign(class_id=["254", "road"])) == (
        [254, 254],
        ("next.reviewed.gpkg: 1 shape without a class id of 0 to 255; left out",),
    )
    assert again(before.assign(class_id=[None, 255.0]))[0] == [255, 254]
    with pytest.raises(DataError, match=r"next\.reviewed\.gpkg: no column class_id"):
        again(before.drop(columns="class_id"))


def test_misspelt_verdicts_are_refused_and_listed(folder):
    path = save(folder / "a.gpkg", reviewed(["real", "flase", "flase"]))
    with pytest.raises(DataError, match=r"'flase' \(false\?\) in 2 rows; correct them first"):
        fed(folder, path)
    whole = save(folder / "b.gpkg", reviewed(["real"]))
    with pytest.raises(DataError, match=r"b\.gpkg, .*a\.gpkg: verdicts that are none"):  # the second file has them
        feedback([whole, path], folder / "aerial.yaml", folder / "next.yaml", scenes=[folder / "scene.tif"])
    assert not (folder / "next.yaml").exists()


def test_conflicts_and_contradictions_are_left_out_and_told(folder):
    one, other = reviewed(["false", "real", "real"]), reviewed(["real", None, None])
    one["true_class"] = [None, "road", None]
    paths = [save(folder / "a.gpkg", one), save(folder / "b.gpkg", other)]
    made = feedback(paths, folder / "aerial.yaml", folder / "next.yaml", scenes=[folder / "scene.tif"])
    assert (made.counts["false"], made.counts["real"]) == (0, 1)
    assert any("conflict rank 1" in note for note in made.notes)
    assert any("1 polygon judged real, and yet of a class" in note for note in made.notes)


def test_an_edited_outline_counts_as_it_was_edited_and_a_broken_one_is_refused(folder):
    frame = reviewed(["false", "false"])
    smaller = frame.geometry.iloc[0].buffer(-2)
    path = save(folder / "a.gpkg", frame.set_geometry([smaller, frame.geometry.iloc[1]], crs=frame.crs))
    fed(folder, path)
    assert labels(folder).area.min() == pytest.approx(smaller.area)
    bow = shapely.Polygon([(WEST, SOUTH), (WEST + 9, SOUTH + 9), (WEST + 9, SOUTH), (WEST, SOUTH + 9)])
    broken = save(folder / "b.gpkg", frame.set_geometry([bow, frame.geometry.iloc[1]], crs=frame.crs))
    with pytest.raises(
        DataError, match=r"1 judged polygon whose outline is not valid, fid 1 first \(Self-intersection.*; repair it"
    ):
        fed(folder, broken, overwrite=True)
    whole = save(folder / "c.gpkg", reviewed([None], scene=["scene.tif"]))
    with pytest.raises(DataError, match=rf"^{broken.name}: 1 judged polygon"):  # which is the second file
        feedback([whole, broken], folder / "aerial.yaml", folder / "next.yaml", scenes=[folder / "scene.tif"])


def test_of_many_scenes_those_are_needed_of_which_something_was_reviewed(folder):
    """All had to be found, and were handed to the training and to the hold-out set."""
    for name in ("b.tif", "c.tif"):
        shutil.copy(folder / "scene.tif", folder / name)
    frame = reviewed(["false", None, "skip", None], scene=["scene.tif", "b.tif", "lost.tif", "c.tif"])
    sample = cells([0, 0, None], [True, True, False], places=[square(i) for i in range(3)])
    sample = sample.assign(scene=["scene.tif", "c.tif", "lost.tif"])

    def images(path):
        made = feedback([path], folder / "aerial.yaml", folder / "next.yaml", overwrite=True)
        return [path.removeprefix(f"{folder}/") for path in load_config(made.config).data.reviewed_images]

    assert images(save(folder / "1.gpkg", frame)) == ["scene.tif"]
    assert images(save(folder / "2.gpkg", frame, sample)) == ["c.tif", "scene.tif"]
    drawn = frame.assign(scene=["scene.tif", "b.tif", "c.tif", None], verdict=["false", None, None, "real"])
    assert images(save(folder / "3.gpkg", drawn)) == ["b.tif", "c.tif", "scene.tif"]  # it may lie in any of them


def test_the_scene_is_found_by_its_name_or_asked_for(folder):
    path = save(folder / "a.gpkg", reviewed(["false"], scene=["scene.tif"]))
    feedback([path], folder / "aerial.yaml", folder / "next.yaml")
    assert load_config(folder / "next.yaml").data.reviewed_images == [str(folder / "scene.tif")]
    lost = save(folder / "b.gpkg", reviewed(["false"], scene=["lost.tif"]))
    with pytest.raises(ConfigError, match=r"lost\.tif of these polygons is not found; give its image with --scene"):
        feedback([lost], folder / "aerial.yaml", folder / "other.yaml")
    bare = save(folder / "c.gpkg", reviewed(["false"]))
    with pytest.raises(ConfigError, match="do not tell of which scene they are"):
        feedback([bare], folder / "aerial.yaml", folder / "other.yaml")
    with closing(sqlite3.connect(bare)) as database, database:  # as `polygonize` writes it, apart from its raster
        database.execute("CREATE TABLE run (scene TEXT, threshold REAL)")
        database.execute("INSERT INTO run VALUES ('/elsewhere/scene.tif', 1.5)")
    feedback([save(folder / "d.gpkg", reviewed(["false"])), bare], folder / "aerial.yaml", folder / "other.yaml")
    assert load_config(folder / "other.yaml").data.reviewed_images == [str(folder / "scene.tif")]


def test_a_scene_is_found_by_its_name_in_a_folder_that_is_given(folder):
    for place in ("new", "empty", "maps"):
        (folder / place).mkdir()
    shutil.copy(folder / "scene.tif", folder / "new" / "away.tif")
    shutil.copy(folder / "scene.tif", folder / "new" / "another.tif")
    path = save(folder / "maps" / "a.gpkg", reviewed(["false"], scene=["away.tif"]))
    with pytest.raises(ConfigError, match=r"away\.tif of these polygons is not found; .*, or its folder"):
        feedback([path], folder / "aerial.yaml", folder / "next.yaml", scenes=[folder / "empty"])
    feedback([path], folder / "aerial.yaml", folder / "next.yaml", scenes=[folder / "new"])
    assert load_config(folder / "next.yaml").data.reviewed_images == [str(folder / "new" / "away.tif")]


def test_an_image_that_is_given_beside_a_folder_counts_whatever_its_name(folder):
    def images(*scenes, of=("a.tif", "b.tif")):
        path = save(folder / "maps" / "a.gpkg", reviewed(["false"] * len(of), scene=list(of)))
        made = feedback([path], folder / "aerial.yaml", folder / "next.yaml", scenes=scenes, overwrite=True)
        return [path.removeprefix(f"{folder}/") for path in load_config(made.config).data.reviewed_images]

    for name in ("maps/a.gpkg", "new/b.tif", "new/c.tif", "renamed.tif"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(folder / "scene.tif", folder / name)
    new, renamed = folder / "new", folder / "renamed.tif"
    assert images(renamed, new) == ["renamed.tif", "new/b.tif"]  # a.tif was renamed
    assert images(new, renamed, of=("b.tif", "c.tif")) == ["renamed.tif", "new/b.tif", "new/c.tif"]
    with pytest.raises(ConfigError, match=r"the scene a\.tif of these polygons is not found"):
        images(new, renamed, of=("a.tif", "d.tif"))
    (folder / "b.tif").symlink_to(renamed)
    assert images(folder / "b.tif", new, of=("b.tif",)) == ["b.tif"]  # what is named is not looked for
    assert images(renamed, renamed, of=("b.tif",)) == ["renamed.tif"]


def test_data_of_a_training_that_moved_since_hide_no_scene_that_lies_elsewhere(folder):
    text = CONFIG.replace("  anomaly", "  test_images: [gone.tif]\n  test_labels: [gone.gpkg]\n  anomaly")
    (folder / "aerial.yaml").write_text(text)
    path = save(folder / "a.gpkg", reviewed(["false"], scene=["scene.tif"]))
    feedback([path], folder / "aerial.yaml", folder / "next.yaml")
    assert load_config(folder / "next.yaml").data.reviewed_images == [str(folder / "scene.tif")]


def test_a_scene_in_the_current_folder_is_found(folder, monkeypatch):
    (folder / "maps").mkdir()
    shutil.copy(folder / "scene.tif", folder / "another scene.tif")
    path = save(folder / "maps" / "a.gpkg", reviewed(["false"], scene=["another scene.tif"]))
    monkeypatch.chdir(folder)
    feedback([path], folder / "aerial.yaml", folder / "next.yaml")
    assert load_config(folder / "next.yaml").data.reviewed_images == [str(folder / "another scene.tif")]


def test_a_map_that_lies_elsewhere_finds_its_scene_in_the_data_unless_two_have_the_name(folder):
    away = folder / "away"
    away.mkdir()
    path = save(away / "a.gpkg", reviewed(["false"], scene=["scene.tif"]))
    feedback([path], folder / "aerial.yaml", away / "next.yaml")
    assert load_config(away / "next.yaml").data.reviewed_images == [str(folder / "scene.tif")]
    (folder / "other").mkdir()
    shutil.copy(folder / "scene.tif", folder / "other" / "scene.tif")
    both = [f"data.images={[str(folder / 'scene.tif'), str(folder / 'other' / 'scene.tif')]}".replace("'", '"')]
    (folder / "two.yaml").write_text(to_yaml(load_config(folder / "aerial.yaml", both)))
    with pytest.raises(ConfigError, match=r"may be .*scene\.tif or .*scene\.tif; give its image with --scene"):
        feedback([path], folder / "two.yaml", away / "other.yaml")
    chosen = feedback([path], folder / "two.yaml", away / "other.yaml", scenes=[folder / "other" / "scene.tif"])
    assert load_config(chosen.config).data.reviewed_images == [str(folder / "other" / "scene.tif")]


def test_without_verdicts_there_is_nothing_to_learn(folder):
    with pytest.raises(DataError, match="no polygon has a verdict yet"):
        fed(folder, save(folder / "a.gpkg", reviewed([None, "unsure"])))
    lost = save(folder / "lost.gpkg", reviewed([None], scene=["nowhere.tif"]))
    with pytest.raises(DataError, match="no polygon has a verdict yet"):  # before its scene is looked for
        feedback([lost], folder / "aerial.yaml", folder / "next.yaml")
    with pytest.raises(OutputError, match="is the config of the training before"):
        feedback([folder / "a.gpkg"], folder / "aerial.yaml", folder / "aerial.yaml")
    with pytest.raises(ConfigError, match=r"end the name in \.yaml"):
        feedback([folder / "a.gpkg"], folder / "aerial.yaml", folder / "next.txt")


def test_the_command_that_trains_next_can_be_typed_as_it_is(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "an aerial.yaml").write_text(CONFIG)
    (folder / "runs" / "an aerial").mkdir(parents=True)
    save(folder / "a.gpkg", reviewed(["false"], scene=["scene.tif"]))
    line = ["feedback", "a.gpkg", "--config", "an aerial.yaml", "--out", "the next.yaml"]
    said = CliRunner().invoke(app, line).output.splitlines()[-1]
    assert shlex.split(said)[1:] == ["geood", "train", "the next.yaml", "--from", "runs/an aerial"]
    save(folder / "b.gpkg", reviewed(["real"], scene=["scene.tif"]))
    said = CliRunner().invoke(app, [line[0], "b.gpkg", *line[2:], "--overwrite"]).output.splitlines()[1]
    assert shlex.split(said)[-4:] == ["geood", "evaluate", "scenes", "the next.holdout.yaml"]


@pytest.mark.parametrize("known", ["polygons", "cells", "neither"])
def test_cells_of_a_map_without_polygons_have_the_crs_that_one_of_both_has(folder, known):
    """A layer without rows may have none: it ended the verb as a bug."""
    frame, sample = reviewed([None]).iloc[:0], cells([0], [True], places=[square(0)])
    frame = frame if known == "polygons" else frame.set_crs(None, allow_override=True)
    sample = sample if known == "cells" else sample.set_crs(None, allow_override=True)
    for name, layer in (("anomalies", frame), ("sample", sample)):
        pyogrio.write_dataframe(layer, folder / "a.gpkg", layer=name, geometry_type="Polygon")
    if known == "neither":
        with pytest.raises(DataError, match=r"a\.gpkg: its cells have no CRS"):
            fed(folder, folder / "a.gpkg")
        return
    assert fed(folder, folder / "a.gpkg").counts["cells"] == 1
    assert labels(folder).crs == 32633 and labels(folder).union_all().equals(square(0))
