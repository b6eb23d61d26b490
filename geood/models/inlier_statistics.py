"""Inlier statistics for scores that need them: per-class logit statistics and the distribution of decoder features.

`InlierFit` passes once over labelled training pixels; its result, `Inliers`, is a handful of tensors stored in the
bundle. Standardized max logit compares the largest logit with its mean over pixels of the same predicted class (arXiv
2107.11264). KL matching is the divergence of the softmax from the nearest class template, the mean softmax of a class
(arXiv 1911.11132). The feature scores work at the decoder's resolution. Two compare features of unit length, as their
length says more of the class than of strangeness (Mueller and Hein, ICML 2025): the mean distance to the nearest
neighbours in a bank of inlier features (arXiv 2211.06660), and the negative log-density under a Gaussian mixture with
one shared covariance, fitted by scikit-learn. The third is the length of what of a feature lies outside the principal
axes of inliers (ViM, arXiv 2203.10807). The encoder's bank is in `encoder_bank`, the tails that make experts comparable
in `tails`. Tensors only; no files.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from geood.config import LEAST_FEATURES, SCORES, Need, scores_from
from geood.constants import IGNORE, UNSTATED
from geood.errors import counted
from geood.models.encoder_bank import (
    InBank,
    add_reviewed,
    fit_bank,
    joined,
    located,
    nearness,
    neighbours_elsewhere,
    places,
    spans,
    surroundings,
    usual_distance,
)
from geood.models.scores import BITS, by_strips
from geood.models.segmenter import SegmenterOutput
from geood.models.tails import surprisal

log = logging.getLogger("geood")
NEIGHBOURS = 3
COMPONENTS = 2  # of the mixture, per class
AXES = 32  # most principal axes that a residual lies outside of; half the features, if these are fewer than 64
LEAST_SPREAD = 1e-3  # least standard deviation of a max logit and of a feature
LEAST_SPREAD_OF_UNIT = 1e-4  # and of a value of a feature of unit length
REVIEWED_SHARE = 0.25  # most of a sample that reviewed places take, who come first
FALSE_ALARMS = 2048  # most places of false alarms that are kept
LEAST_REACH = 1e-6  # of a false alarm
PIXELS = 4096  # feature vectors scored at once: bounds the memory of distances


class Inliers(nn.Module):
    """Inlier statistics as buffers; the buffers present decide which scores can be computed."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)
        alike = torch.zeros(len(tensors.get("encoder_near", ())))
        self._spans = spans(tensors.get("encoder_classes", alike))
        self._elsewhere = neighbours_elsewhere(self._spans)

    @property
    def serves(self) -> tuple[Need, ...]:
        """Needs of scores (`ScoreKind.needs`) that these statistics satisfy."""
        held: dict[Need, str] = {
            "class statistics": "logit_mean",
            "feature bank": "bank",
            "encoder bank": "encoder_near",
            "encoder classes": "encoder_classes",
            "experts": "tail_encoder_knn",
        }
        met = (need for need, name in held.items() if hasattr(self, name))
        return tuple(need for need in met if need != "encoder classes" or self._elsewhere)

    @property
    def scores(self) -> tuple[str, ...]:
        """Kinds of score that can be computed from these statistics."""
        return scores_from(*self.serves)

    def score(self, kind: str, answer: SegmenterOutput) -> Tensor:
        """Return the score `kind` of a pass, float32, unbounded, without gradient; higher is more anomalous.

        Class scores are computed from the logits (B, K, H, W) and have shape (B, H, W), feature scores from the
        decoder's features, (B, H / 4, W / 4). Those of the encoder's bank are in `in_bank`.

        Raises:
            ValueError: `kind` is none of these, or not of `scores`.
        """
        served = [one for one in self.scores if one in _OF_CLASSES or one in _OF_FEATURES]
        if kind not in served:
            raise ValueError(f"these statistics do not serve {kind!r}, only {', '.join(served)}")
        with torch.no_grad():
            if SCORES[kind].needs == "class statistics":
                return _OF_CLASSES[kind](self, answer.logits.float())
            features = answer.features
            flat = features.float().movedim(1, -1).flatten(0, -2)
            traced = isinstance(flat.shape[0], torch.SymInt)  # a graph of any size is not cut into chunks
            chunks = (flat,) if traced else flat.split(PIXELS)
            scores = torch.cat([_OF_FEATURES[kind](self, chunk) for chunk in chunks])
            return scores.reshape(features.shape[0], *features.shape[2:])

    @property
    def knows_false_alarms(self) -> bool:
        """True if places of false alarms are held, near which score combined is lowered."""
        return hasattr(self, "encoder_false")

    def in_bank(self, answer: SegmenterOutput) -> InBank:
        """Return the places (B, H / 8, W / 8) of a pass in the encoder's bank, with their distances from it."""
        at, near = self._located(answer), self._tensor("encoder_near")
        return InBank(at, answer.logits, near=near, of=self._spans, elsewhere=self._elsewhere)

    def nearness_to_false_alarms(self, found: InBank) -> Tensor:
        """Return how near places are to features of false alarms (B, h, w): 1 at them, 0 where far from all.

        Places around such features count with them (`encoder_bank.surroundings`).
        """
        with torch.no_grad():
            to, reach = self._tensor("encoder_false"), self._tensor("encoder_reach")
            return surroundings(nearness(found.at, to=to, reach=reach))

    def is_narrow(self, answer: SegmenterOutput) -> bool:
        """Return whether the encoder's bank holds features of stride 8 alone, as in bundles of formats before 5."""
        return len(self._tensor("encoder_shift")) == answer.encoder.shape[1]

    def _located(self, answer: SegmenterOutput) -> Tensor:
        """Return the places (B, H / 8, W / 8, A) of a pass in the encoder's bank."""
        maps = (answer.encoder,) if self.is_narrow(answer) else (answer.encoder, answer.coarser)
        return located(maps, shift=self._tensor("encoder_shift"), axes=self._tensor("encoder_axes"))

    def surprisal(self, kind: str, score: Tensor) -> Tensor:
        """Return the surprisal of the expert `kind` on inliers, in nats, of its shape; `knows_tail` of it is true."""
        return surprisal(score, self._tensor(f"tail_{kind}"))

    def knows_tail(self, kind: str) -> bool:
        """Return whether the tail of an expert is held; that of `encoder_ratio` is not in formats before 7."""
        return hasattr(self, f"tail_{kind}")

    def _standardized_max_logit(self, logits: Tensor) -> Tensor:
        """Return the predicted class's mean max logit minus the max logit, in standard deviations, (B, H, W)."""
        largest, taken = logits.max(1)
        return (self._tensor("logit_mean")[taken] - largest) / self._tensor("logit_std")[taken]

    def _kl_matching(self, logits: Tensor) -> Tensor:
        """Return the divergence from the nearest template (B, H, W), computed strip by strip."""
        return by_strips(self._divergence_to_templates, logits)

    def _divergence_to_templates(self, logits: Tensor) -> Tensor:
        """Return the minimum of KL(softmax || template) over the class templates (B, H, W), in nats."""
        log_p = logits.log_softmax(1)
        p = (log_p * BITS).exp2_()
        crossed = torch.einsum("bkhw,tk->bthw", p, self._tensor("log_templates"))
        return p.mul_(log_p).sum(1) - crossed.amax(1)

    def _knn(self, flat: Tensor) -> Tensor:
        """Return the mean distance (N,) of features (N, D) to their nearest neighbours in the bank."""
        bank = self._tensor("bank")
        apart = _apart(self._standardized(functional.normalize(flat), "unit"), bank)
        return apart.topk(min(NEIGHBOURS, len(bank)), largest=False).values.mean(1)

    def _gmm(self, flat: Tensor) -> Tensor:
        """Return the negative ln density (N,) of features (N, D) under the mixture, divided by D."""
        root = self._tensor("mixture_root")  # Cholesky factor of the shared precision matrix: upper triangular (D, D)
        unit = self._standardized(functional.normalize(flat), "unit")
        apart = _apart(unit @ root, self._tensor("mixture_centres"))
        density = self._tensor("mixture_log_weights") - 0.5 * apart.square()
        whole = density.logsumexp(1) + root.diagonal().log().sum() - 0.5 * flat.shape[1] * math.log(2 * math.pi)
        return -whole / flat.shape[1]

    def _residual(self, flat: Tensor) -> Tensor:
        """Return the length (N,) of what of the standardized features (N, D) lies outside the principal axes."""
        standard, axes = self._standardized(flat, "feature"), self._tensor("axes")
        outside: Tensor = (standard - (standard @ axes.T) @ axes).norm(dim=1)
        return outside

    def _standardized(self, flat: Tensor, of: str) -> Tensor:
        return (flat - self._tensor(f"{of}_mean")) / self._tensor(f"{of}_std")

    def _tensor(self, name: str) -> Tensor:
        tensor = getattr(self, name)
        assert isinstance(tensor, Tensor)
        return tensor


def _apart(places: Tensor, others: Tensor) -> Tensor:
    """Return the distances (N, M) of places (N, D) from others (M, D); ONNX lacks `cdist`."""
    if not isinstance(places.shape[0], torch.SymInt):
        return torch.cdist(places, others)
    lengths = places.square().sum(1, keepdim=True) + others.square().sum(1)
    return (lengths - 2 * places @ others.T).clamp_min(0).sqrt()


# One function per row of the score table that needs statistics: of logits, and of features (N, D).
_OF_CLASSES: dict[str, Callable[[Inliers, Tensor], Tensor]] = {
    "standardized_max_logit": Inliers._standardized_max_logit,
    "kl_matching": Inliers._kl_matching,
}
_OF_FEATURES: dict[str, Callable[[Inliers, Tensor], Tensor]] = {
    "knn": Inliers._knn,
    "gmm": Inliers._gmm,
    "residual": Inliers._residual,
}


class InlierFit:
    """Accumulator of inlier statistics over the segmenter's outputs on training crops.

    In all, `samples` feature vectors are kept for the feature scores (0: none) and `places` of the encoder, each drawn
    with `seed` whatever is drawn of the other, from each of `batches` batches about as many.
    """

    def __init__(self, classes: int, *, samples: int, places: int, batches: int, seed: int) -> None:
        self.classes = classes
        self._count = torch.zeros(classes, dtype=torch.float64)
        self._sum, self._squares = torch.zeros_like(self._count), torch.zeros_like(self._count)
        self._softmax = torch.zeros(classes, classes, dtype=torch.float64)
        self._features, self._encoder = (
            _Sample(most, -(-most // batches), torch.Generator().manual_seed(seed)) for most in (samples, places)
        )
        self._false, self._seed = list[Tensor](), seed

    def update(self, answer: SegmenterOutput, mask: Tensor, *, reviewed: Tensor | None = None) -> None:
        """Add the labelled pixels of one batch and draw feature vectors from it.

        Args:
            answer: output of the segmenter for (B, C, H, W).
            mask: (B, H, W), class indices; 255 is ignored.
            reviewed: (B,), boolean: whose labels are a person's verdicts, of a stated class or not; None: of none.
                Inliers of no stated class are reviewed ones anyway.
        """
        known = mask != IGNORE
        for logits, of_image in zip(answer.logits, known, strict=True):  # a batch in float64 takes gigabytes
            pixels = logits.movedim(0, -1)[of_image].double().cpu()
            largest, taken = pixels.max(1)
            self._count.index_add_(0, taken, torch.ones_like(largest))
            self._sum.index_add_(0, taken, largest)
            self._squares.index_add_(0, taken, largest.square())
            self._softmax.index_add_(0, taken, pixels.softmax(1))
        judged = mask == UNSTATED if reviewed is None else (mask == UNSTATED) | (known & reviewed[:, None, None])
        self._features.draw(answer.features, known, judged)
        seen = joined((answer.encoder, answer.coarser))
        taken_for = places(answer.logits, seen.shape[2:])
        self._encoder.draw(torch.cat([seen, taken_for[:, None].to(seen.dtype)], 1), known, judged)

    def add_false_alarms(self, answer: SegmenterOutput, false: Tensor) -> None:
        """Add the places of the encoder whose middle pixel a person called a false alarm.

        Args:
            answer: output of the segmenter for (B, C, H, W).
            false: (B, H, W), boolean.
        """
        features = joined((answer.encoder, answer.coarser)).movedim(1, -1)
        middle = _middle(false.shape[-1] // features.shape[2])
        self._false.append(features[false[middle].to(features.device)].float().cpu())

    def finish(self, kept: Inliers | None = None) -> Inliers:
        """Return the statistics. A class never predicted gets mean and deviation of all pixels, and no template.

        With `kept` the encoder's bank is that of these statistics, with reviewed places as drawn here.
        """
        tensors = self._classes()
        if (samples := self._features.all()) is not None:
            tensors |= _features(samples, components=COMPONENTS * self.classes)
        if (bank := self._bank(kept)) is not None:
            bank |= self._false_alarms(bank)
            tensors |= {f"encoder_{name}": part for name, part in bank.items()}
        return Inliers({name: tensor.float() for name, tensor in tensors.items()})

    def _bank(self, kept: Inliers | None) -> dict[str, Tensor] | None:
        """Return the encoder's bank with which of its rows are reviewed, if any; None if too few places were drawn."""
        drawn = self._encoder
        if kept is not None:
            of = {name[len("encoder_") :]: t for name, t in kept.named_buffers() if name.startswith("encoder_")}
            samples = torch.cat(drawn.drawn)[torch.cat(drawn.reviewed)]
            return add_reviewed(of, samples[:, :-1], samples[:, -1])
        if (found := drawn.all()) is None:
            return None
        bank, reviewed = fit_bank(found[:, :-1], found[:, -1]), torch.cat(drawn.reviewed)
        return bank | ({"reviewed": reviewed[found[:, -1].argsort(stable=True)]} if reviewed.any() else {})

    def _false_alarms(self, bank: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the places of false alarms in a bank, at most FALSE_ALARMS, and how far they reach; empty without any.

        The reach is told by places that nobody reviewed: the others were drawn again and again from little ground.
        """
        found = torch.cat([torch.empty(0, len(bank["shift"])), *self._false])
        if not len(found):
            return {}
        chosen = torch.randperm(len(found), generator=torch.Generator().manual_seed(self._seed))[:FALSE_ALARMS]
        usual = usual_distance(bank["near"][~bank["reviewed"]] if "reviewed" in bank else bank["near"])
        false = (found[chosen.sort().values] - bank["shift"]) @ bank["axes"]
        return {"false": false, "reach": usual.clamp_min(LEAST_REACH).reshape(1)}

    def _classes(self) -> dict[str, Tensor]:
        seen, total = self._count > 0, self._count.sum().clamp_min(1)
        count = self._count.clamp_min(1)
        mean = torch.where(seen, self._sum / count, self._sum.sum() / total)
        square = torch.where(seen, self._squares / count, self._squares.sum() / total)
        templates = self._softmax[seen] / count[seen, None]
        if not len(templates):  # no labelled pixel
            templates = torch.full((1, self.classes), 1 / self.classes)
        return {
            "logit_mean": mean,
            "logit_std": (square - mean.square()).clamp_min(0).sqrt().clamp_min(LEAST_SPREAD),
            "log_templates": templates.clamp_min(1e-12).log(),
        }


class _Sample:
    """Random sample of `most` feature vectors, at most `each` from a batch beside reviewed ones.

    A reviewed false alarm covers a few places and a labelled crop hundreds, so at random hardly any would be drawn, and
    the next map would show it again: reviewed places come first, up to REVIEWED_SHARE of the sample.
    """

    def __init__(self, most: int, each: int, generator: torch.Generator) -> None:
        self.most, self.each, self.drawn = most, each, list[Tensor]()
        self.reviewed = list[Tensor]()  # whether a place that was drawn is a reviewed one, (n,) for each of `drawn`
        self._generator, self._reviewed_left = generator, int(REVIEWED_SHARE * most)

    def draw(self, features: Tensor, known: Tensor, reviewed: Tensor) -> None:
        """Draw from features (B, D, h, w) at places whose middle pixel is `known` or `reviewed` (B, H, W)."""
        left = self.most - sum(len(batch) for batch in self.drawn)
        if left <= 0:
            return
        flat, middle = features.movedim(1, -1), _middle(known.shape[-1] // features.shape[-1])
        for which, most in ((reviewed, self._reviewed_left), (known & ~reviewed, self.each)):
            found = flat[which[middle].to(features.device)].float().cpu()
            order = torch.randperm(len(found), generator=self._generator)
            taken = found[order[: min(most, left)]]
            self.drawn.append(taken)
            self.reviewed.append(torch.full((len(taken),), which is reviewed))
            left -= len(taken)
            if which is reviewed:
                self._reviewed_left -= len(taken)

    def all(self) -> Tensor | None:
        """Return all that was drawn (N, D); None if none was asked for, or too few were found for statistics."""
        samples = torch.cat(self.drawn) if self.drawn else torch.empty(0, 1)
        if self.most and len(samples) < LEAST_FEATURES:
            log.warning(
                "labels cover %s of features, too few for scores that compare them", counted(len(samples), "place")
            )
        return samples if self.most and len(samples) >= LEAST_FEATURES else None


def _middle(scale: int) -> tuple[slice, slice, slice]:
    """Return where in images (B, H, W) the middle pixels of places lie that are `scale` pixels wide."""
    every = slice(scale // 2, None, scale)
    return slice(None), every, every


def _features(samples: Tensor, *, components: int) -> dict[str, Tensor]:
    """Return bank and mixture of feature vectors (N, D) of unit length, and principal axes of them as they are.

    Each goes with the means and standard deviations that standardize what it is compared with.
    """
    from sklearn.mixture import GaussianMixture

    mean, std = samples.mean(0), samples.std(0).clamp_min(LEAST_SPREAD)
    unit = functional.normalize(samples)
    unit_mean, unit_std = unit.mean(0), unit.std(0).clamp_min(LEAST_SPREAD_OF_UNIT)
    bank = (unit - unit_mean) / unit_std
    count = max(1, min(components, len(bank) // 10))
    mixture = GaussianMixture(count, covariance_type="tied", reg_covar=1e-2, random_state=0).fit(bank.double().numpy())
    root = torch.from_numpy(mixture.precisions_cholesky_)
    return {
        "feature_mean": mean,
        "feature_std": std,
        "axes": _principal_axes((samples - mean) / std),
        "unit_mean": unit_mean,
        "unit_std": unit_std,
        "bank": bank,
        "mixture_root": root,
        "mixture_centres": torch.from_numpy(mixture.means_) @ root,
        "mixture_log_weights": torch.from_numpy(mixture.weights_).log(),
    }


def _principal_axes(standard: Tensor) -> Tensor:
    """Return the leading principal axes (A, D) of standardized features (N, D), orthonormal rows; at least one."""
    count = max(1, min(AXES, standard.shape[1] // 2))
    wide = standard.double()
    _, vectors = torch.linalg.eigh(wide.T @ wide / len(wide))
    leading: Tensor = vectors[:, -count:].T
    return leading
