"""The official evaluators of the benchmarks, run from checkouts of the user's own on made-up frames.

    python tests/support/oracles.py fishyscapes|smiyc|caos|densehybrid CHECKOUT

prints, as JSON, what the evaluator of that checkout says of each case below; the golden numbers in
`official_metrics.json` were made this way (its head names commits and versions). Nothing of those repositories is here:
this file only calls them, and needs nothing of geood, so that it runs under an interpreter with the old versions that
they ask for (Python 3.11 with numpy 1.26, matplotlib 3.8, easydict, h5py, ipython, jinja2, opencv, pandas, click, tqdm,
imageio, scikit-learn; torch for the last).
"""

import contextlib
import importlib.util
import json
import os
import sys
import zlib
from pathlib import Path

import numpy as np

HEIGHT, WIDTH, CLASSES = 120, 160, 5
SIZES_PX = {"anomaly": (500, 100), "obstacle": (50, 10)}


def boxes(shape, *placed):
    """A mask with rectangles (top, left, height, width) set."""
    mask = np.zeros(shape, bool)
    for top, left, height, width in placed:
        mask[top : top + height, left : left + width] = True
    return mask


def frame(rng, anomalies, *, dtype=np.float32):
    """Scores in about -4 to 8 and truth with the given boxes; sums of uniforms, the same on every machine."""
    truth = boxes((HEIGHT, WIDTH), *anomalies).astype(np.uint8)
    noise = rng.integers(0, 1 << 20, (4, HEIGHT, WIDTH)).sum(0) / (1 << 20) - 2
    smooth = np.repeat(np.repeat(rng.integers(0, 64, (HEIGHT // 8, WIDTH // 8)) / 64, 8, 0), 8, 1)
    return (noise * 1.5 + smooth + 2.5 * truth).astype(dtype), truth


def frames():
    """name > list of (score, truth), HEIGHT x WIDTH: the cases on which evaluators differ."""
    rng = np.random.default_rng(20240607)
    placed = [[(10, 20, 30, 40)], [(60, 5, 12, 9), (70, 100, 25, 30)], [(0, 0, 9, 9), (40, 70, 20, 15)]]

    def three():
        return [frame(rng, anomalies) for anomalies in placed]

    cases = {"continuous": three()}
    cases["levels"] = [(np.round(score * 30) / 30, truth) for score, truth in three()]
    cases["coarse"] = [(np.round(score), truth) for score, truth in three()]
    cases["saturated"] = [
        (np.minimum(score, top), truth) for (score, truth), top in zip(three(), (1, 0.75, 0.5), strict=True)
    ]
    cases["one_saturated"] = [(np.minimum(score, 0.5), truth) for score, truth in three()[:1]]
    cases["one_without_anomaly"] = [*three(), frame(rng, [])]
    cases["void_stripe"] = three()
    for _, truth in cases["void_stripe"]:
        truth[:, 18:31] = 255
    cases["float16"] = [(score.astype(np.float16), truth) for score, truth in three()]
    cases["one_pixel_anomaly"] = [frame(rng, [(50, 50, 1, 1)]), *three()[1:]]
    return cases


def parts():
    """name > list of (score, truth): components of exact sizes, scores 1 where predicted and 0 elsewhere."""
    shape, cases = (HEIGHT, WIDTH), {}

    def case(name, true, predicted, void=()):
        truth = boxes(shape, *true).astype(np.uint8)
        truth[boxes(shape, *void)] = 255
        cases[name] = [(boxes(shape, *predicted).astype(np.float16), truth)]

    ten, twenty = (10, 10, 10, 10), (5, 5, 25, 20)
    case("true_99_px", [(10, 10, 9, 11)], [twenty])
    case("true_100_px", [ten], [twenty])
    case("predicted_499_px", [(5, 5, 25, 20)], [(5, 5, 26, 19), (31, 5, 1, 5)])
    case("predicted_500_px", [(5, 5, 25, 20)], [(5, 5, 26, 19), (31, 5, 1, 6)])
    case("touching_at_a_corner", [(10, 10, 15, 15), (25, 25, 15, 15)], [(10, 10, 30, 16), (40, 26, 10, 30)])
    case("one_for_two", [(10, 10, 20, 20), (10, 40, 20, 20)], [(12, 5, 20, 60)])
    case("two_for_one", [(10, 10, 60, 60)], [(5, 5, 30, 70), (45, 5, 30, 70), (90, 90, 25, 25)])
    case("void_between", [(10, 10, 40, 60)], [(5, 5, 50, 75)], void=[(0, 30, 120, 8)])
    case("small_true_cuts_prediction", [(10, 10, 9, 9), (40, 40, 30, 30)], [(8, 8, 24, 24), (35, 35, 30, 40)])
    case("nothing_predicted", [ten], [])
    case("nothing_true", [], [twenty])
    cases["all"] = [one for name in list(cases) for one in cases[name]]
    return cases


def labelled():
    """(predicted, score, mask, truth) of three tiles with CLASSES known classes, of which the last never occurs."""
    rng = np.random.default_rng(7)
    tiles = []
    for score, truth in frames()["void_stripe"]:
        mask = np.repeat(np.repeat(rng.integers(0, CLASSES - 1, (HEIGHT // 20, WIDTH // 20)), 20, 0), 20, 1)
        predicted = np.where(rng.random(mask.shape) < 0.8, mask, rng.integers(0, CLASSES - 1, mask.shape))
        tiles.append((predicted, score, np.where(truth == 0, mask, 255), truth))
    return tiles


THRESHOLD = 1.0  # of the open-set case


def checksum():
    """One number for all frames: golden numbers are worth something only where it is the same."""
    arrays = [a for cases in (frames(), parts()) for case in cases.values() for pair in case for a in pair]
    arrays += [a.astype(np.float32) for tile in labelled() for a in tile]
    total = 0
    for array in arrays:
        total = zlib.crc32(np.ascontiguousarray(array).tobytes(), total)
    return total


def load(path, name):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fishyscapes(checkout):
    if not hasattr(np, "trapz"):
        np.trapz = np.trapezoid
    official = load(checkout / "eval.py", "fishyscapes_eval").calculate_metrics_perpixAP
    answers = {}
    for name, case in frames().items():
        said = official([truth for _, truth in case], [score for score, _ in case])
        answers[name] = [said["AP"], said["auroc"], said["FPR@95%TPR"]]
    return answers


def smiyc(checkout):
    sys.path.insert(0, str(checkout))
    os.environ.setdefault("MPLBACKEND", "agg")
    from road_anomaly_benchmark.metrics import MetricRegistry
    from road_anomaly_benchmark.metrics.instance_segmentation import default_instancer, segment_metrics

    pixels, whole, answers = MetricRegistry.get("PixBinaryClass"), {}, {"pixels": {}, "parts": {}}

    def of_parts(case, threshold, track):
        metric = MetricRegistry.get("SegEval-AnomalyTrack" if track == "anomaly" else "SegEval-ObstacleTrack")
        each = []
        for score, truth in case:
            true, predicted, _ = default_instancer(score.astype(np.float16), truth, threshold, *SIZES_PX[track])
            each.append(segment_metrics(true, predicted, metric.cfg.thresh_sIoU))
        said = {name: [float(x) for one in each for x in one[name]] for name in ("sIoU_gt", "sIoU_pred", "prec_pred")}
        said["tp"], said["fn"], said["fp"] = (
            [sum(one[f"{kind}_{int(t * 100)}"] for one in each) for t in metric.cfg.thresh_sIoU]
            for kind in ("tp", "fn", "fp")
        )
        said["mean_f1"] = None
        if said["sIoU_gt"] and said["prec_pred"]:
            said["mean_f1"] = float(metric.aggregate(each, "method", "set").f1_mean)
        return said

    for name, case in frames().items():
        each = [pixels.process_frame(truth, score.astype(np.float16), visualize=False) for score, truth in case]
        whole = pixels.aggregate(each, "method", "set")
        figures = (whole.area_PRC, whole.area_ROC, whole.tpr95_fpr, whole.best_f1, whole.best_f1_threshold)
        answers["pixels"][name] = [float(figure) for figure in figures]
        for track in SIZES_PX:
            answers["parts"][f"{name}/{track}"] = of_parts(case, np.float64(whole.best_f1_threshold), track)
    for name, case in parts().items():
        for track in SIZES_PX:
            answers["parts"][f"{name}/{track}"] = of_parts(case, 0.5, track)
    return answers


def caos(checkout):
    official = load(checkout / "anom_utils.py", "anom_utils").eval_ood_measure
    answers = {}
    for name, case in frames().items():
        each = [official(-score[truth < 255], truth[truth < 255], out_label=1) for score, truth in case]
        auroc, precision, fpr = np.mean([one for one in each if one is not None], axis=0)
        answers[name] = [float(precision), float(auroc), float(fpr)]
    return answers


def densehybrid(checkout):
    """Its `utils/iou.py`; the pixel figures are restated, as the file that has them needs a GPU's worth of imports."""
    import torch
    from sklearn.metrics import auc, average_precision_score, roc_curve

    def figures(pairs):
        truth = np.concatenate([truth[truth < 255] for _, truth in pairs])
        score = np.concatenate([score[truth < 255] for score, truth in pairs])
        fpr, tpr, _ = roc_curve(truth, score)
        return [
            average_precision_score(truth, score),
            auc(fpr, tpr),
            next((f for f, t in zip(fpr, tpr, strict=True) if t > 0.95), 0),
        ]

    answers = {"pooled": {}, "per_image": {}}
    for name, case in frames().items():
        answers["pooled"][name] = [float(figure) for figure in figures(case)]
        if name != "one_without_anomaly":
            each = [figures([pair]) for pair in case]
            answers["per_image"][name] = [float(mean) for mean in np.nanmean(each, axis=0)]
    iou = load(checkout / "utils" / "iou.py", "densehybrid_iou")
    opened, closed = iou.OpenIoU(CLASSES + 2, ignore_index=CLASSES + 1), iou.IoU(CLASSES + 1, ignore_index=CLASSES)
    for predicted, score, mask, truth in labelled():
        true = np.where(truth == 1, CLASSES, np.where(mask == 255, CLASSES + 1, mask))
        called = np.where(score > THRESHOLD, CLASSES, predicted)
        opened.add(torch.from_numpy(called)[None], torch.from_numpy(true)[None])
        closed.add(torch.from_numpy(predicted)[None], torch.from_numpy(np.minimum(true, CLASSES))[None])
    each, closed_miou = opened.iou_value(), closed.value()[1]
    answers["open_set"] = [float(np.nanmean(each[:-2])), float(each[-2]), float(closed_miou)]
    return answers


ORACLES = {"fishyscapes": fishyscapes, "smiyc": smiyc, "caos": caos, "densehybrid": densehybrid}

if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):
        said = ORACLES[sys.argv[1]](Path(sys.argv[2]))
    json.dump({"frames": checksum(), "numpy": np.__version__, "answers": said}, sys.stdout)
