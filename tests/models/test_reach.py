"""Laws of the reach: it is the receptive field, its halo leaves no seam, and the narrowest that will do is taken."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from geood.config import SegmenterConfig
from geood.geo.grid import tile_grid
from geood.models.bundle_header import Reach
from geood.models.reach import (
    CHANGED,
    EFFORTS,
    LOST,
    MOST_HALO,
    OPERATIONS,
    POOLING,
    ROUGH,
    STEP,
    Effort,
    Seam,
    chosen_halo,
    effort_for,
    gradient_beyond,
    measured_reach,
    outputs_of,
    seam_of,
)
from geood.models.segmenter import Segmenter
from support.bundles import make_bundle
from support.rasters import picture

SMOOTH, ROUGH_SEAM = Seam(1.0, 0.0), Seam(ROUGH + 1, 0.0)


class Plain(nn.Module):
    """Two convolutions whose receptive field reaches `radius` pixels to each side, the last ones with all its edge."""

    def __init__(self, radius):
        super().__init__()
        self.first = nn.Conv2d(3, 2, 3, padding=1)
        self.second = nn.Conv2d(2, 1, 3, padding=radius - 1, dilation=radius - 1)
        with torch.no_grad():
            for weight in self.parameters():
                weight.fill_(0.1)

    def forward(self, image):
        return self.second(self.first(image))[:, 0]


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("radius", [2, 31, 32, 33, 64, 65, 96])
def test_the_gradient_of_plain_convolutions_ends_where_their_receptive_field_does(radius):
    network = Plain(radius)
    beyond = gradient_beyond(lambda image: [network(image)[0]], noise(1, 3, 256, 256), [(128, 128), (130, 121)])
    assert [share > 0 for share in beyond] == [px < radius for px in (32, 64, 96)]


def test_the_shares_are_those_of_the_weights():
    """A box of 129 pixels weighs all alike: beyond 32 pixels lie all but 65 x 65 of its 129 x 129 pixels."""
    beyond = gradient_beyond(
        lambda image: [functional.avg_pool2d(image, 129, 1, 64)[0, 0]], noise(1, 1, 256, 256), [(128, 128)]
    )
    assert beyond.tolist() == pytest.approx([1 - 65**2 / 129**2, 0, 0], abs=1e-6)


def test_of_several_outputs_the_farthest_counts_and_a_silent_one_does_not():
    near, far = Plain(2), Plain(96)
    image = noise(1, 3, 256, 256)
    both = gradient_beyond(lambda x: [near(x)[0], far(x)[0], 0 * x[0, 0]], image, [(128, 128)])
    assert torch.equal(both, gradient_beyond(lambda x: [far(x)[0]], image, [(128, 128)]))


def test_a_mean_over_the_image_is_felt_from_everywhere():
    beyond = gradient_beyond(lambda x: [x[0, 0] * x.mean()], noise(1, 1, 256, 256) - 0.5, [(128, 128)])
    assert beyond[-1] > LOST


@pytest.mark.parametrize("radius", [32, 64])
def test_a_halo_of_the_receptive_field_leaves_no_seam_and_a_narrower_one_does(radius):
    strip, network = noise(1, 3, 128, 512), Plain(radius)
    enough = seam_of(network, strip, halo_px=radius, tile_px=1024)
    assert enough == (pytest.approx(1, abs=1e-3), 0) and enough.smooth
    narrow = seam_of(network, strip, halo_px=radius - 32, tile_px=1024)
    assert narrow.step > 1.001 and narrow.changed > 0


def test_scores_that_are_the_same_everywhere_have_no_seam():
    assert seam_of(lambda x: torch.ones_like(x[:, 0]), noise(1, 3, 64, 256), halo_px=0, tile_px=1024) == (1, 0)


def test_scores_that_are_not_finite_leave_the_gradient_alone_to_speak():
    network = Plain(33)
    views = lambda height, width, number: [noise(1, 3, height, width)] * number  # noqa: E731
    reach = measured_reach(
        lambda image: [network(image)[0]],
        lambda image: torch.full_like(image[:, 0], torch.nan),
        views,
        effort=Effort(256, 1, 1),
        tile_px=lambda halo: 1024,
    )
    assert (reach.seam, reach.changed) == (None, None) and reach.halo_px >= 64


def shares(reach_px):
    """Shares of a gradient that ends at a distance."""
    return [1.0 if px < reach_px else 0.0 for px in range(STEP, 512, STEP)]


@pytest.mark.parametrize("least", [32, 96, 320, 352])
def test_the_halo_holds_the_gradient_and_is_widened_while_its_seam_is_rough(least):
    assert chosen_halo(shares(least), lambda halo: SMOOTH) == (least, SMOOTH)
    wide = min(least + 64, MOST_HALO)
    assert chosen_halo(shares(least), lambda halo: SMOOTH if halo >= wide else ROUGH_SEAM) == (wide, SMOOTH)
    halo, left = chosen_halo(shares(least), lambda halo: Seam(1.0, 2 * CHANGED))
    assert halo == min(least + 128, MOST_HALO) and not left.smooth  # the bundle tells that


@pytest.mark.parametrize("enough", POOLING)
def test_where_the_gradient_does_not_end_the_narrowest_smooth_halo_is_taken(enough):
    asked = []

    def seam(halo):
        asked.append(halo)
        return SMOOTH if halo >= enough else ROUGH_SEAM

    assert chosen_halo([0.5] * 11, seam) == (enough, SMOOTH)
    assert len(asked) == len(set(asked)) <= 4
    assert chosen_halo([0.5] * 11, lambda halo: ROUGH_SEAM) == (MOST_HALO, ROUGH_SEAM)


def test_the_effort_is_bounded_and_depends_on_the_network_alone(monkeypatch):
    small, large = (
        effort_for(Segmenter(3, 3, SegmenterConfig(encoder=encoder))) for encoder in ("resnet10t", "resnet50")
    )
    assert small == EFFORTS[0] and small.passes_px > large.passes_px
    assert all(sum(effort.strip_px) % 32 == 0 for effort in EFFORTS)
    monkeypatch.setattr("geood.models.reach.OPERATIONS", OPERATIONS / 1e6)
    assert effort_for(Segmenter(3, 3, SegmenterConfig(encoder="resnet10t"))) == EFFORTS[-1]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A bundle with random weights whose reach was measured."""
    bundle = make_bundle(tmp_path_factory.mktemp("reach") / "model.safetensors", predict={"halo_px": "auto"})
    image = torch.from_numpy(picture(448, 768, seed=3)).float()[None] / 255

    def views(height, width, number):
        return [image[..., :height, :width].repeat(1, 1, 1 + height // 448, 1 + width // 768)[..., :height, :width]]

    network = outputs_of(bundle.segmenter, outlier=False, encoder=True)
    reach = measured_reach(network, bundle.score, views, effort=Effort(256, 1, 1), tile_px=lambda halo: 1024)
    return bundle, reach, image


def test_a_small_residual_network_looks_less_far_than_96_pixels(measured):
    _, reach, _ = measured
    assert isinstance(reach, Reach) and reach.halo_px in (32, 64, 96) and reach.lost(reach.halo_px) <= LOST
    assert list(reach.beyond) == sorted(reach.beyond, reverse=True)
    assert reach.lost(0) == 1 and reach.lost(10_000) == reach.beyond[-1]


def test_tiles_with_the_halo_of_the_bundle_score_as_one_pass_does(measured):
    bundle, reach, image = measured
    height, width = image.shape[-2:]
    whole = bundle.score(image)[0].numpy()
    tiled, edge = np.empty_like(whole), []
    padded = functional.pad(image, (reach.halo_px,) * 4)
    for tile in tile_grid(height, width, tile_px=192, halo_px=reach.halo_px):
        row, col = tile.read.row + reach.halo_px, tile.read.col + reach.halo_px
        seen = padded[..., row : row + tile.read.height, col : col + tile.read.width].contiguous()
        tiled[tile.write.slices] = bundle.score(seen)[0].numpy()[tile.core]
    for col in range(192, width, 192):
        inner = slice(reach.halo_px, height - reach.halo_px)  # beyond the image there are zeros here
        edge.append([np.abs(np.diff(scores[inner], axis=1))[:, col - 1].mean() for scores in (tiled, whole)])
    stepped, smooth = np.mean(edge, axis=0)
    assert stepped <= ROUGH * smooth
    threshold = np.quantile(whole, 0.99)
    rim = slice(reach.halo_px, -reach.halo_px)
    changed = ((tiled > threshold) != (whole > threshold))[rim, rim].sum()
    assert changed <= max(2, math.ceil(CHANGED * (whole[rim, rim] > threshold).sum()))
