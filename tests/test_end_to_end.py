"""The day of an analyst: the commands of the README and of the pages for its tasks, in their order; then the demo."""

import json
import re
import shlex
import shutil
import sqlite3
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio import features
from rasterio.windows import Window
from shapely.geometry import box, shape

from geood.cli.demo import CONFIG, run_demo
from geood.cli.process import _run
from geood.config.loading import load_config, to_yaml
from geood.datasets.synthetic.world import make_world
from geood.errors import OutputError
from geood.prediction.journal import TileFigures
from geood.prediction.workdir import work_dir, work_folder
from support.rasters import picture

TASK_PAGES = ("predict", "evaluate")  # whose commands follow those of the README
SLOW_PAGES = (
    "clusters",
    "export",
    "first-config",
    "first-week",
    "get-started",
    "qgis",
    "report",
    "review",
    "roads",
    "train",
    "trust",
)
NOT_RUN = {  # commands of any page that cannot run in a test, and why
    "geood predict scene.tif --out anomalies.gpkg --scheduler tls://host:8786": "needs a cluster; test_cluster has one",
    "geood demo": "takes minutes; test_the_demo_draws_and_lists_its_files runs it in short",
    "geood evaluate scenes benchmarks/": "needs data that is downloaded",
    "geood train configs/camvid.yaml": "needs the data set, and hours",
    "geood evaluate camvid CAMVID --model runs/camvid": "needs that training",
    "geood train aerial.yaml --set segmenter.encoder=tf_efficientnet_lite0": "needs the package of the weights",
}
BEFORE = ("geood init ", "geood check ")  # which draw crops and time a network; tests/preflight runs them
ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
TASKS = {name: (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in TASK_PAGES}
SHORT = [
    "train.segmenter_steps=3",
    "train.flow_steps=2",
    "train.head_steps=2",
    "train.joint_steps=2",
    "train.validate_every=10",
    "data.crops=12",
    "data.validation_crops=2",
    "data.crop_px=64",
    "negatives.patch_max_px=32",
    "train.batch=2",
    "segmenter.encoder=test_resnet",
    "segmenter.decoder_channels=16",
    "flow.steps=1",
    "flow.layers=1",
    "flow.growth=8",
    "predict.tile_px=256",
    "predict.halo_px=32",
]


pytestmark = pytest.mark.usefixtures("little_effort")


@pytest.fixture(scope="module")
def area(tmp_path_factory) -> Path:
    """A folder as the pages have it in mind: a config, scenes, and a folder of scenes with labels."""
    folder = tmp_path_factory.mktemp("area")
    make_world(folder / "world", seed=1, size_px=256, scenes=2)
    (folder / "demo.yaml").write_text(CONFIG, encoding="utf-8")
    (folder / "aerial.yaml").write_text(to_yaml(load_config(folder / "demo.yaml", SHORT)), encoding="utf-8")
    (folder / "FOLDER").mkdir()
    for there, here in (("test", "FOLDER/X"), ("labels/test", "FOLDER/X_labels"), ("test", "scene"), ("test", "north")):
        shutil.copy(folder / "world" / f"{there}.tif", folder / f"{here}.tif")
    shutil.copy(folder / "world" / "train_1.tif", folder / "south.tif")
    (folder / "TILES").mkdir()
    with rasterio.open(folder / "scene.tif") as scene:
        for i, window in enumerate((Window(0, 0, 128, 256), Window(128, 0, 128, 256))):
            profile = scene.profile | {"width": 128, "transform": scene.window_transform(window)}
            with rasterio.open(folder / "TILES" / f"{i}.tif", "w", **profile) as tile:
                tile.write(scene.read(window=window))
        middle = box(*scene.bounds).centroid.buffer(30)
        gpd.GeoSeries([middle], crs=scene.crs).to_crs(4326).to_file(folder / "area.geojson")
    make_road_set(folder / "CAMVID")
    for i in range(2):
        mask = np.zeros((128, 160), np.uint8)
        mask[30:70, 40:80] = 1
        for kind, array in (("images/{}", picture(128, 160, seed=i).transpose(1, 2, 0)), ("labels/{}_mask", mask)):
            path = folder / "PAIRS" / f"{kind.format(i)}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)
    page = (ROOT / "docs" / "roads.md").read_text(encoding="utf-8")
    [text] = [block for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL) if "camvid" in block]
    (folder / "roads.yaml").write_text(text, encoding="utf-8")
    (folder / "roads.yaml").write_text(to_yaml(load_config(folder / "roads.yaml", SHORT)), encoding="utf-8")
    return folder


def make_road_set(folder):
    """A few frames in the layout of CamVid, with a pedestrian in the test frames alone."""
    for split in ("train", "val", "test"):
        for i in range(3):
            image = picture(128, 160, seed=i)
            ids = (image[0] // 32).astype("uint8")  # classes 0 to 7
            if split == "test":
                ids[40:80, 20 * i : 20 * i + 20] = 9
            for name, array in ((split, image.transpose(1, 2, 0)), (f"{split}annot", ids)):
                (folder / name).mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(folder / name / f"frame_{i}.png")


def run_commands(*pages):
    """Run each command of the pages once, in their order."""
    for command in dict.fromkeys(line for text in pages for line in commands(text)):
        if not command.startswith(BEFORE):
            assert _run(shlex.split(command)[1:], debug=False) == 0, command


def test_the_commands_of_the_readme(area, tmp_path, monkeypatch, capsys):
    """And the pages tell all columns, tags and tables of what they write."""
    monkeypatch.chdir(shutil.copytree(area, tmp_path / "area"))
    run_commands(README)
    assert "runs/aerial" in capsys.readouterr().out
    with rasterio.open("scene.tif") as scene, rasterio.open("anomalies.tif") as scores:
        assert (scene.transform, scene.crs, scene.shape) == (scores.transform, scores.crs, scores.shape)
    formats = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    [layout] = re.findall(r"^\| column of `anomalies` \|.*?\n\n", formats, re.MULTILINE | re.DOTALL)
    columns = {
        name for row in re.findall(r"^\| (`.*?) \|", layout, re.MULTILINE) for name in re.findall("`(.*?)`", row)
    }
    with sqlite3.connect("anomalies.gpkg") as database:
        tables = {
            name: {row[1] for row in database.execute(f"PRAGMA table_info({name})")} for name in ("sample", "run")
        }
    database.close()
    assert all(f"`{column}`" in formats for names in tables.values() for column in names - {"fid", "geom"})
    with rasterio.open("anomalies.tif") as scores:
        assert all(f"`{tag}`" in formats for tag in scores.tags() if tag.startswith("GEOOD_"))
    assert set(gpd.read_file("anomalies.gpkg", layer="anomalies").columns) == columns | {"geometry"}


@pytest.mark.slow
@pytest.mark.usefixtures("forked_workers")
def test_the_commands_of_the_pages_for_its_tasks(area, tmp_path, monkeypatch, capsys):
    """After those of the README, whose model they take."""
    monkeypatch.chdir(shutil.copytree(area, tmp_path / "area"))
    run_commands(README, *TASKS.values())
    said = capsys.readouterr().out
    assert "AUROC" in said and "closed-set mIoU" in said
    assert set(gpd.read_file("all.gpkg", layer="anomalies")["scene"]) <= {"north.tif", "south.tif"}
    assert not Path("scores.gpkg").exists() and (gpd.read_file("fewer.gpkg", layer="anomalies").area_m2 >= 10).all()
    assert {path.name for path in Path("measured/pictures").iterdir()} == {"test.png"}
    figures = json.loads(Path("measured/results.json").read_text())
    assert len(figures["rows"]) == 12 and 0 < figures["base_rate"] < 0.2
    capsys.readouterr()
    assert figures["objects"] and figures["ranking"]["polygons"] >= 0
    for out in ("measured", "scores.tif"):
        assert _run(["evaluate", "scenes", "aerial.yaml", "--out", out], debug=False) == 2
        assert f"{out}: exists already" in capsys.readouterr().err


@pytest.fixture(scope="module")
def desk(area, tmp_path_factory):
    """The same folder with all that the other pages take for granted: labels as drawn, a run, maps, figures."""
    folder = tmp_path_factory.mktemp("desk") / "area"
    shutil.copytree(area, folder)
    (folder / "scenes").mkdir()
    shapes: list[dict] = []
    names = {9: "boat", 0: "land"}
    for path in sorted((folder / "world").glob("train_*.tif")):
        shutil.copy(path, folder / "scenes")
        with rasterio.open(folder / "world" / "labels" / path.name) as ids:
            found = features.shapes(ids.read(1), transform=ids.transform)
            shapes += [{"class": names.get(int(v), f"class {v:g}"), "geometry": shape(g)} for g, v in found if v < 255]
            crs = ids.crs
    with rasterio.open(folder / "scenes" / "train_1.tif") as scene:
        shapes.append({"class": "boat", "geometry": box(*scene.bounds).centroid.buffer(4)})
    gpd.GeoDataFrame(shapes, crs=crs).to_file(folder / "labels.gpkg")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for line in (
            "train aerial.yaml",
            "predict scene.tif --out anomalies.gpkg",
            "predict world/test.tif --out demo/anomalies.gpkg",
            "predict TILES --out outputs",
            "evaluate scenes aerial.yaml --out measured",
        ):
            Path("demo").mkdir(exist_ok=True)
            assert _run(line.split(), debug=True) == 0, line
        for name in ("new_scene", "SCENE"):
            shutil.copy("scene.tif", f"{name}.tif")
        (Path("demo") / "world").symlink_to(folder / "world")
        judge(Path("anomalies.gpkg"))
        for name in ("ada", "bo"):
            shutil.copy("anomalies.gpkg", f"{name}.gpkg")
        theirs = gpd.read_file("anomalies.gpkg", layer="anomalies").rename(columns={"verdict": "ok", "score_max": "p"})
        theirs[["ok", "p", "geometry"]].to_file("theirs.geojson")
        shutil.copy("anomalies.tif", "theirs.tif")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", SLOW_PAGES)
def test_the_commands_of_every_other_page(desk, page, tmp_path, monkeypatch):
    """Each page in a folder of its own; trainings are cut short, and what a line writes is removed before it."""
    if page == "export":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(package)
    place = tmp_path / "area"
    shutil.copytree(desk, place, symlinks=True)
    monkeypatch.chdir(place)
    for line in dict.fromkeys(commands((ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8"))):
        if line.startswith(tuple(NOT_RUN)):
            continue
        words = shlex.split(line)[1:]
        if "--resume" not in words:
            make_room(words)
        if words[0] == "train":
            words += [part for key in (*SHORT, "segmenter.weights=null") for part in ("--set", key)]
        if words[0] in ("audit", "feedback") and Path(words[1]).name == "anomalies.gpkg":
            judge(Path("anomalies.gpkg"))
        wanted = 3 if words[:2] == ["data", "check"] else 0  # a miniature lacks most of the set's files
        assert _run(words, debug=not wanted) == wanted, line


def make_room(words):
    """Remove what a command writes, which an earlier one may have written."""
    out = words[words.index("--out") + 1] if "--out" in words else None
    if words[0] == "init":
        out = "aerial.yaml"
    if words[0] == "train":
        out = out or f"runs/{Path(words[1]).stem}"
    for path in [] if out is None else [Path(out), *Path(out).parent.glob(f"{Path(out).stem}.*")]:
        if words[0] in ("predict", "polygonize", "init", "feedback") or path == Path(out):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def test_what_is_not_run_is_in_a_page():
    pages = (*ROOT.glob("*.md"), *ROOT.glob("*/*.md"), *ROOT.glob("benchmarks/results/*.md"))
    lines = [line for path in pages for line in commands(path.read_text("utf-8"))]
    assert all(any(line.startswith(start) for line in lines) for start in NOT_RUN)
    named = {path.stem for path in (ROOT / "docs").glob("*.md") if any(commands(path.read_text("utf-8")))}
    assert named == {*TASK_PAGES, *SLOW_PAGES}


def judge(path):
    """Type what a person would: a verdict on each polygon, and each cell of the sample searched without a miss."""
    with sqlite3.connect(path) as database:
        for name in ("ST_IsEmpty", "ST_MinX", "ST_MaxX", "ST_MinY", "ST_MaxY"):  # of the triggers of the index
            database.create_function(name, 1, lambda _: 0)
        database.execute("UPDATE anomalies SET verdict = CASE fid % 2 WHEN 0 THEN 'real' ELSE 'false' END")
        database.execute("UPDATE sample SET complete = 1, misses = 0")
    database.close()


def test_the_python_of_the_readme(area, tmp_path, monkeypatch):
    for name in ("aerial.yaml", "scene.tif"):
        shutil.copy(area / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    [code] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    place: dict = {}
    exec(code, place)
    assert place["scores"].dims == ("y", "x") and place["scores"].notnull().any().compute()


def test_the_demo_replaces_its_own_folder_alone_and_no_verdicts(tmp_path, monkeypatch):
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "demo.yaml").write_text(CONFIG)
    with pytest.raises(OutputError, match="exists already; add --overwrite"):
        run_demo(tmp_path / "demo")
    judged = gpd.GeoDataFrame({"verdict": ["real"]}, geometry=[box(0, 0, 1, 1)], crs=32633)
    judged.to_file(tmp_path / "demo" / "anomalies.gpkg")
    before = (tmp_path / "demo" / "anomalies.gpkg").read_bytes()
    with pytest.raises(OutputError, match="typed verdicts"):
        run_demo(tmp_path / "demo", overwrite=True)
    assert (tmp_path / "demo" / "anomalies.gpkg").read_bytes() == before
    (tmp_path / "mine").mkdir()
    with pytest.raises(OutputError, match="give another --out"):
        run_demo(tmp_path / "mine", overwrite=True)

    def forbidden(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", forbidden)  # root may write anywhere
    with pytest.raises(OutputError, match="cannot be written"):
        run_demo(tmp_path / "other")


@pytest.mark.slow
def test_the_demo_draws_and_lists_its_files(tmp_path, monkeypatch):
    import geood.cli.demo as room

    quick = CONFIG.replace("crops: 600", "crops: 30").replace("validation_crops: 32", "validation_crops: 2")
    quick = quick.replace("resnet10t", "test_resnet").replace("min_area_m2", "halo_px: 32\n  min_area_m2")
    for large, small in (
        ("crop_px: 128", "crop_px: 64"),
        ("patch_max_px: 56", "patch_max_px: 32"),
        ("batch: 8", "batch: 2"),
    ):
        quick = quick.replace(large, small)
    quick = quick.replace("decoder_channels: 64", "decoder_channels: 16").replace("growth: 24", "growth: 8")
    for stage in ("segmenter_steps: 300", "flow_steps: 400", "head_steps: 300"):
        quick = quick.replace(stage, stage.split(":")[0] + ": 2")
    monkeypatch.setattr(room, "CONFIG", quick)
    monkeypatch.setattr(room, "make_world", lambda folder, seed: make_world(folder, seed=seed, size_px=256, scenes=2))
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "demo.yaml").write_text(quick)
    work = work_folder(tmp_path / "demo", "anomalies")  # a demo that was stopped while it predicted
    with pytest.raises(KeyboardInterrupt), work_dir(work, resume=False, overwrite=False) as stopped:
        with stopped.journal("anomalies", {}) as journal:
            journal.append(0, TileFigures(), ())
        raise KeyboardInterrupt
    result = run_demo(tmp_path / "demo", overwrite=True)
    assert not work.exists()
    assert all(path.exists() for path, _ in result.files)
    assert (tmp_path / "demo" / "overview.png").stat().st_size > 50_000
    assert "AUROC" in result.table


def commands(text):
    """Every `geood ...` line of the code blocks of a Markdown text."""
    for block in re.findall(r"```\w*\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if line.strip().startswith("geood "):
                yield line.strip().split("#")[0].strip()


def test_the_demo_config_is_valid(tmp_path):
    (tmp_path / "demo.yaml").write_text(CONFIG, encoding="utf-8")
    assert load_config(tmp_path / "demo.yaml", SHORT).data.anomaly == [9]
