"""SegmentMeIfYouCan's component metrics: of the anomalies in the truth, how many were found as things, and how well.

Pixels forgive a method that finds half of every object and one that finds half of the objects alike; components do
not. Each true component gets an sIoU, each predicted one a share of anomalous pixels (PPV), and both are counted at
eleven thresholds (Chan et al. 2021, with the counting of false positives by PPV of its later code). sIoU is IoU
adjusted for fragments: it compares a true component with all predictions that touch it, and does not charge it with
what of them lies on other true components.

All follows from how many pixels each pair of a true and a predicted component shares, so that one pass over the
pixels serves any number of components. Numpy and scipy's labelling; no files.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from geood.constants import ANOMALY, IGNORE
from geood.metrics.curve import NAN, ratio
from geood.metrics.pixels import checked_truth, refuse_not_finite

SIOU_THRESHOLDS = np.linspace(0.25, 0.75, 11)
TRACKS_PX = {"anomaly": (500, 100), "obstacle": (50, 10), "lost_and_found": (50, 10)}  # least predicted, least true
_EIGHT_NEIGHBOURS = np.ones((3, 3), np.int8)
_DENSE_PAIRS = 1 << 22  # a table of pairs up to this size is counted, above it the pairs are sorted

Labels = NDArray[np.int32]


@dataclass(frozen=True)
class SegmentComponents:
    """One image's components: `siou` (n,) of the true ones, `predicted_siou` and `ppv` (m,) of the predicted ones."""

    siou: NDArray[np.float64]
    predicted_siou: NDArray[np.float64]
    ppv: NDArray[np.float64]


class ComponentScores:
    """sIoU, PPV and F1 over the components of many images; each component counts once, whatever its image.

    Predicted components under `minimum_predicted_px` are dropped; true ones under `minimum_true_px` become void, for
    predictions too. A component of just that size stays. The sizes of the benchmark's tracks are in `TRACKS_PX`:
    `ComponentScores(*TRACKS_PX["anomaly"])`.
    """

    def __init__(self, minimum_predicted_px: int, minimum_true_px: int) -> None:
        self.minimum_predicted_px = minimum_predicted_px
        self.minimum_true_px = minimum_true_px
        self.images = 0
        self._each: list[SegmentComponents] = []

    def update(
        self, score: NDArray[np.floating | np.bool_], truth: NDArray[np.uint8], *, threshold: float | None = None
    ) -> SegmentComponents:
        """Take one image, (H, W) both, and return its components; `truth` holds 0, 1 or 255 (ignored).

        Predicted is where `score` is strictly above `threshold`, or where a boolean `score` says so, without a
        threshold. The threshold is first rounded to the type of the score, as NumPy 1 compared a float16 map, which
        is what SegmentMeIfYouCan's published figures rest on: for those, give the score as float16.

        Raises:
            ValueError: if shapes differ or are not (H, W), `truth` holds another value, a counted score is not
                finite, or there is no threshold for a score or one for a mask.
        """
        truth = checked_truth(score, truth)
        if truth.ndim != 2:
            raise ValueError(f"components need one image (H, W), got {truth.shape}")
        found = components_of(
            _mask(score, truth, threshold),
            truth,
            minimum_predicted_px=self.minimum_predicted_px,
            minimum_true_px=self.minimum_true_px,
        )
        self._each.append(found)
        self.images += 1
        return found

    def __iadd__(self, other: ComponentScores) -> ComponentScores:
        """Add the images of another accumulator to this one.

        Raises:
            ValueError: if its least sizes are others.
        """
        mine, theirs = ((one.minimum_predicted_px, one.minimum_true_px) for one in (self, other))
        if mine != theirs:
            raise ValueError(f"cannot add components of at least {theirs} px to those of at least {mine} px")
        self._each += other._each
        self.images += other.images
        return self

    def counts(self) -> NDArray[np.int64]:
        """True positives, false negatives and false positives at each of `SIOU_THRESHOLDS`: (11, 3).

        A true component is found where its sIoU reaches the threshold; a predicted one is false where its PPV does
        not.
        """
        siou, ppv = self._all("siou"), self._all("ppv")
        found = [(siou >= threshold).sum() for threshold in SIOU_THRESHOLDS]
        false = [(ppv < threshold).sum() for threshold in SIOU_THRESHOLDS]
        return np.array([(hits, len(siou) - hits, wrong) for hits, wrong in zip(found, false, strict=True)], np.int64)

    def f1(self) -> NDArray[np.float64]:
        """F1 over the whole data set at each of `SIOU_THRESHOLDS`, (11,); NaN where there is no component at all."""
        hits, missed, wrong = self.counts().T
        return np.array([ratio(2 * h, 2 * h + m + w) for h, m, w in zip(hits, missed, wrong, strict=True)])

    def figures(self) -> dict[str, float]:
        """`mean_siou` of the true components, `mean_predicted_siou` and `mean_ppv` of the predicted ones, `mean_f1`
        over the eleven thresholds, and the numbers of `images`, `true_components` and `predicted_components`.

        A mean over no components is NaN. Exact sums: the order of the images does not matter.
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
        return np.concatenate([np.zeros(0), *(getattr(one, name) for one in self._each)])


def components_of(
    predicted: NDArray[np.bool_], truth: NDArray[np.uint8], *, minimum_predicted_px: int, minimum_true_px: int
) -> SegmentComponents:
    """The components of one image, (H, W) both, of at least the given sizes; touching at a corner is touching.

    In the benchmark's order: void pixels leave the prediction before its components are told apart and sized; true
    components are told apart on the whole mask; then the too small ones, and all that is not anomaly if that is too
    small, turn void as well, which may shrink a predicted component or remove it but not split it.
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
    """sIoU and covered share of each component that has pixels, from the pixels shared by pairs (own, other, pixels).

    sIoU is |k and K| / (|k or K| - |K on other components of k's kind|), K being all that touches k.
    """
    own, other, shared = pairs
    covered = _sums(own, shared, len(own_px))
    touching = _sums(own, other_px[other], len(own_px))
    elsewhere = _sums(own, _sums(other, shared, len(other_px))[other] - shared, len(own_px))
    there = own_px > 0
    inside, size = covered[there], own_px[there]
    return inside / (touching[there] + size - inside - elsewhere[there]), inside / size


def _sums(index: NDArray[np.int64], pixels: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """The pixels summed by index; float64 holds them exactly."""
    return np.bincount(index, weights=pixels, minlength=length).astype(np.int64)


def _pairs(
    true: Labels, guess: Labels, *, shape: tuple[int, int]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """The pairs of a true and a predicted component that share pixels, and how many: three arrays (n,)."""
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
    """Eight-connected components numbered from 1, (H, W); the pixels of each number, 0 being the rest; where they are.

    The places index the flattened image: what follows need not look at the rest of it again.
    """
    labels, number = ndimage.label(mask, _EIGHT_NEIGHBOURS)
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
    with np.errstate(over="ignore"):  # a threshold beyond the type's range is above, or below, all of it
        rounded = float(score.dtype.type(threshold))
    if score.dtype == np.float16:
        score = score.astype(np.float32)  # says the same, and is compared many times as fast
    refuse_not_finite(score, truth != IGNORE)
    return np.asarray(score > rounded)


def _mean(values: NDArray[np.float64]) -> float:
    return math.fsum(values.tolist()) / len(values) if len(values) else NAN
