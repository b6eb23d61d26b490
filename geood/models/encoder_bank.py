"""Bank of inlier features of the encoder: how far a place is from all that was seen in training.

A segmenter of few classes throws away what it needs to know a stranger; the encoder's features at strides 8 and 16
still hold it. They are whitened, so that inliers of a class spread alike along every axis, for much of what tells a
stranger is in axes along which inliers hardly differ (arXiv 2203.10807). A few thousand of them are kept, each with the
class that the segmenter saw there, and the score of a place is the mean distance to its nearest neighbours (arXiv
2211.06660) among those of the class that it is taken for. So a thing is strange if nothing like it was seen, and also
if it looks like one class and is taken for another. How much nearer another class is tells the latter by itself: land
cover that was never taught lies among what is known, but not with the class that it is taken for. All this needs no
negatives, and no pass of its own: features and classes are by-products.

Near the features of places that a person called false alarms, a score is lowered: by all of a strength at them, and
by nothing from the distance on that inliers usually have from their neighbours. Only parts of a thing resemble them so
much, so what is around such a place is lowered with it: else a large false alarm would fall into several small ones.
Tensors only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from geood.models.decoder import upsample

NEIGHBOURS = 3
OTHERS_EVERY = 4  # of how many rows of the bank one stands for its class where it is compared with other classes
LEAST_APART = 1e-3  # least distance of which a ratio is taken
AXES = 160  # most axes
AROUND = 5  # places across: the square around a place near false alarms that is lowered with it, and smoothed
PLACE_PX = 8  # side of a place, pixels: the stride of the features
SPREAD_PX = PLACE_PX * (AROUND - 1)  # pixels that its lowering reaches beyond that place, besides interpolation
LEAST_SPREAD = 1e-3  # least standard deviation of a feature
LEAST_SHARE = 0.1  # of the mean one: a channel that is silent in training would make a whisper deafening
LEAST_VARIANCE = 1e-3  # of standardized features along an axis
GROUPS = 64  # of the bank
PAIRED = 8  # most numbers that are not paired any more, but sorted
DISTANCES = 1 << 19  # distances computed at once: 2 MiB, which stay near a core
EVEN = 16  # places at once are a multiple of it: products with few columns round otherwise, with odd numbers are slower
DISTANCES_ON_GPU = 1 << 21


class Span(NamedTuple):
    """Rows `start` to `end` of a bank, which are of the class `of`."""

    of: int
    start: int
    end: int


def fit_bank(samples: Tensor, classes: Tensor) -> dict[str, Tensor]:
    """Return the bank of encoder features (N, D): `shift` (D,), `axes` (D, A), `near` (N, A), `classes` (N,), float32.

    A feature x has the place (x - shift) @ axes in the bank, where inliers of a class spread alike along every axis, by
    a shrunk covariance (Ledoit and Wolf 2004). Of more than AXES channels, axes are mixtures of all, which keep
    distances within some per cent (Johnson and Lindenstrauss 1984). `classes` (N,) are the channels that features are
    taken for, by which the bank is ordered.
    """
    from sklearn.covariance import ledoit_wolf

    order = classes.argsort(stable=True)
    wide = samples.double()
    shift, spread = wide.mean(0), wide.std(0)
    spread = spread.clamp_min(max(LEAST_SPREAD, LEAST_SHARE * float(spread.mean())))
    standard = (wide - shift) / spread
    inside = (standard - _class_means(standard, classes)).numpy()
    variances, vectors = torch.linalg.eigh(torch.from_numpy(ledoit_wolf(inside, assume_centered=True)[0]))
    axes = vectors / variances.clamp_min(LEAST_VARIANCE).sqrt() / spread[:, None]
    if len(axes) > AXES:
        axes = axes @ _mixed(len(axes), AXES)
    near = ((wide - shift) @ axes)[order]
    return {"shift": shift.float(), "axes": axes.float(), "near": near.float(), "classes": classes[order].float()}


def add_reviewed(bank: Mapping[str, Tensor], samples: Tensor, classes: Tensor) -> dict[str, Tensor]:
    """Return a bank on whose axes reviewed features (N, D), taken for `classes` (N,), stand for those of before.

    Its other rows stay as they are, in their order. `reviewed` (M,) tells which rows are reviewed ones, where any are.
    """
    kept = bank["reviewed"] == 0 if "reviewed" in bank else torch.ones(len(bank["near"]), dtype=torch.bool)
    near = torch.cat([bank["near"][kept], (samples - bank["shift"]) @ bank["axes"]])
    of, added = torch.cat([bank["classes"][kept], classes]), torch.arange(len(near)) >= int(kept.sum())
    order = of.argsort(stable=True)
    found = {"shift": bank["shift"], "axes": bank["axes"], "near": near[order], "classes": of[order]}
    return found | ({"reviewed": added[order]} if len(samples) else {})


def _mixed(channels: int, axes: int) -> Tensor:
    """Return directions (channels, axes) drawn at random, always the same, whose lengths keep the mean of distances."""
    drawn = torch.randn(channels, axes, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    directions: Tensor = torch.linalg.qr(drawn).Q
    return directions * math.sqrt(channels / axes)


def _class_means(samples: Tensor, classes: Tensor) -> Tensor:
    """Return for each of samples (N, D) the mean of those of its class, of `classes` (N,)."""
    each, which = classes.unique(return_inverse=True)
    sums = samples.new_zeros(len(each), samples.shape[1]).index_add_(0, which, samples)
    means: Tensor = sums / which.bincount()[:, None]
    return means[which]


def joined(maps: Sequence[Tensor]) -> Tensor:
    """Return encoder maps (B, D', h', w') as one (B, D, h, w), the coarser interpolated to the size of the first."""
    size = maps[0].shape[2:]
    return torch.cat([each if each.shape[2:] == size else upsample(each, size) for each in maps], 1)


def located(maps: Sequence[Tensor], *, shift: Tensor, axes: Tensor) -> Tensor:
    """Return the places (B, h, w, A) of encoder maps in a bank, float32.

    They are those of `joined`, with fewer channels to interpolate.

    Args:
        maps: (B, D', h', w') each, the finest first.
        shift: (D,), the mean of inliers.
        axes: (D, A), what features are multiplied by.
    """
    size, begun = maps[0].shape[2:], 0
    found = -(shift @ axes)
    for each in maps:
        at = each.float().movedim(1, -1) @ axes[begun : begun + each.shape[1]]
        if each.shape[2:] != size:
            at = upsample(at.movedim(-1, 1), size).movedim(1, -1)
        found, begun = found + at, begun + each.shape[1]
    return found


def places(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Return the class (B, h, w) that each place of a map of `size` (h, w) is taken for by logits (B, K, H, W)."""
    return functional.interpolate(logits.float(), size=tuple(size), mode="bilinear", align_corners=False).argmax(1)


def spans(classes: Tensor) -> tuple[Span, ...]:
    """Return which rows of a bank are of which class, from its `classes` (N,), in their order."""
    each, counts = classes.unique_consecutive(return_counts=True)
    ends = counts.cumsum(0).tolist()
    return tuple(Span(int(c), *rows) for c, rows in zip(each.tolist(), pairwise([0, *ends]), strict=True))


def distances(found_at: Tensor, taken: Tensor, *, near: Tensor, of: Sequence[Span]) -> Tensor:
    """Return the distance (B, h, w) of places to those of their class in the bank, float32.

    Where the bank has none of a class, it is the distance to the class that is furthest. A CPU compares a place with
    its class alone; other devices compare it with all, as they would have to wait to know how many places a class has,
    and so does a graph that is traced.

    Args:
        found_at: (B, h, w, A), from `located`.
        taken: (B, h, w), the class that each place is taken for, from `places`.
        near: (N, A), the bank.
        of: the rows of each class in the bank, from `spans`.
    """
    flat, asked = found_at.flatten(0, -2), taken.flatten()
    banks = {span.of: near[span.start : span.end] for span in of}
    if _by_class(flat):
        furthest = list(banks.values())
        return _of_class(flat, asked, lambda c: [banks[c]] if c in banks else furthest).reshape(taken.shape)
    each = {c: _to_bank(flat, bank) for c, bank in banks.items()}
    found = torch.stack(list(each.values())).amax(0)
    for c, to_class in each.items():
        found = torch.where(asked == c, to_class, found)
    return found.reshape(taken.shape)


def neighbours_elsewhere(of: Sequence[Span]) -> int:
    """Return how many neighbours of other classes every place can have, by the rows of each class; 0: none."""
    rows = [len(range(span.end)[_every_fourth(span)]) for span in of]
    return min(NEIGHBOURS, sum(rows) - max(rows, default=0))


def distances_to_others(found_at: Tensor, taken: Tensor, *, near: Tensor, of: Sequence[Span], most: int) -> Tensor:
    """Return the distance (B, h, w) of places to those in the bank of all classes but their own, float32.

    A class is stood for by a quarter of its rows, which tells as much as all of them, at a quarter of the time.

    Args:
        found_at: (B, h, w, A), from `located`.
        taken: (B, h, w), the class that each place is taken for, from `places`.
        near: (N, A), the bank.
        of: the rows of each class in the bank, from `spans`.
        most: number of neighbours, `neighbours_elsewhere` or fewer.
    """
    flat, asked = found_at.flatten(0, -2), taken.flatten()
    banks = {span.of: near[_every_fourth(span)] for span in of}
    if _by_class(flat):
        found = _of_class(flat, asked, lambda c: [torch.cat([banks[other] for other in banks if other != c])], most)
    else:
        each = [(asked == c, _nearest(flat, bank, most)) for c, bank in banks.items() if len(bank)]
        others = torch.cat([least.masked_fill(own[:, None], torch.inf) for own, least in each], 1)
        found = _mean_distance(flat, others.topk(most, largest=False).values)
    return found.reshape(taken.shape)


def _every_fourth(span: Span) -> slice:
    """Return which rows of a bank stand for a class where places are compared with those of others."""
    return slice(-(-span.start // OTHERS_EVERY) * OTHERS_EVERY, span.end, OTHERS_EVERY)


def class_ratio(own: Tensor, others: Tensor) -> Tensor:
    """Return the log ratio of the distances of places to their own class and to others, of their shape, in nats.

    It is above 0 where another class is nearer than the one that a place is taken for.
    """
    return own.clamp_min(LEAST_APART).log() - others.clamp_min(LEAST_APART).log()


class InBank:
    """Places of one pass in a bank, and how far they lie from what it holds; each is computed once, when asked for.

    Attributes:
        at: (B, h, w, A), the places, from `located`.
    """

    def __init__(self, at: Tensor, logits: Tensor, *, near: Tensor, of: Sequence[Span], elsewhere: int) -> None:
        self.at, self._taken = at, places(logits, at.shape[1:3])
        self._near, self._of, self._elsewhere = near, of, elsewhere

    @cached_property
    def own(self) -> Tensor:
        """Distance (B, h, w) to the neighbours of the class that a place is taken for."""
        return distances(self.at, self._taken, near=self._near, of=self._of)

    @cached_property
    def ratio(self) -> Tensor:
        """Log ratio (B, h, w) of that distance and the one to other classes; the bank has two classes or more."""
        others = distances_to_others(self.at, self._taken, near=self._near, of=self._of, most=self._elsewhere)
        return class_ratio(self.own, others)


def usual_distance(near: Tensor) -> Tensor:
    """Return the distance () that places of a bank (N, A) usually have from their nearest others; N is 2 or more.

    It is the median over every fourth place of the mean distance to its nearest neighbours.
    """
    apart = torch.cdist(near[::4], near).topk(min(NEIGHBOURS + 1, len(near)), largest=False).values
    return apart[:, 1:].mean(1).median()


def nearness(found_at: Tensor, *, to: Tensor, reach: Tensor) -> Tensor:
    """Return how near places are to the nearest of some others (B, h, w): 1 at it, 0 from `reach` on.

    Args:
        found_at: (B, h, w, A), from `located`.
        to: (M, A), the others.
        reach: (1,), distance at which nearness ends.
    """
    near = (1 - _to_bank(found_at.flatten(0, -2), to, most=1) / reach).clamp_min_(0)
    return near.reshape(found_at.shape[:-1])


def surroundings(near: Tensor) -> Tensor:
    """Return the nearness (B, h, w) of what is around each place: the largest within 5 x 5 places, then means of such.

    What lies 5 places or more from all that is near anything has 0.
    """
    largest = functional.max_pool2d(near[:, None], AROUND, stride=1, padding=AROUND // 2)
    return functional.avg_pool2d(largest, AROUND, stride=1, padding=AROUND // 2, count_include_pad=False)[:, 0]


def _by_class(flat: Tensor) -> bool:
    """Return whether places (M, A) are compared with what their class asks for alone, and not all of them with all."""
    return flat.device.type == "cpu" and not isinstance(flat.shape[0], torch.SymInt)


def _of_class(
    flat: Tensor, asked: Tensor, banks_of: Callable[[int], Sequence[Tensor]], most: int = NEIGHBOURS
) -> Tensor:
    """Return the distance (M,) of places (M, A), `asked` (M,) within a class, to the furthest of the banks for that."""
    found = flat.new_empty(len(flat))
    for c in asked.unique().tolist():
        which = (asked == c).nonzero()[:, 0]
        alike = flat.index_select(0, functional.pad(which, (0, -len(which) % EVEN)))
        found[which] = torch.stack([_to_bank(alike, bank, most) for bank in banks_of(c)]).amax(0)[: len(which)]
    return found


def _to_bank(flat: Tensor, bank: Tensor, most: int = NEIGHBOURS) -> Tensor:
    """Return the mean distance (M,) of places (M, A) to their `most` nearest neighbours in a bank (N, A)."""
    return _mean_distance(flat, _nearest(flat, bank, most))


def _mean_distance(flat: Tensor, least: Tensor) -> Tensor:
    """Return the mean distance (M,) of places (M, A) to neighbours of squared distances (M, n), from `_nearest`."""
    return (least + flat.square().sum(1, keepdim=True)).clamp_min_(0).sqrt_().mean(1)


def _nearest(flat: Tensor, bank: Tensor, most: int) -> Tensor:
    """Return the squared distances (M, n) of places (M, A) to the nearest n of a bank (N, A), `most` or all of it.

    Of squared distances only the length of the place is missing then.
    """
    count, lengths = min(most, len(bank)), bank.square().sum(1)
    if _by_class(flat):
        at_once = max(EVEN, DISTANCES // len(bank) // EVEN * EVEN)
        found = [_least(lengths[:, None].addmm(bank, chunk.T, alpha=-2), count) for chunk in flat.split(at_once)]
        return torch.cat(found, 1).T
    short = -len(bank) % GROUPS
    lengths, across = functional.pad(lengths, (0, short), value=torch.inf), functional.pad(-2 * bank.T, (0, short))
    if isinstance(flat.shape[0], torch.SymInt):
        return _least_of_groups(lengths.addmm(flat, across), count)
    at_once = max(1, (DISTANCES if flat.device.type == "meta" else DISTANCES_ON_GPU) // len(lengths))
    return torch.cat([_least_of_groups(lengths.addmm(chunk, across), count) for chunk in flat.split(at_once)])


def _least(squares: Tensor, count: int) -> Tensor:
    """Return the least `count` of each column, 3 at most: (N, n) to (count, n), for a CPU.

    Sorting is what costs, so it sees few numbers: of pairs the lesser go on, and of the greater just the least, as two
    of those would have two lesser ones before them.
    """
    aside = []
    while len(squares) > PAIRED:
        half = len(squares) // 2
        some, others = squares[:half], squares[half : 2 * half]
        aside += [torch.maximum(some, others).amin(0, keepdim=True), squares[2 * half :]]
        squares = torch.minimum(some, others)
    return torch.cat([squares, *aside]).topk(count, dim=0, largest=False).values


def _least_of_groups(squares: Tensor, count: int) -> Tensor:
    """Return the least `count` of each row, (n, N) to (n, count), by few steps, for a GPU and for graphs.

    The N numbers, a multiple of GROUPS, are cut into groups, and the least lie in the groups whose own least are least.
    """
    inside = squares.view(squares.shape[0], -1, GROUPS)
    groups = inside.amin(1).topk(count, largest=False).indices
    chosen = inside.gather(2, groups[:, None].expand(-1, inside.shape[1], -1)).flatten(1)
    return chosen.topk(count, largest=False).values
