"""Component metrics of SegmentMeIfYouCan: sIoU, PPV and F1 over connected components.

Pixel metrics do not distinguish a method that detects half of every object from one that detects half of the objects;
component metrics do. Each ground-truth component gets an sIoU, each predicted one a share of anomaly pixels (PPV), and
both are compared with eleven thresholds (Chan et al. 2021, with false positives counted by PPV as in its later code).
sIoU is IoU adjusted for fragmentation: it compares a ground-truth component with all predicted components that overlap
it, less their pixels on other ground-truth components.

Everything follows from the number of pixels shared by each pair of a ground-truth and a predicted component, so that
one pass over the pixels serves any number of components. NumPy and SciPy's labelling; no files.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy  # whose packages load on first use; a prediction of scores uses none
from numpy.typing import NDArray

from geood.constants import ANOMALY, IGNORE
from geood.metrics.curve import NAN, ratio
from geood.metrics.pixels import checked_truth, refuse_not_finite

SIOU_THRESHOLDS = np.linspace(0.25, 0.75, 11)
# Least sizes of a predicted and of a ground-truth component on each track.
TRACKS_PX = {"anomaly": (500, 100), "obstacle": (50, 10), "lost_and_found": (50, 10)}
_EIGHT_NEIGHBOURS = np.ones((3, 3), np.int8)
_DENSE_PAIRS = 1 << 22  # up to this many possible pairs they are counted in a table, above it sorted

Labels = NDArray[np.int32]


@dataclass(frozen=True)
class SegmentComponents:
    """Component metrics of one image, all in [0, 1].

    Attributes:
        siou: (n,), of the ground-truth components.
        predicted_siou: (m,), of the predicted components.
        ppv: (m,), share of each predicted component that is anomaly.
    """

    siou: NDArray[np.float64]
    predicted_siou: NDArray[np.float64]
    ppv: NDArray[np.float64]


class ComponentScores:
    """Accumulator of sIoU, PPV and F1 over the components of many images; each component has the same weight.

    Predicted components smaller than `minimum_predicted_px` are dropped; ground-truth components smaller than
    `minimum_true_px` are ignored, as are predictions on them. The sizes used by the benchmark's tracks are in
    `TRACKS_PX`: `ComponentScores(*TRACKS_PX["anomaly"])`.
    """

    def __init__(self, minimum_predicted_px: int, minimum_true_px: int) -> None:
        self.minimum_predicted_px = minimum_predicted_px
        self.minimum_true_px = minimum_true_px
        self.images = 0
        self._each: list[SegmentComponents] = []

    def update(
        self, score: NDArray[np.floating | np.bool_], truth: NDArray[np.uint8], *, threshold: float | None = None
    ) -> SegmentComponents:
        """Add one image and return its component metrics.

        Args:
            score: (H, W), anomaly score, or boolean mask of predicted anomalies.
            truth: (H, W), 0 (inlier), 1 (anomaly) or 255 (ignored).
            threshold: a pixel is predicted anomalous where `score` is strictly above it; None for a mask. It is rounded
                to the dtype of `score` first, as NumPy 1 compared float16 arrays; SegmentMeIfYouCan's published figures
                rest on that, so reproduce them with float16 scores.

        Raises:
            ValueError: shapes differ or are not (H, W), `truth` holds another value, a counted score is not finite, or
                there is no threshold for a score or one for a mask.
        """
        truth = checked_truth(score, truth)
        if truth.ndim != 2:
            raise ValueError(f"components need one image (H, W), got {truth.shape}")
        components = components_of(
            _mask(score, truth, threshold),
            truth,
            minimum_predicted_px=self.minimum_predicted_px,
            minimum_true_px=self.minimum_true_px,
        )
        self._each.append(components)
        self.images += 1
        return components

    def __iadd__(self, other: ComponentScores) -> ComponentScores:
        """Add the images of another accumulator to this one.

        Raises:
            ValueError: its minimum sizes differ.
        """
        mine, theirs = ((each.minimum_predicted_px, each.minimum_true_px) for each in (self, other))
        if mine != theirs:
            raise ValueError(f"cannot add components of at least {theirs} px to those of at least {mine} px")
        self._each += other._each
        self.images += other.images
        return self

    def counts(self) -> NDArray[np.int64]:
        """Return true positives, false negatives and false positives at each of `SIOU_THRESHOLDS`, (11, 3).

        A ground-truth component is a true positive if its sIoU reaches the threshold, else a false negative; a
        predicted component is a false positive if its PPV is below the threshold.
        """
        siou, ppv = self._all("siou"), self._all("ppv")
        true = [(siou >= threshold).sum() for threshold in SIOU_THRESHOLDS]
        false = [(ppv < threshold).sum() for threshold in SIOU_THRESHOLDS]
        return np.array([(hits, len(siou) - hits, wrong) for hits, wrong in zip(true, false, strict=True)], np.int64)

    def f1(self) -> NDArray[np.float64]:
        """Return F1 over the whole data set at each of `SIOU_THRESHOLDS`, (11,), in [0, 1]; NaN without components."""
        hits, missed, wrong = self.counts().T
        return np.array([ratio(2 * h, 2 * h + m + w) for h, m, w in zip(hits, missed, wrong, strict=True)])

    def figures(self) -> dict[str, float]:
        """Return the metrics of all images so far.

        `mean_siou` of the ground-truth components, `mean_predicted_siou` and `mean_ppv` of the predicted ones,
        `mean_f1` over the eleven thresholds, and the numbers `images`, `true_components` and `predicted_components`. A
        mean over no components is NaN. Sums are exact, so the order of the images does not matter.
        """
        siou, predicted_siou, ppv = (self._all(name) for name in ("siou", "predicted_siou", "ppv"))
        return {
            "mean_siou": _mean(siou),
            "mean_predicted_siou": _mean(predicted_siou),
            "mean_ppv": _mean(ppv),
            "mean_f1": _mean(self.f1()),
            "images": self.images,
            "true_components": len(siou),
            "predicted_components": len(ppv),
        }

    def _all(self, name: str) -> NDArray[np.float64]:
        return np.concatenate([np.zeros(0), *(getattr(image, name) for image in self._each)])


def components_of(
    predicted: NDArray[np.bool_], truth: NDArray[np.uint8], *, minimum_predicted_px: int, minimum_true_px: int
) -> SegmentComponents:
    """Compute the metrics of the 8-connected components of one image that have at least the given sizes.

    The order of the steps is the benchmark's. Ignored pixels are removed from the prediction before its components are
    labelled and sized; ground-truth components are labelled on the whole mask. Then ground-truth components that are
    too small, and the whole background if that is too small, become ignored as well, which may shrink or remove a
    predicted component but does not split it.

    Args:
        predicted: (H, W), boolean mask of predicted anomalies.
        truth: (H, W), 0 (inlier), 1 (anomaly) or 255 (ignored).
        minimum_predicted_px: least size of a predicted component, in pixels.
        minimum_true_px: least size of a ground-truth component, in pixels.
    """
    true_labels, true_px, _ = _labelled(truth == ANOMALY)
    guess_labels, guess_px, guess_at = _labelled(predicted & (truth != IGNORE))
    small_true, small_guess = true_px < minimum_true_px, guess_px < minimum_predicted_px
    guess, true = guess_labels.ravel()[guess_at], true_labels.ravel()[guess_at]
    stays = ~(small_guess[guess] | small_true[true])
    guess, true = guess[stays], true[stays]
    true_px[small_true] = 0
    true_px[0] = 0
    guess_px = np.bincount(guess, minlength=len(guess_px)).astype(np.int64)
    pairs = _pairs(true, guess, shape=(len(true_px), len(guess_px)))
    siou, _ = _adjusted(pairs, true_px, guess_px)
    predicted_siou, ppv = _adjusted((pairs[1], pairs[0], pairs[2]), guess_px, true_px)
    return SegmentComponents(siou, predicted_siou, ppv)


def _adjusted(
    pairs: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]],
    own_px: NDArray[np.int64],
    other_px: NDArray[np.int64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return sIoU and covered share of each component k with pixels, from the pairs (own, other, shared pixels).

    sIoU is |k and K| / (|k or K| - |K on other components of k's kind|), K being the union of all that overlap k.
    """
    own, other, shared = pairs
    covered = _sums(own, shared, len(own_px))
    touching = _sums(own, other_px[other], len(own_px))
    elsewhere = _sums(own, _sums(other, shared, len(other_px))[other] - shared, len(own_px))
    present = own_px > 0
    inside, size = covered[present], own_px[present]
    return inside / (touching[present] + size - inside - elsewhere[present]), inside / size


def _sums(index: NDArray[np.int64], pixels: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Sum `pixels` by index, (length,); float64 holds the sums exactly."""
    return np.bincount(index, weights=pixels, minlength=length).astype(np.int64)


def _pairs(
    true: Labels, guess: Labels, *, shape: tuple[int, int]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the pairs of overlapping true and predicted components and their shared pixels: three arrays (n,)."""
    both = true > 0
    keys = true[both].astype(np.int64) * shape[1] + guess[both]
    if math.prod(shape) <= _DENSE_PAIRS:
        table = np.bincount(keys, minlength=1)
        distinct = np.flatnonzero(table)
        shared = table[distinct]
    else:
        distinct, shared = np.unique(keys, return_counts=True)
    return distinct // shape[1], distinct % shape[1], shared


def _labelled(mask: NDArray[np.bool_]) -> tuple[Labels, NDArray[np.int64], NDArray[np.int64]]:
    """Return labels (H, W) of the 8-connected components, from 1; pixels of each label, 0 the background; and indices.

    The indices are those of the mask's pixels in the flattened image, so that later steps can skip the background.
    """
    labels, number = scipy.ndimage.label(mask, _EIGHT_NEIGHBOURS)
    at = np.flatnonzero(mask)
    sizes = np.bincount(labels.ravel()[at], minlength=number + 1).astype(np.int64)
    sizes[0] = mask.size - len(at)
    return labels, sizes, at


def _mask(
    score: NDArray[np.floating | np.bool_], truth: NDArray[np.uint8], threshold: float | None
) -> NDArray[np.bool_]:
    if (threshold is None) != (score.dtype == np.bool_):
        raise ValueError("a score needs a threshold, and a boolean mask takes none")
    if threshold is None:
        return score.astype(np.bool_)
    with np.errstate(over="ignore"):  # a threshold outside the dtype's range becomes infinite
        rounded = float(score.dtype.type(threshold))
    if score.dtype == np.float16:
        score = score.astype(np.float32)  # same values, and many times faster to compare
    refuse_not_finite(score, truth != IGNORE)
    return np.asarray(score > rounded)


def _mean(values: NDArray[np.float64]) -> float:
    return math.fsum(values.tolist()) / len(values) if len(values) else NAN
