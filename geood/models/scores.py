"""From logits to one anomaly score for each pixel; higher is always more anomalous.

The score of the method is the Jensen-Shannon divergence between the uniform distribution and the softmax, turned round
and divided by its largest value, so that 1 says "no class at all" and 0 "one class for sure" whatever the number of
classes. The usual baselines stand beside it and are read off the same logits; two more take a segmenter's outlier
output. This room holds pure functions of tensors; what needs statistics of inliers is in `inliers`.

With r = K p, the divergence is the sum over classes of r ln r - (1 + r) ln((1 + r) / 2), divided by 2K. Each summand is
non-negative and vanishes at r = 1, so nothing large cancels near the uniform distribution, and one exponential and one
logarithm for each logit are all it costs.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from geood._torch_compat import start_vector_functions

start_vector_functions()

STRIP = 1 << 17  # logits in a strip: half a megabyte, with two or three times that for what is made of them


def score_max(classes: int) -> float:
    """The largest Jensen-Shannon divergence to uniform over `classes` classes, in nats: that of a one-hot softmax.

    It grows from 0.216 for two classes towards ln 2 (arXiv 2112.12833; closed form in nats).

    Raises:
        ValueError: if there are fewer than two classes.
    """
    if classes < 2:
        raise ValueError(f"a divergence between class distributions needs two classes or more, got {classes}")
    k = float(classes)
    to_uniform = math.log(2 / (k + 1)) / k + (k - 1) / k * math.log(2)
    return 0.5 * to_uniform + 0.5 * math.log(2 * k / (k + 1))


def jensen_shannon_to_uniform(logits: Tensor, dim: int = 1) -> Tensor:
    """Jensen-Shannon divergence between uniform and softmax(logits) along `dim`, in nats, in [0, score_max(K)].

    Differentiable; `dim` is removed from the shape. Half precision comes back as float32. (arXiv 2112.12833, the term
    L_neg and the score.)
    """
    log_ratio, ratio = _ratios(logits, dim)
    terms = ratio * log_ratio - (1 + ratio) * torch.log1p((ratio - 1) / 2)
    return terms.sum(dim) / (2 * logits.shape[dim])


def anomaly_score(logits: Tensor, kind: str, temperature: float = 1.0) -> Tensor:
    """The score `kind` of each pixel: logits (B, K, H, W) to (B, H, W) float32, higher is more anomalous, no gradient.

    With z = logits / temperature and p = softmax(z): `jsd` is 1 - JSD(uniform, p) / score_max(K), `max_softmax`
    1 - max p and `entropy` H(p) / ln K, all in [0, 1]; `max_logit` is -max z and `energy` -temperature * logsumexp(z),
    without bounds (Hendrycks et al. 2017 and 2022, Liu et al. 2020).

    Raises:
        ValueError: if `kind` is none of these.
    """
    if kind not in _OF_LOGITS:
        raise ValueError(f"no score of logits is called {kind!r}; there are {', '.join(_OF_LOGITS)}")
    score = _OF_LOGITS[kind]

    def of_strip(strip: Tensor) -> Tensor:
        wide = strip.float()
        return score(wide / temperature if temperature != 1 else wide, temperature)

    with torch.no_grad():
        return by_strips(of_strip, logits)


def by_strips(score: Callable[[Tensor], Tensor], logits: Tensor) -> Tensor:
    """What `score` makes of logits (B, K, H, W), (B, H, W), strip by strip of rows on a CPU.

    A strip's logits and what is made of them on the way stay in the cache of a core; done at once, every step would go
    through memory. On a GPU all is done at once.
    """
    row = logits.shape[0] * logits.shape[1] * logits.shape[3]
    rows = max(1, STRIP // max(1, row))
    if logits.device.type != "cpu" or rows >= logits.shape[2]:
        return score(logits)
    out = logits.new_empty((logits.shape[0], *logits.shape[2:]), dtype=torch.float32)
    for top in range(0, logits.shape[2], rows):
        out[:, top : top + rows] = score(logits[:, :, top : top + rows].contiguous())
    return out


def outlier_score(logits: Tensor, outlier: Tensor, kind: str) -> Tensor:
    """The score `kind` from logits (B, K, H, W) and the outlier logit (B, H, W), to (B, H, W) float32, no gradient.

    `hybrid` is ln P(outlier) - logsumexp(logits): both say how unlikely the pixel is, one learned from negatives, one
    from inliers (arXiv 2207.02606). `uno` is P(outlier class) + 1 - P(likeliest class), in [0, 2]: negative objectness
    and uncertainty together (arXiv 2402.15374), with sure inliers at 0, where floating-point numbers are dense.

    Raises:
        ValueError: if `kind` is neither.
    """
    if kind not in _OF_OUTLIER:
        raise ValueError(f"no score of an outlier output is called {kind!r}; there are {' and '.join(_OF_OUTLIER)}")
    with torch.no_grad():
        return _OF_OUTLIER[kind](logits, outlier.float())


def _ratios(logits: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """ln(K p) and K p."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    log_ratio = wide.log_softmax(dim) + math.log(logits.shape[dim])
    return log_ratio, log_ratio.exp()


def _jsd_score(scaled: Tensor) -> Tensor:
    """1 - JSD / score_max with two buffers of the logits' size; same formula as above, in place."""
    classes = scaled.shape[1]
    log_ratio, ratio = _ratios(scaled, 1)
    first = log_ratio.mul_(ratio).sum(1)
    half = torch.sub(ratio, 1, out=log_ratio).mul_(0.5).log1p_()
    second = half.mul_(ratio.add_(1)).sum(1)
    divergence = first.sub_(second)
    return divergence.mul_(-1 / (2 * classes * score_max(classes))).add_(1).clamp_(0, 1)  # clamp: rounding only


def _entropy(scaled: Tensor) -> Tensor:
    """Entropy of the softmax over dimension 1, in nats."""
    log_p = scaled.log_softmax(1)
    return log_p.exp().mul_(log_p).sum(1).neg_()


def _max_softmax(scaled: Tensor) -> Tensor:
    return 1 - torch.exp(scaled.amax(1) - scaled.logsumexp(1))


def _hybrid(logits: Tensor, outlier: Tensor) -> Tensor:
    return anomaly_score(logits, "energy").add_(functional.logsigmoid(outlier))


def _uno(logits: Tensor, outlier: Tensor) -> Tensor:
    whole = torch.logaddexp(-anomaly_score(logits, "energy"), outlier)
    likeliest = -anomaly_score(logits, "max_logit")
    return (outlier - whole).exp() - torch.expm1(likeliest - whole)


# One function for each row of the score table that needs no statistics; of logits / temperature, and the temperature.
_OF_LOGITS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "jsd": lambda scaled, _: _jsd_score(scaled),
    "max_softmax": lambda scaled, _: _max_softmax(scaled),
    "max_logit": lambda scaled, _: -scaled.amax(1),
    "entropy": lambda scaled, _: _entropy(scaled) / math.log(scaled.shape[1]),
    "energy": lambda scaled, temperature: -temperature * scaled.logsumexp(1),
}
_OF_OUTLIER: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"hybrid": _hybrid, "uno": _uno}
