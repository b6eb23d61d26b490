"""Laws of the flow, in float64: inverse, log-determinant, total probability; then its start and its training."""

import math

import pytest
import torch

from geood.config.sections import FlowConfig
from geood.models.flows.flow import Flow, bits_per_dimension

TINY = FlowConfig(levels=1, steps=2, layers=1, growth=4)
SMALL = FlowConfig(levels=3, steps=2, layers=2, growth=6)


def _seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def _flow(bands=3, config=SMALL, *, spread=0.05):
    """A flow in float64 whose every parameter is moved off its start, so that no law holds by accident."""
    torch.manual_seed(0)
    flow = Flow(bands, config, (1 / 255,) * bands).double().eval()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(spread * torch.randn_like(parameter))
    return flow


def _within_range(flow):
    """The flow with a prior so narrow that float64 still tells samples beyond the ends of the range apart."""
    with torch.no_grad():
        for normal in flow.normals:
            normal.log_scale -= 1.2
    return flow


def _smooth(count, size, seed=0):
    """Images with detail on every scale: coarse and fine noise together, bands alike."""
    generator, images = _seeded(seed), torch.zeros(count, 3, size, size)
    for side in (4, 12, size):
        noise = torch.rand(count, 1, side, side, generator=generator) + 0.2 * torch.rand(
            count, 3, side, side, generator=generator
        )
        images += torch.nn.functional.interpolate(noise, size=(size, size), mode="bilinear") / (3.6 * side**0.25)
    return images


@pytest.mark.parametrize(
    ("bands", "levels", "size"), [(3, 3, (16, 24)), (1, 1, (2, 2)), (1, 3, (8, 8)), (5, 2, (20, 4))]
)
def test_decode_inverts_encode_and_encode_inverts_decode(bands, levels, size):
    flow = _flow(bands, FlowConfig(levels=levels, steps=3, layers=2, growth=5))
    image = torch.rand(2, bands, *size, dtype=torch.float64, generator=_seeded())
    latents, _ = flow.encode(image)
    assert sum(z.numel() for z in latents) == image.numel() and len(latents) == levels + 1
    torch.testing.assert_close(flow.decode(latents), image, rtol=0, atol=1e-8)
    # Anew, but near enough to an image that it does not come out at the very ends of the range, where float64 ends too.
    grey, _ = flow.encode(0.4 + 0.2 * image)
    drawn = [z + 0.01 * torch.randn(z.shape, dtype=z.dtype, generator=_seeded(1)) for z in grey]
    for found, wanted in zip(flow.encode(flow.decode(drawn))[0], drawn, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-8)


@pytest.mark.parametrize(("bands", "config", "size"), [(3, SMALL, (8, 8)), (1, TINY, (4, 6))])
def test_log_determinant_equals_that_of_the_jacobian(bands, config, size):
    flow = _flow(bands, config)
    image = torch.rand(1, bands, *size, dtype=torch.float64, generator=_seeded())

    def map_(x):
        return torch.cat([z.flatten() for z in flow.encode(x)[0]])

    jacobian = torch.autograd.functional.jacobian(map_, image).reshape(image.numel(), -1)
    expected = torch.linalg.slogdet(jacobian)[1]
    assert float((flow.encode(image)[1] - expected).detach()) == pytest.approx(0, abs=1e-6)


def test_images_of_a_batch_do_not_see_each_other():
    flow = _flow()
    image = torch.rand(3, 3, 16, 16, dtype=torch.float64, generator=_seeded())
    alone = torch.cat([flow.log_prob(one[None]) for one in image])
    torch.testing.assert_close(flow.log_prob(image), alone, rtol=0, atol=1e-9)


def test_density_integrates_to_one():
    """All of a 4-dimensional density, one band of 2 x 2 pixels: its mean over points of a known, wider density."""
    flow = _within_range(_flow(1, TINY))
    ends, stretch = flow.levels[0].ends, flow.levels[0].stretch
    with torch.no_grad():
        samples = flow.sample(10000, 2, 2, generator=_seeded()) - 0.5
        flat = stretch.encode(ends.encode(samples)[0])[0].reshape(-1, 4)
        torch.manual_seed(1)
        wider = torch.distributions.MultivariateNormal(flat.mean(0), 1.5 * torch.cov(flat.T))
        drawn = wider.sample((25000,))
        inside = stretch.decode(drawn.reshape(-1, 1, 2, 2))
        points = ends.decode(inside)
        known = wider.log_prob(drawn) + stretch.encode(inside)[1] + ends.encode(points)[1]
        weights = (flow.log_prob(points + 0.5) - known).exp()
    error = float(weights.std()) / len(weights) ** 0.5
    assert float(weights.mean()) == pytest.approx(1, abs=5 * error) and error < 0.02


def test_samples_follow_the_density():
    """E over samples of exp(log p' - log p) is 1 when p is the density they follow and p' any other."""
    flow, other = (_within_range(_flow(1, TINY)) for _ in range(2))
    with torch.no_grad():
        other.normals[0].mean += 0.05
        samples = flow.sample(12000, 2, 2, generator=_seeded(3))
        weights = (other.log_prob(samples) - flow.log_prob(samples)).exp()
    error = float(weights.std()) / len(weights) ** 0.5
    assert float(weights.mean()) == pytest.approx(1, abs=5 * error) and error < 0.01


@pytest.mark.parametrize("size", [(8, 8), (16, 136), (136, 16), (72, 72)])
def test_samples_at_any_multiple_differentiable_and_repeatable(size):
    flow = _flow()
    sample = flow.sample(2, *size, generator=_seeded(4))
    assert sample.shape == (2, 3, *size)
    assert torch.equal(sample, flow.sample(2, *size, generator=_seeded(4)))
    assert not torch.equal(sample, flow.sample(2, *size, generator=_seeded(5)))
    sample.square().sum().backward()
    assert all(p.grad is not None for p in flow.parameters())
    if size == (72, 72):  # below, the widest lattice has nothing to predict
        assert all(float(p.grad.abs().sum()) > 0 for p in flow.parameters())


def test_temperature_goes_to_the_mean():
    flow = _flow()
    calm = [flow.sample(1, 8, 8, temperature=1e-9, generator=_seeded(seed)) for seed in (0, 1)]
    torch.testing.assert_close(*calm, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 3, 12, 16), (1, 3, 16, 4), (1, 2, 16, 16), (3, 16, 16), (1, 3, 0, 8)])
def test_what_does_not_fit_is_refused(shape):
    with pytest.raises(ValueError, match=r"multiples of 8|takes images"):
        _flow().log_prob(torch.zeros(shape, dtype=torch.float64))
    with pytest.raises(ValueError, match="multiples of 8"):
        _flow().sample(1, 12, 16)
    with pytest.raises(ValueError, match="each of the 3 bands"):
        Flow(3, TINY, (1 / 255,))


def test_dequantized_values_round_back_and_float_bands_stay():
    flow = Flow(2, TINY, (1 / 255, 0.0))
    image = torch.randint(256, (4, 2, 8, 8), generator=_seeded()) / 255
    noisy = flow.dequantize(image, _seeded())
    assert torch.equal(noisy[:, 1], image[:, 1])
    assert torch.equal((noisy[:, 0] * 255).round(), (image[:, 0] * 255).round())
    assert float((noisy[:, 0] - image[:, 0]).std()) * 255 == pytest.approx(12**-0.5, rel=0.1)
    assert torch.equal(noisy, flow.dequantize(image, _seeded()))


def test_first_training_batch_sets_the_start_once():
    flow = Flow(3, SMALL, (1 / 255,) * 3)
    image = flow.dequantize(_smooth(8, 48), _seeded())
    before = float(flow.eval().log_prob(image).mean().detach())
    assert not flow.initialized
    with torch.no_grad():
        latents, _ = flow.train().encode(image)
    assert flow.initialized
    for z in latents:
        assert float(z.detach().mean()) == pytest.approx(0, abs=0.05) and float(z.detach().std()) == pytest.approx(
            1, abs=0.1
        )
    assert float(flow.log_prob(image).mean().detach()) > before + 1000
    weight = flow.levels[0].steps[0].weight.clone()
    flow.log_prob(torch.rand(2, 3, 16, 16))
    assert torch.equal(weight, flow.levels[0].steps[0].weight)
    again = Flow(3, SMALL, (1 / 255,) * 3)
    again.load_state_dict(flow.state_dict())
    assert again.initialized


@pytest.mark.parametrize("image", [torch.full((2, 3, 16, 16), 0.3), torch.rand(1, 3, 8, 8, generator=_seeded())])
def test_start_bears_constant_images_and_a_single_small_one(image):
    flow = Flow(3, SMALL, (0.0,) * 3)
    assert torch.isfinite(flow.log_prob(image)).all()
    other = torch.rand(4, 3, 32, 32, generator=_seeded(7))
    assert torch.isfinite(flow.log_prob(other)).all()
    assert torch.isfinite(flow.sample(2, 16, 16)).all()


def test_start_is_better_than_the_best_gaussian_of_pixel_blocks():
    """Right after its start a one-level flow beats the Gaussian with the mean and covariance of 2 x 2 blocks."""
    flow = Flow(1, TINY, (0.0,)).double()
    image = _smooth(16, 32)[:, :1].double()
    flow.initialize(image)
    blocks = torch.nn.functional.pixel_unshuffle(image, 2).movedim(1, -1).reshape(-1, 4)
    gauss = torch.distributions.MultivariateNormal(blocks.mean(0), torch.cov(blocks.T, correction=0))
    assert float(flow.log_prob(image).mean().detach()) > float(gauss.log_prob(blocks).sum() / 16)


def test_bits_fall_in_a_few_steps_and_end_the_same_for_the_same_seed():
    def train(steps):
        torch.manual_seed(0)
        flow, generator = Flow(3, SMALL, (1 / 255,) * 3), _seeded()
        optimizer = torch.optim.Adam(flow.parameters(), lr=2e-3)
        bits = []
        for step in range(steps):
            loss = flow.bits_per_dimension((_smooth(4, 24, seed=step) * 255).round() / 255, generator).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            bits.append(float(loss.detach()))
        return bits, flow

    bits, flow = train(25)
    assert all(map(math.isfinite, bits)) and sum(bits[-5:]) < sum(bits[:5]) and bits[-1] < 8
    other = train(3)[1], train(3)[1]
    assert all(torch.equal(a, b) for a, b in zip(other[0].parameters(), other[1].parameters(), strict=True))
    samples = flow.sample(8, 24, 24, generator=_seeded()).detach()
    assert float(((samples < -0.5) | (samples > 1.5)).float().mean()) < 0.05


def test_autocast_does_not_touch_the_likelihood():
    torch.manual_seed(0)
    flow = Flow(3, SMALL, (1 / 255,) * 3).eval()
    image = torch.rand(2, 3, 16, 16, generator=_seeded())
    expected, sample = flow.log_prob(image), flow.sample(1, 16, 16, generator=_seeded())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(flow.log_prob(image), expected)
        assert torch.equal(flow.sample(1, 16, 16, generator=_seeded()), sample)


def test_bits_per_dimension_of_a_uniform_density_is_the_number_of_bits():
    # a density of 1 over [0, 1]^D spends log2(256) = 8 bits on each of 256 levels
    bits = bits_per_dimension(torch.zeros(5), 3 * 16, torch.full((3,), 1 / 256))
    torch.testing.assert_close(bits, torch.full((5,), 8.0))
    assert float(bits_per_dimension(torch.zeros(1), 10, torch.zeros(3))) == 0
    mixed = bits_per_dimension(torch.full((1,), -20 * math.log(2)), 20, torch.tensor([1 / 256, 0.0]))
    assert float(mixed) == pytest.approx(1 + 4)


@pytest.mark.parametrize("config", [SMALL, FlowConfig(network="denseflow-small")], ids=["plain", "dense"])
def test_checkpointing_changes_memory_and_nothing_else(config):
    found, held = [], []
    for checkpointing in (False, True):
        flow, sizes = _flow(config=config.model_copy(update={"checkpointing": checkpointing})), []
        image = torch.rand(2, 3, 16, 16, dtype=torch.float64, generator=_seeded())
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: (s.append(t.numel()), t)[1], lambda t: t):
            value = flow.log_prob(image, _seeded(1)).mean() + flow.sample(2, 16, 16, generator=_seeded(2)).mean()
        value.backward()
        held.append(sum(sizes))
        found.append([value, *(p.grad for p in flow.parameters() if p.grad is not None)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert held[1] < 0.7 * held[0]
