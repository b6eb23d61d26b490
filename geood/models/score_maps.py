"""Score maps of a forward pass: which score is made of what, joined, smoothed and cut.

Everything comes from one answer of the segmenter, and what several scores have in common is computed once. Scores of
logits are computed on the pixels asked for alone; those that are smoothed, on all of them. Last of all, score combined
is lowered near the features of false alarms: it alone is a surprisal in nats, so that a strength means something.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from geood.config import OF_ENCODER, SCORES, ScoreConfig
from geood.models.decoder import upsample
from geood.models.encoder_bank import PLACE_PX, SPREAD_PX, InBank
from geood.models.guided_filter import filter_radius, guided_filter
from geood.models.inlier_statistics import Inliers
from geood.models.region import WHOLE, Region
from geood.models.scores import anomaly_score, outlier_score
from geood.models.segmenter import SegmenterOutput
from geood.models.tails import fit_tail

EXPERTS = {"hybrid": 1.0, "encoder_knn": 0.5, "encoder_ratio": 0.3}  # of score combined: weights of their surprisals
WITH_NARROW_BANK = {"hybrid": 1.0, "encoder_knn": 0.35}  # of bundles of formats before 5, which it was made for


def with_tails(inliers: Inliers, threshold_of: Callable[[str], Callable[[float], float]]) -> Inliers:
    """Return inlier statistics with the tails of all experts that they serve.

    `threshold_of` gives for a kind of score the function from a share of inliers to the score that it exceeds.
    """
    known = [kind for kind in EXPERTS if kind in ("hybrid", *inliers.scores)]
    tails = {f"tail_{kind}": fit_tail(threshold_of(kind)) for kind in known}
    return Inliers(dict(inliers.named_buffers()) | tails)


def offset_of(settings: ScoreConfig, offsets: Mapping[str, float]) -> float:
    """Return the offset of the outlier logit for `veto_share`; 0 without one."""
    return offsets.get(str(settings.veto_share), 0.0)


@dataclasses.dataclass
class _Found:
    """Parts of one answer, each computed once: unsmoothed scores by kind, offset and whether of all, and its places."""

    scores: dict[tuple[str, float, bool], Tensor] = dataclasses.field(default_factory=dict)
    in_bank: InBank | None = None


@dataclasses.dataclass(frozen=True)
class Scorer:
    """Scores of forward passes, as a bundle has them.

    `settings` are those of the scores, `calibrated` those that tails hold for, `inliers` and `offsets` what some scores
    need, and `kinds` the scores that can be computed.
    """

    settings: ScoreConfig
    calibrated: ScoreConfig
    inliers: Inliers | None
    offsets: Mapping[str, float]
    kinds: tuple[str, ...]

    def scores_of(
        self,
        answer: SegmenterOutput,
        image: Tensor,
        valid: Tensor | None,
        *,
        kinds: Sequence[str],
        core: Region,
    ) -> dict[str, Tensor]:
        """Return scores (B, h, w) of a forward pass by kind, see `ModelBundle.scores_of`.

        Raises:
            ValueError: one of them cannot be computed.
        """
        found, scores = _Found(), dict[str, Tensor]()
        everywhere = torch.ones(image.shape[:1] + image.shape[2:], dtype=torch.bool, device=image.device)
        known = everywhere if valid is None else valid
        for kind in kinds:
            radius = self.settings.smooth_of(kind)
            scores[kind] = raw = self._raw(answer, kind, WHOLE if radius else core, found)
            if radius:
                smooth = guided_filter(raw, image, known, radius=radius, evenness=self.settings.smooth_contrast)
                scores[kind] = smooth[:, core[0], core[1]]
            if self._spreads(kind):
                scores[kind] = scores[kind] - self._less(answer, core, found)
        return scores

    def radius_of(self, kind: str) -> int:
        """Return how far around a pixel a kind of score looks in pixels, beyond what it interpolates."""
        return max(filter_radius(self.settings.smooth_of(kind)), SPREAD_PX if self._spreads(kind) else 0)

    def reach_of(self, kind: str) -> int:
        """Return how far around a pixel a kind of score looks in pixels, beyond what the network does."""
        return max(self.radius_of(kind), SPREAD_PX + 2 * PLACE_PX if self._spreads(kind) else 0)

    def _spreads(self, kind: str) -> bool:
        """Return whether a kind of score is lowered around what is near false alarms."""
        return SCORES[kind].needs == "experts" and self.lowers

    @property
    def lowers(self) -> bool:
        """True if score combined is lowered near false alarms."""
        return self.settings.false_alarm_nats > 0 and self.inliers is not None and self.inliers.knows_false_alarms

    def _less(self, answer: SegmenterOutput, core: Region, found: _Found) -> Tensor:
        """Return by how much the score of the core (B, h, w) is lowered near false alarms, in nats."""
        assert self.inliers is not None
        near = self.inliers.nearness_to_false_alarms(self._in_bank(answer, found))
        near = upsample(near[:, None], answer.logits.shape[-2:])
        return self.settings.false_alarm_nats * near[:, 0, core[0], core[1]]

    def _raw(self, answer: SegmenterOutput, kind: str, core: Region, found: _Found) -> Tensor:
        """Return the unsmoothed score of the core (B, h, w), from `found` or computed and put there."""
        if kind not in self.kinds:
            raise ValueError(f"this bundle cannot give the score {kind}")
        key = kind, offset_of(self.settings, self.offsets), core == WHOLE
        if key not in found.scores:
            found.scores[key] = self._computed(answer, kind, core, found)
        return found.scores[key]

    def _in_bank(self, answer: SegmenterOutput, found: _Found) -> InBank:
        """Return the places of the answer in the encoder's bank, from `found` or put there."""
        assert self.inliers is not None
        found.in_bank = found.in_bank or self.inliers.in_bank(answer)
        return found.in_bank

    def _computed(self, answer: SegmenterOutput, kind: str, core: Region, found: _Found) -> Tensor:
        """Compute the unsmoothed score of the core (B, h, w); scores of logits are computed on the core alone."""
        rows, cols = core
        logits, needs = answer.logits[:, :, rows, cols], SCORES[kind].needs
        if needs == "logits":
            return anomaly_score(logits, kind, self.settings.temperature_of(kind))
        if needs in ("head", "class"):
            assert answer.outlier is not None
            return outlier_score(
                logits, answer.outlier[:, rows, cols], kind, offset=offset_of(self.settings, self.offsets)
            )
        assert self.inliers is not None
        if needs == "experts":
            as_calibrated = dataclasses.replace(self, settings=self.calibrated)
            total = torch.zeros((), device=logits.device)
            weights = WITH_NARROW_BANK if self.inliers.is_narrow(answer) else EXPERTS
            for one, weight in weights.items():
                if not self.inliers.knows_tail(one):
                    continue
                total = total + weight * self.inliers.surprisal(one, as_calibrated._raw(answer, one, core, found))
            return total
        if needs == "class statistics":
            return self.inliers.score(kind, answer._replace(logits=logits))
        if needs in OF_ENCODER:
            place = self._in_bank(answer, found)
            coarse = place.own if kind == "encoder_knn" else place.ratio
        else:
            coarse = self.inliers.score(kind, answer)
        return upsample(coarse[:, None], answer.logits.shape[-2:])[:, 0, rows, cols]
