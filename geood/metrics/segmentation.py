"""Closed-set and open-set intersection over union."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from geood.constants import ANOMALY, IGNORE, INLIER
from geood.metrics.curve import Counts
from geood.metrics.pixels import checked_truth, refuse_not_finite


class Confusion:
    """Counts of (true class, predicted class) over `classes` classes, and the IoU that follows."""

    def __init__(self, classes: int) -> None:
        self.counts: Counts = np.zeros((classes, classes), np.int64)

    def update(self, predicted: NDArray[np.integer], mask: NDArray[np.integer]) -> None:
        """Count the pixels of one tile; `mask` holds class indexes, 255 is ignored.

        Raises:
            ValueError: if a counted index is not below the number of classes.
        """
        classes, counted = len(self.counts), mask != IGNORE
        true, guess = mask[counted].astype(np.int64), predicted[counted].astype(np.int64)
        if true.size and not (min(true.min(), guess.min()) >= 0 and max(true.max(), guess.max()) < classes):
            raise ValueError(f"class indexes must be in 0 to {classes - 1}")
        self.counts += np.bincount(true * classes + guess, minlength=classes**2).reshape(classes, classes)

    def __iadd__(self, other: Confusion) -> Confusion:
        """Add the pixels of another matrix to this one."""
        self.counts += other.counts
        return self

    @property
    def iou(self) -> NDArray[np.float64]:
        """Intersection over union of each class, in [0, 1]; NaN for one that is neither there nor predicted."""
        hits = np.diag(self.counts).astype(np.float64)
        union = self.counts.sum(0) + self.counts.sum(1) - hits
        iou = np.full(len(hits), np.nan)
        np.divide(hits, union, out=iou, where=union > 0)
        return iou

    @property
    def miou(self) -> float:
        """Mean IoU over the classes that occur in truth or prediction; NaN if none does."""
        return mean_of_known(self.iou)


class OpenSetConfusion:
    """Open-set segmentation of `classes` known classes: the pixels whose score exceeds a threshold are an extra class.

    Open mIoU is the mean over the *known* classes, in which a missed anomaly is a false alarm of the class it was
    taken for, and a false alarm is a missed pixel of its class (Grcic et al. 2022, DenseHybrid). Beside it the same
    matrix without thresholding and without anomalies gives the closed mIoU, and their difference is the price of
    not knowing. Counts add up.
    """

    def __init__(self, classes: int, threshold: float) -> None:
        self.closed = Confusion(classes)
        self.threshold = threshold
        self._open = Confusion(classes + 1)

    def update(
        self,
        predicted: NDArray[np.integer],
        score: NDArray[np.floating],
        *,
        mask: NDArray[np.integer],
        truth: NDArray[np.uint8],
    ) -> None:
        """Count the pixels of one tile: four arrays of one shape.

        `predicted` holds the class index of each pixel and `score` its anomaly score, an anomaly strictly above the
        threshold; `truth` says 0, 1 or 255, and `mask` the class index of the inliers (255 is ignored, as are
        inliers without a class; what it says under anomalies does not matter).

        Raises:
            ValueError: if shapes differ, a counted score is not finite, `truth` holds another value, or a counted
                index is not below the number of classes.
        """
        if not predicted.shape == mask.shape == score.shape:
            raise ValueError(
                f"predicted {predicted.shape}, mask {mask.shape} and score {score.shape} must have one shape"
            )
        truth, unknown = checked_truth(score, truth), len(self.closed.counts)
        inlier_mask = np.where(truth == INLIER, mask, IGNORE)
        true = np.where(truth == ANOMALY, unknown, inlier_mask)
        refuse_not_finite(score, true != IGNORE)
        closed, opened = Confusion(unknown), Confusion(unknown + 1)
        closed.update(predicted, inlier_mask)  # first all checks, then all sums: a refused tile leaves no trace
        opened.update(np.where(score > self.threshold, unknown, predicted), true)
        self.closed += closed
        self._open += opened

    def __iadd__(self, other: OpenSetConfusion) -> OpenSetConfusion:
        """Add the pixels of another accumulator to this one.

        Raises:
            ValueError: if it was thresholded elsewhere.
        """
        if other.threshold != self.threshold:
            raise ValueError(f"cannot add counts at threshold {other.threshold} to counts at {self.threshold}")
        self.closed += other.closed
        self._open += other._open
        return self

    @property
    def counts(self) -> Counts:
        """Pixels of (true class, predicted class), (classes + 1, classes + 1); the last index is the anomaly."""
        return self._open.counts

    @property
    def open_miou(self) -> float:
        """Mean IoU over the known classes that occur in truth or prediction, in [0, 1]; NaN if none does."""
        return mean_of_known(self._open.iou[:-1])

    @property
    def iou(self) -> NDArray[np.float64]:
        """Intersection over union of each class and, last, of the anomaly, in [0, 1]; NaN as in `Confusion.iou`."""
        return self._open.iou

    @property
    def anomaly_iou(self) -> float:
        """IoU of the anomaly, in [0, 1]; NaN if it is neither there nor predicted."""
        return float(self._open.iou[-1])

    @property
    def closed_miou(self) -> float:
        """Mean IoU of the classes as predicted, over inliers alone."""
        return self.closed.miou

    @property
    def gap(self) -> float:
        """Closed less open mIoU: what the threshold's errors cost."""
        return self.closed_miou - self.open_miou


def mean_of_known(values: NDArray[np.float64]) -> float:
    """The mean of the values that are not NaN; NaN if there is none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
