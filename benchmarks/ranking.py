"""Which order of polygons puts real things first? Precision of the first 10, 50 and 100 for each of several rankings.

    python benchmarks/ranking.py CONFIG BUNDLE [BUNDLE ...] [--scores KIND ...] [--data-root FOLDER] [--fpr 0.01]

Cuts the polygons of the test scenes of a config at the threshold of each score, as `predict` does, and compares orders
of them. A polygon is real if a quarter of its labelled pixels are anomaly; polygons of less than 4 px, or of which more
than half is not labelled, are left out. Prints for each ranking the mean over bundles and scores: precision of the
first 10, 50 and 100 of all scenes together, the mean precision of the scenes' own first 10, and average precision.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import rasterio
import rasterio.features

from geood.config.loading import load_config
from geood.datasets.files import find_files
from geood.geo.listing import pair_by_name
from geood.metrics.objects import is_real
from geood.models.bundle import ModelBundle
from geood.polygons.export import anomalies
from geood.prediction.pipeline import predict

Frame = pd.DataFrame
RANKINGS: dict[str, Callable[[Frame], pd.Series]] = {
    "contrast x sqrt(area)": lambda f: f.contrast.fillna(f.threshold_excess) * f.area_px**0.5,
    "contrast": lambda f: f.contrast,
    "contrast x area": lambda f: f.contrast * f.area_px,
    "contrast x sqrt(area) x (1 - on_edge)": lambda f: f.contrast * f.area_px**0.5 * (1 - f.on_edge),
    "area": lambda f: f.area_px,
    "threshold_excess x area (summed excess)": lambda f: f.threshold_excess * f.area_px,
    "threshold_excess x sqrt(area)": lambda f: f.threshold_excess * f.area_px**0.5,
    "score_mean": lambda f: f.score_mean,
    "score_p95": lambda f: f.score_p95,
    "score_max (before)": lambda f: f.score_max,
}


def polygons(bundle: Path, image: Path, labels: Path, *, kind: str, fpr: str) -> Frame:
    """Polygons of one scene with their columns, and whether they are real."""
    model = ModelBundle.load(bundle, flow=False).with_settings([f"score.kind={kind}"])
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "a.gpkg"
        [made] = predict([image], out, bundle_path=bundle, settings=[f"score.kind={kind}"])
        frame = anomalies(
            made.scores,
            threshold=model.thresholds[fpr],
            classes=made.classes,
            class_names=model.class_names,
            predict=model.config.predict,
            model=model.identity,
        )
        with rasterio.open(labels) as file:
            ids, place = file.read(1), file.transform
    shapes = zip(frame.geometry, frame["rank"], strict=True)
    burnt = rasterio.features.rasterize(shapes, ids.shape, transform=place, dtype="int32") if len(frame) else ids * 0
    bad = np.isin(ids, model.config.data.anomaly)
    known = bad | np.isin(ids, model.class_ids)
    anomaly, labelled = (np.bincount(burnt[mask].ravel(), minlength=len(frame) + 1)[1:] for mask in (bad, known))
    frame = pd.DataFrame(frame.drop(columns="geometry")).assign(scene=image.name, real=is_real(anomaly, labelled))
    return frame[(labelled >= 0.5 * frame.area_px) & (frame.area_px >= 4)]


def figures(frame: Frame, order: pd.Series) -> list[float]:
    ranked = frame.assign(order=order).sort_values("order", ascending=False)
    real = ranked.real.to_numpy()
    own = [scene.real[:10].mean() for _, scene in ranked.groupby("scene")]
    hits = np.cumsum(real) / np.arange(1, len(real) + 1)
    return [*(real[:first].mean() for first in (10, 50, 100)), np.mean(own), hits[real].mean() if real.any() else 0.0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--scores", nargs="+", default=["encoder_knn", "energy"])
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--fpr", default="0.01")
    options = parser.parse_args()
    data = load_config(options.config, [f"data.root={options.data_root}"] if options.data_root else []).data
    images, labels = (
        find_files(Path(data.root), files, what="test scenes") for files in (data.test_images, data.test_labels)
    )
    pairs = list(zip(images, pair_by_name(images, labels) or [], strict=True))
    results = {name: [] for name in RANKINGS}
    for bundle in options.bundles:
        for kind in options.scores:
            each = [polygons(bundle, image, own[0], kind=kind, fpr=options.fpr) for image, own in pairs]
            frame = pd.concat(each, ignore_index=True)
            print(f"{bundle}, {kind}: {len(frame)} polygons, {int(frame.real.sum())} real", flush=True)
            for name, order in RANKINGS.items():
                results[name].append(figures(frame, order(frame)))
    print("| ranking | first 10 | first 50 | first 100 | first 10 of a scene | AP |\n|---|---|---|---|---|---|")
    for name, rows in results.items():
        print(f"| {name} | {' | '.join(f'{100 * x:.1f}' for x in np.mean(rows, axis=0))} |")


if __name__ == "__main__":
    main()
