"""Pixel protocols of the benchmarks, by name, each reproducing the numbers of its official evaluator.

All of them are accumulators with one interface (`PixelProtocol`): `update` with the score and the ground truth of one
image, `+=` with another accumulator, and `figures` at the end, which do not depend on the order of the images. They
differ as the benchmarks do: in what is pooled, what is binned, and at which point of the curve the false-positive rate
is read. `pooled` is geood's own and the default where no benchmark requires another; its undefined metrics are NaN,
while a benchmark's protocol returns what the benchmark's code returns.

Ground truth is 0 for inliers, 1 for anomalies and 255 for ignored pixels, which never count: for a benchmark whose
evaluator counts unlabelled pixels as inliers, set them to 0. An image with ignored pixels only is skipped and counted
as such, even where the official code fails on it. NumPy only; no files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from geood.constants import ANOMALY, IGNORE, INLIER
from geood.metrics.components import TRACKS_PX
from geood.metrics.curve import NAN, Counts, Curve, curve_of_counts, curve_of_scores
from geood.metrics.pixels import PixelCurve, checked_truth, refuse_not_finite
from geood.metrics.smiyc_bins import quantile_bins

Figures = dict[str, float]
Scores = NDArray[np.floating]


class PixelProtocol(Protocol):
    """Interface of the protocols; `images` counts the evaluated images and `skipped` the others."""

    images: int
    skipped: int

    def update(self, score: Scores, truth: NDArray[np.uint8]) -> None:
        """Add one image.

        Args:
            score: any shape, higher is more anomalous, finite where it counts.
            truth: same shape; 0 (inlier), 1 (anomaly) or 255 (ignored).

        Raises:
            ValueError: shapes differ, a counted score is NaN or infinite, or `truth` holds another value.
        """

    def __iadd__(self, other: Self) -> Self:
        """Add the images of another accumulator of the same protocol to this one."""

    def figures(self) -> Figures:
        """Return the metrics of all images so far.

        `average_precision`, `auroc` and `fpr95`, `best_f1` and `best_f1_threshold` where the protocol defines them, and
        the numbers `images` and `skipped`.
        """


class Pooled:
    """All pixels pooled in one curve, scores rounded to float16; memory does not grow with the number of pixels."""

    def __init__(self) -> None:
        self.images = self.skipped = 0
        self.curve = PixelCurve()

    def update(self, score: Scores, truth: NDArray[np.uint8]) -> None:
        """Add one image; see `PixelProtocol.update`."""
        self.curve.update(score, truth)
        _count_image(self, counted=bool((truth != IGNORE).any()))

    def __iadd__(self, other: Pooled) -> Pooled:
        """Add the images of another accumulator to this one."""
        self.curve += other.curve
        _add_images(self, other)
        return self

    def figures(self) -> Figures:
        """Return the metrics, NaN where undefined; pixels *strictly above* the threshold have the best F1."""
        f1 = {"best_f1": self.curve.best_f1, "best_f1_threshold": self.curve.best_f1_threshold}
        curve = self.curve.curve
        return _areas(curve) | {"fpr95": curve.fpr_at(0.95)} | f1 | _images(self)


class Fishyscapes:
    """All pixels pooled in one exact curve of float32 scores (Blum et al. 2021); float16 scores are only counted.

    Without anomaly pixels FPR95 is 0.0, as in the official code.
    """

    def __init__(self) -> None:
        self.images = self.skipped = 0
        self._pool = _ScorePool()

    def update(self, score: Scores, truth: NDArray[np.uint8]) -> None:
        """Add one image; see `PixelProtocol.update`. Scores are cast to float32 and must be finite after that."""
        exact = score if score.dtype == np.float16 else _cast(score, truth, np.float32)
        _count_image(self, counted=self._pool.take(*_split(exact, truth)))

    def __iadd__(self, other: Fishyscapes) -> Fishyscapes:
        """Add the images of another accumulator to this one."""
        self._pool += other._pool
        _add_images(self, other)
        return self

    def figures(self) -> Figures:
        """Return the official metrics; Fishyscapes has no best F1."""
        curve = self._pool.curve
        return _areas(curve) | {"fpr95": _or_zero(curve, curve.fpr_at(0.95))} | _images(self)


class Smiyc:
    """SegmentMeIfYouCan's `PixBinaryClass` (Chan et al. 2021): float16 scores binned per image, bins pooled.

    An image's bin edges are 384 quantiles of its anomalies' and 384 of its inliers' scores, and the curve has one point
    per distinct lower edge over all images; it differs from the exact curve by about 1e-3. The official code does the
    same except at the highest edge: where several images share it (saturated scores), it adds one point after whichever
    of them its unstable sort puts first, which an order-independent sum cannot reproduce.

    Without anomaly pixels FPR95 and the best F1 are 0.0, as in the official code.
    """

    def __init__(self) -> None:
        self.images = self.skipped = 0
        none = np.zeros(0, np.int64)
        self._bins: list[tuple[NDArray[np.float64], Counts, Counts]] = [(np.zeros(0), none, none)]

    def update(self, score: Scores, truth: NDArray[np.uint8]) -> None:
        """Add one image; see `PixelProtocol.update`.

        Scores are rounded to float16 and must be finite after that: rescale scores beyond 65504.
        """
        curve = PixelCurve()
        curve.update(_cast(score, truth, np.float16), truth)
        if counted := bool(curve.positives + curve.negatives):
            self._bins.append(quantile_bins(*curve.distribution()))
        _count_image(self, counted=counted)

    def __iadd__(self, other: Smiyc) -> Smiyc:
        """Add the images of another accumulator to this one."""
        self._bins += other._bins
        _add_images(self, other)
        return self

    def figures(self) -> Figures:
        """Return the official metrics; the best F1 counts bins with a lower edge *at or above* the threshold.

        The official component metrics then predict pixels *strictly above* it, which are none for a score map of two
        values.
        """
        lower, inliers, anomalies = (np.concatenate(part) for part in zip(*self._bins, strict=True))
        curve = curve_of_counts(lower, inliers=inliers, anomalies=anomalies)
        best, threshold = curve.best_f1()
        if curve.negatives and not curve.positives:  # the first point with a pixel, where F1 is 0 / n and not NaN
            best, threshold = 0.0, float(curve.scores[np.argmax(curve.false_alarms > 0)])
        figures = _areas(curve) | {"fpr95": _or_zero(curve, curve.fpr_at(0.95))}
        return figures | {"best_f1": best, "best_f1_threshold": threshold} | _images(self)


class Caos:
    """Mean over images of the metrics per image, FPR95 at the recall closest to 0.95 (Hendrycks et al. 2022).

    A one-pixel anomaly has the weight of a bus. Images that lack anomaly or inlier pixels are skipped.
    """

    def __init__(self) -> None:
        self.images = self.skipped = 0
        self._each: list[Figures] = []

    def update(self, score: Scores, truth: NDArray[np.uint8]) -> None:
        """Add one image; see `PixelProtocol.update`."""
        inliers, anomalies = _split(score, truth)
        if counted := bool(inliers.size and anomalies.size):
            curve = _curve(inliers, anomalies)
            self._each.append(_areas(curve) | {"fpr95": curve.fpr_at(0.95, "closest")})
        _count_image(self, counted=counted)

    def __iadd__(self, other: Caos) -> Caos:
        """Add the images of another accumulator to this one."""
        self._each += other._each
        _add_images(self, other)
        return self

    def figures(self) -> Figures:
        """Return the official metrics; CAOS has no best F1."""
        return _means(self._each) | _images(self)


class DenseHybrid:
    """FPR95 at the first point whose recall exceeds 0.95, pooled or (for StreetHazards) per image (Grcic et al. 2022).

    As in the official code, the point is picked on scikit-learn's ROC curve without collinear points. Metrics per image
    are averaged over the images in which they are defined. An image without anomalies has an FPR95 of 0.0, which
    counts; its average precision is undefined here, as in the scikit-learn of that time (newer versions return 0.0).
    Pooled float16 scores are only counted; wider ones are stored, 4 bytes per pixel if they are float32.
    """

    def __init__(self, *, per_image: bool = False) -> None:
        self.images = self.skipped = 0
        self.per_image = per_image
        self._pool = _ScorePool()
        self._each: list[Figures] = []

    def update(self, score: Scores, truth: NDArray[np.uint8]) -> None:
        """Add one image; see `PixelProtocol.update`."""
        inliers, anomalies = _split(score, truth)
        counted = bool(inliers.size or anomalies.size)
        if counted and self.per_image:
            self._each.append(self._read(_curve(inliers, anomalies)))
        elif counted:
            self._pool.take(inliers, anomalies)
        _count_image(self, counted=counted)

    def __iadd__(self, other: DenseHybrid) -> DenseHybrid:
        """Add the images of another accumulator to this one.

        Raises:
            ValueError: one pools and the other does not.
        """
        if other.per_image != self.per_image:
            raise ValueError("cannot add pooled scores and figures per image")
        self._pool += other._pool
        self._each += other._each
        _add_images(self, other)
        return self

    def figures(self) -> Figures:
        """Return the official metrics; DenseHybrid has no best F1."""
        figures = _means(self._each) if self.per_image else self._read(self._pool.curve)
        return figures | _images(self)

    @staticmethod
    def _read(curve: Curve) -> Figures:
        fpr95 = curve.without_collinear().fpr_at(0.95, "first_gt")
        return _areas(curve) | {"fpr95": _or_zero(curve, fpr95)}


def threshold_at_recall(curve: Curve) -> float:
    """Return the highest float16 threshold with at least 95 % of the anomalies strictly above it; NaN without any."""
    if not curve.positives:
        return NAN
    first = int(np.argmax(curve.hits * 20 >= curve.positives * 19))  # in integers: 0.95 is not a binary fraction
    return float(np.nextafter(np.float16(curve.scores[first]), np.float16(-np.inf)))


def _densehybrid_threshold(curve: Curve) -> float:
    """Return the highest score with more than 95 % of the anomalies at or above it, as DenseHybrid; NaN without any."""
    if not curve.positives:
        return NAN
    return float(curve.scores[int(np.argmax(curve.hits * 20 > curve.positives * 19))])


class ProtocolRules(NamedTuple):
    """Choices of a protocol beside its pixel metrics.

    Attributes:
        accumulator: makes an empty accumulator.
        if_crossed: options of `accumulator` for a crossed set (one threshold per folder of images).
        recall_threshold: picks the threshold of the open-set metrics; scores strictly above it are anomalous.
        components_px: least size of a predicted and of a ground-truth component in pixels, unless the set has its own
            (None: the protocol has no component metrics).
    """

    accumulator: Callable[..., Any]
    if_crossed: Mapping[str, Any] = {}
    recall_threshold: Callable[[Curve], float] = threshold_at_recall
    components_px: tuple[int, int] | None = None


PROTOCOLS: dict[str, ProtocolRules] = {
    "pooled": ProtocolRules(Pooled),
    "fishyscapes": ProtocolRules(Fishyscapes),
    "smiyc": ProtocolRules(Smiyc, components_px=TRACKS_PX["obstacle"]),
    "caos": ProtocolRules(Caos),
    "densehybrid": ProtocolRules(DenseHybrid, {"per_image": True}, _densehybrid_threshold),
}


def protocol_named(name: str, *, crossed: bool = False, **options: Any) -> PixelProtocol:
    """Return an empty accumulator of the protocol `name`, one of `PROTOCOLS`.

    Args:
        name: the protocol.
        crossed: use the protocol's options for crossed sets.
        options: further options of the accumulator (`per_image`).

    Raises:
        ValueError: there is no protocol of that name.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}, got {name!r}")
    rules = PROTOCOLS[name]
    accumulator: PixelProtocol = rules.accumulator(**{**(rules.if_crossed if crossed else {}), **options})
    return accumulator


class _ScorePool:
    """Pool of the inlier and anomaly scores of many images: float16 scores as counts, wider ones as arrays."""

    def __init__(self) -> None:
        self._counts = PixelCurve()
        self._inliers: list[Scores] = []
        self._anomalies: list[Scores] = []

    def take(self, inliers: Scores, anomalies: Scores) -> bool:
        """Add one image's inlier (n,) and anomaly (m,) scores; return whether there are any."""
        if inliers.dtype == np.float16 == anomalies.dtype:
            self._counts.update(inliers, np.full(inliers.shape, INLIER, np.uint8))
            self._counts.update(anomalies, np.full(anomalies.shape, ANOMALY, np.uint8))
        else:
            self._inliers.append(inliers)
            self._anomalies.append(anomalies)
        return bool(inliers.size or anomalies.size)

    def __iadd__(self, other: _ScorePool) -> _ScorePool:
        self._counts += other._counts
        self._inliers += other._inliers
        self._anomalies += other._anomalies
        return self

    @property
    def curve(self) -> Curve:
        scores, inliers, anomalies = self._counts.distribution()
        if not self._inliers:
            return curve_of_counts(scores, inliers=inliers, anomalies=anomalies)
        wide = [np.concatenate(self._inliers), np.concatenate(self._anomalies)]
        if not scores.size:
            return curve_of_scores(*wide)
        ones = [np.ones(len(array), np.int64) for array in wide]
        counts = [np.concatenate([inliers, ones[0], 0 * ones[1]]), np.concatenate([anomalies, 0 * ones[0], ones[1]])]
        return curve_of_counts(np.concatenate([scores, *wide]), inliers=counts[0], anomalies=counts[1])


def _curve(inliers: Scores, anomalies: Scores) -> Curve:
    """Compute the exact curve of one image; float16 scores are counted, which is faster than sorting."""
    pool = _ScorePool()
    pool.take(inliers, anomalies)
    return pool.curve


def _split(score: Scores, truth: NDArray[np.uint8]) -> tuple[Scores, Scores]:
    """Return the scores of the inliers (n,) and of the anomalies (m,) after checking that they are finite."""
    truth = checked_truth(score, truth)
    refuse_not_finite(score, truth != IGNORE)
    return score[truth == INLIER], score[truth == ANOMALY]


def _cast(score: Scores, truth: NDArray[np.uint8], dtype: type[np.floating]) -> Scores:
    """Cast `score` to another float dtype; raise if a counted score overflows."""
    if score.dtype == dtype:
        return score
    with np.errstate(over="ignore", invalid="ignore"):
        cast = score.astype(dtype)
    if cast.shape == truth.shape and (np.isinf(cast) & np.isfinite(score) & (truth != IGNORE)).any():
        raise ValueError(f"scores of counted pixels exceed {np.finfo(dtype).max} and do not fit {np.dtype(dtype)}")
    return cast


def _areas(curve: Curve) -> Figures:
    return {"average_precision": curve.average_precision, "auroc": curve.auroc}


def _or_zero(curve: Curve, fpr: float) -> float:
    """Return `fpr`, or 0.0 without anomaly pixels, as the official codes do when recall is NaN everywhere."""
    return 0.0 if curve.negatives and not curve.positives else fpr


def _means(each: Iterable[Figures]) -> Figures:
    """Return the mean of each metric over the images that define it; exact sums, so their order does not matter."""
    listed, means = list(each), {}
    for name in listed[0] if listed else ("average_precision", "auroc", "fpr95"):
        known = [figures[name] for figures in listed if not math.isnan(figures[name])]
        means[name] = math.fsum(known) / len(known) if known else NAN
    return means


def _count_image(accumulator: PixelProtocol, *, counted: bool) -> None:
    accumulator.images += counted
    accumulator.skipped += not counted


def _add_images(accumulator: PixelProtocol, other: PixelProtocol) -> None:
    accumulator.images += other.images
    accumulator.skipped += other.skipped


def _images(accumulator: PixelProtocol) -> Figures:
    return {"images": accumulator.images, "skipped": accumulator.skipped}
