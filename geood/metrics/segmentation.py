"""Closed-set and open-set intersection over union (IoU), from additive confusion matrices.

Open-set IoU follows DenseHybrid (Grcic et al. 2022): pixels whose score exceeds a threshold form an additional class.
This module takes class indices and thresholds as given; it knows nothing of logits or files. NumPy only.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from geood.constants import ANOMALY, IGNORE, INLIER
from geood.metrics.curve import Counts
from geood.metrics.pixels import checked_truth, refuse_not_finite


class Confusion:
    """Confusion matrix (true class, predicted class) over `classes` classes, and its IoU."""

    def __init__(self, classes: int) -> None:
        self.counts: Counts = np.zeros((classes, classes), np.int64)

    def update(self, predicted: NDArray[np.integer], mask: NDArray[np.integer]) -> None:
        """Add the pixels of one tile.

        Args:
            predicted: any shape, class indices.
            mask: same shape, class indices of the ground truth; 255 is ignored.

        Raises:
            ValueError: a counted index is not below the number of classes.
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
        """IoU of each class, (classes,), in [0, 1]; NaN for a class in neither ground truth nor prediction."""
        hits = np.diag(self.counts).astype(np.float64)
        union = self.counts.sum(0) + self.counts.sum(1) - hits
        iou = np.full(len(hits), np.nan)
        np.divide(hits, union, out=iou, where=union > 0)
        return iou

    @property
    def miou(self) -> float:
        """Mean IoU over the classes that occur in ground truth or prediction, in [0, 1]; NaN if none does."""
        return mean_of_known(self.iou)


class OpenSetConfusion:
    """Open-set confusion matrix of `classes` known classes and the anomaly class, predicted above `threshold`.

    Open mIoU is the mean IoU over the *known* classes, where a missed anomaly is a false positive of the predicted
    class and an inlier above the threshold is a false negative of its class (Grcic et al. 2022, DenseHybrid). Closed
    mIoU is computed without thresholding and without anomaly pixels; the difference is the open-set performance gap.
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
        """Add the pixels of one tile: four arrays of one shape.

        Args:
            predicted: class indices of the closed-set prediction.
            score: anomaly score; strictly above the threshold is predicted anomaly.
            mask: class indices of the ground truth; 255 is ignored, and so is any value at anomaly pixels.
            truth: 0 (inlier), 1 (anomaly) or 255 (ignored).

        Raises:
            ValueError: shapes differ, a counted score is not finite, `truth` holds another value, or a counted index is
                not below the number of classes.
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
        closed.update(predicted, inlier_mask)  # all checks before all sums: a rejected tile changes nothing
        opened.update(np.where(score > self.threshold, unknown, predicted), true)
        self.closed += closed
        self._open += opened

    def __iadd__(self, other: OpenSetConfusion) -> OpenSetConfusion:
        """Add the pixels of another accumulator to this one.

        Raises:
            ValueError: its threshold differs.
        """
        if other.threshold != self.threshold:
            raise ValueError(f"cannot add counts at threshold {other.threshold} to counts at {self.threshold}")
        self.closed += other.closed
        self._open += other._open
        return self

    @property
    def counts(self) -> Counts:
        """Confusion matrix (true class, predicted class), (classes + 1, classes + 1); the last index is the anomaly."""
        return self._open.counts

    @property
    def open_miou(self) -> float:
        """Mean IoU over the known classes that occur in ground truth or prediction, in [0, 1]; NaN if none does."""
        return mean_of_known(self._open.iou[:-1])

    @property
    def iou(self) -> NDArray[np.float64]:
        """IoU of each class and, last, of the anomaly, (classes + 1,), in [0, 1]; NaN as in `Confusion.iou`."""
        return self._open.iou

    @property
    def anomaly_iou(self) -> float:
        """IoU of the anomaly, in [0, 1]; NaN if it is in neither ground truth nor prediction."""
        return float(self._open.iou[-1])

    @property
    def closed_miou(self) -> float:
        """Mean IoU without thresholding, over inlier pixels only, in [0, 1]; NaN if no class occurs."""
        return self.closed.miou

    @property
    def gap(self) -> float:
        """Open-set performance gap: closed mIoU minus open mIoU."""
        return self.closed_miou - self.open_miou


def mean_of_known(values: NDArray[np.float64]) -> float:
    """Return the mean of the values (n,) that are not NaN; NaN if there are none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
