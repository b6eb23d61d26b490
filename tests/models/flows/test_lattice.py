"""Laws of lattice levels: which pixels see which, inverse at any size, no borders of blocks, neighbours that agree."""

import pytest
import torch

from geood.config.sections import FlowConfig, NegativesConfig
from geood.models.flows.flow import SPACINGS, Flow
from geood.models.flows.lattice import LatticeLevel, Lattices, contrast, sites


def _seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def _moved(module, spread=0.1):
    """The module in float64, each parameter moved off its start, so that no law holds by accident."""
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(spread * torch.randn(parameter.shape, dtype=torch.float64, generator=_seeded(1)))
    return module


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (5, 4), (16, 16), (9, 23)])
def test_all_pixels_but_those_of_the_coarsest_lattice_are_predicted_once(size):
    counts, alone = torch.zeros(size), torch.zeros(size)
    for spacing in SPACINGS:
        for odd in (True, False):
            seen, moved = sites(*size, spacing, odd=odd, like=counts)
            assert not (seen * moved).any() and not (seen * counts).any()  # the way back: what is seen is there already
            counts += moved
    alone[:: 2 * SPACINGS[-1], :: 2 * SPACINGS[-1]] = 1
    assert torch.equal(counts, 1 - alone)


def test_of_the_largest_patch_by_default_one_pixel_alone_is_drawn_by_itself():
    side = NegativesConfig().patch_max_px // 2 ** FlowConfig().levels
    lattices = Lattices(2, SPACINGS, layers=1, growth=4)
    assert int(lattices.alone(torch.zeros(1, 2, side, side)).sum()) == 1


def test_a_single_pixel_that_none_foretells_tells_no_spread_of_others():
    """One crop alone may be without gaps: its level would be that of all samples."""
    x = torch.randn(2, 2, 9, 9, generator=torch.Generator().manual_seed(0))
    lattices = Lattices(2, SPACINGS, layers=1, growth=4)
    lattices.data_dependent_init(x[:1])
    assert not lattices.first.any()
    lattices.data_dependent_init(x)
    assert lattices.first.all()


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (3, 5), (9, 9)])
def test_lattices_of_any_size_invert_and_tell_their_volume(size):
    lattices = _moved(Lattices(2, (1, 2, 4), layers=1, growth=4))
    x = torch.randn(2, 2, *size, dtype=torch.float64, generator=_seeded())
    y, log_det = lattices.encode(x)
    torch.testing.assert_close(lattices.decode(y), x, rtol=0, atol=1e-10)
    jacobian = torch.autograd.functional.jacobian(lambda v: lattices.encode(v[None])[0].flatten(), x[0])
    expected = torch.linalg.slogdet(jacobian.reshape(x[0].numel(), -1))[1]
    assert float((log_det[0] - expected).detach()) == pytest.approx(0, abs=1e-8)


@pytest.mark.parametrize(("bands", "size"), [(1, (2, 2)), (3, (6, 10)), (4, (2, 8)), (13, (4, 4))])
def test_a_level_inverts(bands, size):
    level = _moved(LatticeLevel(bands, steps=2, layers=1, growth=4, spacings=(1, 2)))
    image = torch.rand(2, bands, *size, dtype=torch.float64, generator=_seeded())
    coarse, detail, _ = level.encode(image)
    assert coarse.shape == (2, bands, size[0] // 2, size[1] // 2) and detail.shape[1] == 3 * bands == level.halved
    torch.testing.assert_close(level.decode(coarse, detail), image, rtol=0, atol=1e-8)


def test_a_plane_is_foretold_by_its_coarse_pixels():
    """At the start the prediction is linear interpolation: of a plane nothing is left inside."""
    level = LatticeLevel(1, steps=1, layers=1, growth=4).double()
    row, col = torch.meshgrid(torch.arange(12.0), torch.arange(16.0), indexing="ij")
    _, detail, log_det = level.encode((0.01 * row + 0.02 * col)[None, None].double())
    assert float(detail.detach()[..., 1:-1, 1:-1].abs().max()) < 1e-6
    assert float(log_det.detach()) == pytest.approx(0, abs=1e-4)


def test_the_coarse_image_is_every_second_pixel():
    level = LatticeLevel(3, steps=1, layers=1, growth=4)
    image = torch.rand(2, 3, 8, 12, generator=_seeded())
    assert torch.equal(level.encode(image)[0], image[:, :, ::2, ::2].flip(1))  # the first mixing reverses the bands


def test_neighbours_of_a_coarse_pixel_move_with_it_on_all_sides():
    """A change of one pixel of the coarsest image reaches the pixels around it alike, whatever the block."""
    torch.manual_seed(0)
    flow = Flow(1, FlowConfig(levels=3, steps=2, layers=2, growth=6), (1 / 255,)).double()
    torch.nn.init.zeros_(flow.levels[-1].lattices.slopes)  # the coarsest image as it is drawn
    latents = [torch.zeros(1, n, 64 >> s, 64 >> s, dtype=torch.float64) for n, s in ((3, 1), (3, 2), (3, 3), (1, 3))]
    still = flow.decode(latents)
    latents[-1][0, 0, 4, 4] = 1
    reached = (flow.decode(latents) - still)[0, 0].detach()
    centre = float(reached[32, 32])
    for away in range(1, 8):
        sides = [reached[32 + away, 32], reached[32 - away, 32], reached[32, 32 + away], reached[32, 32 - away]]
        assert min(sides) == pytest.approx(float(max(sides))) and 0 < float(sides[0]) < centre


def _images(bands=1, seed=0):
    """Smooth images with a little noise."""
    coarse = torch.rand(16, bands, 6, 6, generator=_seeded(seed))
    fine = 0.05 * torch.rand(16, bands, 48, 48, generator=_seeded(seed + 1))
    return torch.nn.functional.interpolate(coarse, size=(48, 48), mode="bicubic", align_corners=True) + fine


def test_samples_hang_together_from_the_first_batch_on():
    flow = Flow(1, FlowConfig(levels=2, steps=1, layers=1, growth=8), (1 / 255,))
    flow.initialize(_images())
    found = [_correlation(x, 4) for x in (flow.sample(32, 48, 48, generator=_seeded()).detach(), _images(seed=5))]
    assert found[0] > 0.8 * found[1] > 0.4


def test_the_first_batch_sets_the_best_filter_and_scale():
    """Where pixels are a fixed mean of coarse ones plus noise that grows with the contrast, both are found."""
    level = LatticeLevel(2, steps=1, layers=1, growth=4).double()
    seen = torch.randn(8, 2, 24, 24, dtype=torch.float64, generator=_seeded())
    seen[:, :, :12] *= 0.2  # calm and lively regions
    kernel = torch.randn(2, 2, 3, 3, dtype=torch.float64, generator=_seeded(1)) / 4
    scale = contrast(seen).exp()
    frame = torch.nn.functional.pad(seen, (1, 1, 1, 1), mode="replicate")
    x = torch.nn.functional.conv2d(frame, kernel)
    x = x + 0.5 * scale * torch.randn(x.shape, dtype=x.dtype, generator=_seeded(2))
    level.centres.data_dependent_init(x, seen)
    torch.testing.assert_close(level.centres.kernel.detach(), kernel, rtol=0, atol=0.02)
    left = level.centres.encode(x, seen)[0].detach()
    assert float(left[:, :, :11].std() / left[:, :, 13:].std()) == pytest.approx(1, abs=0.25)


@pytest.mark.parametrize("value", [0.0, 0.4])
def test_constant_bands_and_a_single_pixel_bear_the_start(value):
    level = LatticeLevel(2, steps=1, layers=1, growth=4, spacings=SPACINGS)
    level.data_dependent_init(torch.full((2, 2, 2, 2), value))
    coarse, detail, log_det = level.encode(torch.rand(2, 2, 4, 6, generator=_seeded()))
    assert all(torch.isfinite(t).all() for t in (coarse, detail, log_det))


def _correlation(images, lag):
    centred = images - images.mean()
    return float((centred[..., lag:] * centred[..., :-lag]).mean() / centred.square().mean())
