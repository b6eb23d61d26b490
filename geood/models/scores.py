"""Anomaly scores from logits, one value per pixel; higher is always more anomalous.

The method's own score is one minus the Jensen-Shannon divergence between the uniform distribution and the softmax,
normalized by its maximum: 1 for a uniform softmax and 0 for a one-hot one, whatever the number of classes. The usual
baselines are computed from the same logits; others use a segmenter's outlier output. This module holds pure
functions of tensors; scores that need inlier statistics are in `models.inlier_statistics`.

With r = K p, the divergence is the sum over classes of r ln r - (1 + r) ln((1 + r) / 2), divided by 2K. Each summand is
non-negative and vanishes at r = 1, so there is no cancellation of large terms near the uniform distribution, and the
cost is two exponentials and one logarithm per logit.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from geood._torch_compat import start_vector_functions
from geood.config import SCORES

start_vector_functions()

BITS = 1 / math.log(2)  # of a nat: e^x is 2^(x BITS), which torch computes on a CPU in half the time
STRIP = 1 << 17  # logits in a strip: half a megabyte, and two or three times that for the intermediate tensors


def score_max(classes: int) -> float:
    """Return the largest Jensen-Shannon divergence to uniform over `classes` classes: that of a one-hot softmax.

    It grows from 0.216 for two classes towards ln 2 (arXiv 2112.12833; closed form in nats).

    Raises:
        ValueError: there are fewer than two classes.
    """
    if classes < 2:
        raise ValueError(f"a divergence between class distributions needs two classes or more, got {classes}")
    k = float(classes)
    to_uniform = math.log(2 / (k + 1)) / k + (k - 1) / k * math.log(2)
    return 0.5 * to_uniform + 0.5 * math.log(2 * k / (k + 1))


def jensen_shannon_to_uniform(logits: Tensor, dim: int = 1) -> Tensor:
    """Compute the Jensen-Shannon divergence between uniform and softmax(logits), in nats, in [0, score_max(K)].

    Maps logits (B, K, H, W) to (B, H, W) by default; `dim` is the class dimension, of length K, and is removed.
    Differentiable. Half-precision logits give float32 (arXiv 2112.12833, the loss term L_neg and the score).
    """
    log_ratio, ratio = _ratios(logits, dim)
    terms = ratio * log_ratio - (1 + ratio) * torch.log1p((ratio - 1) / 2)
    return terms.sum(dim) / (2 * logits.shape[dim])


def anomaly_score(logits: Tensor, kind: str, temperature: float = 1.0) -> Tensor:
    """Compute an anomaly score from logits; higher is more anomalous, no gradient.

    With z = logits / temperature and p = softmax(z): `jsd` is 1 - JSD(uniform, p) / score_max(K), `max_softmax`
    1 - max p and `entropy` H(p) / ln K, all in [0, 1]; `max_logit` is -max z and `energy` -temperature * logsumexp(z),
    both unbounded (Hendrycks et al. 2017 and 2022, Liu et al. 2020).

    Args:
        logits: (B, K, H, W), of any floating-point dtype.
        kind: `jsd`, `max_softmax`, `max_logit`, `entropy` or `energy`.
        temperature: divisor of the logits, above 0.

    Returns:
        The score (B, H, W), float32.

    Raises:
        ValueError: `kind` is none of these.

    Example:
        A pixel that is sure of its class, and one that knows none:

        >>> import geood, torch
        >>> logits = torch.tensor([[9.0, 0.0], [0.0, 0.0], [0.0, 0.0]]).reshape(1, 3, 1, 2)
        >>> geood.anomaly_score(logits, "jsd").round(decimals=2)
        tensor([[[0., 1.]]])
    """
    if kind not in _OF_LOGITS:
        raise ValueError(f"unknown score of logits {kind!r}; choose one of {', '.join(_OF_LOGITS)}")
    score = _OF_LOGITS[kind]

    def of_strip(strip: Tensor) -> Tensor:
        wide = strip.float()
        return score(wide / temperature if temperature != 1 else wide, temperature)

    with torch.no_grad():
        return by_strips(of_strip, logits)


def by_strips(score: Callable[[Tensor], Tensor], logits: Tensor) -> Tensor:
    """Apply `score` to logits (B, K, H, W), on a CPU in strips of rows; return (B, H, W), float32.

    The logits of a strip and the intermediate tensors fit into a core's cache; on the whole tensor every operation
    would go through main memory. On a GPU the whole tensor is processed at once, and so is one that is traced.

    Args:
        score: maps logits (B, K, h, W) to scores (B, h, W), pixel by pixel.
        logits: (B, K, H, W).
    """
    if isinstance(logits.shape[2], torch.SymInt):
        return score(logits)
    row = logits.shape[0] * logits.shape[1] * logits.shape[3]
    rows = max(1, STRIP // max(1, row))
    if logits.device.type not in ("cpu", "meta") or rows >= logits.shape[2]:
        return score(logits)
    out = logits.new_empty((logits.shape[0], *logits.shape[2:]), dtype=torch.float32)
    for top in range(0, logits.shape[2], rows):
        out[:, top : top + rows] = score(logits[:, :, top : top + rows].contiguous())
    return out


def outlier_score(logits: Tensor, outlier: Tensor, kind: str, *, offset: float = 0.0) -> Tensor:
    """Compute an anomaly score from class logits and an outlier logit; higher is more anomalous, no gradient.

    `outlier` is the logit itself. `hybrid` is ln sigmoid(outlier + offset) - logsumexp(logits), unbounded: a
    discriminative term learned from negatives and a generative one learned from inliers (arXiv 2207.02606, there
    without an offset). The first is about 0 where outliers are likely and falls linearly where they are not: it vetoes
    sure inliers and leaves the order of the rest to the classes; the offset says where it sets in. `ratio` is
    outlier - max logit, the likelihood ratio of being none to being one of the classes (Nazir et al., IJCV 2025).
    `uno` is P(outlier class) + 1 - P(most likely class), in [0, 2]: negative objectness plus uncertainty (arXiv
    2402.15374), with confident inliers at 0, where floating-point numbers are dense.

    Args:
        logits: (B, K, H, W), of the classes.
        outlier: (B, H, W), logit of the outlier head, or of the additional class (`uno`).
        kind: `outlier`, `hybrid`, `ratio` or `uno`.
        offset: added to the outlier logit by `hybrid`.

    Returns:
        The score (B, H, W), float32.

    Raises:
        ValueError: `kind` is none of these.
    """
    if kind not in _OF_OUTLIER:
        raise ValueError(f"unknown score of an outlier output {kind!r}; choose one of {', '.join(_OF_OUTLIER)}")
    with torch.no_grad():
        return _OF_OUTLIER[kind](logits, outlier.float() + (offset if SCORES[kind].shifted else 0.0))


def _ratios(logits: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Return ln(K p) and K p, of the shape of the logits; half precision becomes float32."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    log_ratio = wide.log_softmax(dim) + math.log(logits.shape[dim])
    return log_ratio, log_ratio.exp()


def _jsd_score(scaled: Tensor) -> Tensor:
    """Return 1 - JSD / score_max (B, H, W); the formula above in place, with two buffers of the logits' size."""
    classes = scaled.shape[1]
    log_ratio = scaled.log_softmax(1).add_(math.log(classes))
    ratio = (log_ratio * BITS).exp2_()
    first = log_ratio.mul_(ratio).sum(1)
    half = torch.sub(ratio, 1, out=log_ratio).mul_(0.5).log1p_()
    second = half.mul_(ratio.add_(1)).sum(1)
    divergence = first.sub_(second)
    return divergence.mul_(-1 / (2 * classes * score_max(classes))).add_(1).clamp_(0, 1)  # clamp: rounding only


def _entropy(scaled: Tensor) -> Tensor:
    """Return the entropy of the softmax over dimension 1, in nats."""
    log_p = scaled.log_softmax(1)
    return (log_p * BITS).exp2_().mul_(log_p).sum(1).neg_()


def _max_softmax(scaled: Tensor) -> Tensor:
    whole, _ = _relative_sum(scaled)
    return 1 - 1 / whole


def _energy(scaled: Tensor) -> Tensor:
    whole, largest = _relative_sum(scaled)
    return whole.log_().add_(largest).neg_()


def _relative_sum(scaled: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sum over dimension 1 of the exponentials, in units of the largest, and the largest number there."""
    largest = scaled.amax(1, keepdim=True)
    return (scaled - largest).mul_(BITS).exp2_().sum(1), largest[:, 0]


def _hybrid(logits: Tensor, outlier: Tensor) -> Tensor:
    return anomaly_score(logits, "energy").add_(functional.logsigmoid(outlier))


def _uno(logits: Tensor, outlier: Tensor) -> Tensor:
    whole = torch.logaddexp(-anomaly_score(logits, "energy"), outlier)
    likeliest = -anomaly_score(logits, "max_logit")
    return (outlier - whole).exp() - torch.expm1(likeliest - whole)


# One function per row of the score table that needs no statistics; arguments: logits / temperature, temperature.
_OF_LOGITS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "jsd": lambda scaled, _: _jsd_score(scaled),
    "max_softmax": lambda scaled, _: _max_softmax(scaled),
    "max_logit": lambda scaled, _: -scaled.amax(1),
    "entropy": lambda scaled, _: _entropy(scaled) / math.log(scaled.shape[1]),
    "energy": lambda scaled, temperature: _energy(scaled).mul_(temperature),
}
_OF_OUTLIER: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "outlier": lambda _, outlier: outlier,
    "hybrid": _hybrid,
    "ratio": lambda logits, outlier: outlier - logits.float().amax(1),
    "uno": _uno,
}
