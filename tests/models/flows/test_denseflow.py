"""Laws of DenseFlow, in float64: size, inverse, volume, total probability; noise is drawn from the generator."""

import math

import pytest
import torch

from geood.config.sections import FlowConfig
from geood.models.flows.denseflow import SHAPES, Shape
from geood.models.flows.flow import Flow

TINY = Shape((2,), (1,), 2, 4, depth=1, growth=4)
SMALL = Shape((2, 3, 1), (2, 1, 2), 2, 4, depth=2, growth=4)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def build(monkeypatch):
    """Makes a flow of a given shape in float64, each parameter moved off its start."""

    def make(shape, bands=3, *, spread=0.05):
        monkeypatch.setitem(SHAPES, "denseflow-small", shape)
        torch.manual_seed(0)
        flow = Flow(bands, FlowConfig(network="denseflow-small"), (1 / 255,) * bands).double().eval()
        with torch.no_grad():
            for parameter in flow.parameters():
                parameter.add_(spread * torch.randn_like(parameter))
        return flow

    return make


def test_the_flow_of_the_paper_has_its_size():
    flow = Flow(3, FlowConfig(network="denseflow-25-6"), (1 / 255,) * 3)
    assert round(sum(p.numel() for p in flow.parameters()) / 1e6, 1) == 35.7
    assert [level.outputs for level in flow.levels] == [24, 54, 108]
    for name, shape in SHAPES.items():
        if name != "denseflow-small":
            steps = sum(units * each for units, each in zip(shape.units, shape.steps, strict=True))
            assert name == f"denseflow-{steps}-{shape.noise}"


@pytest.mark.parametrize("bands", [1, 3, 13])
def test_decode_inverts_encode_whatever_the_noise(build, bands):
    flow = build(SMALL, bands)
    image = torch.rand(2, bands, 16, 24, dtype=torch.float64, generator=seeded())
    for seed in (1, 2):
        latents, _ = flow.encode(image, seeded(seed))
        torch.testing.assert_close(flow.decode(latents), image, rtol=0, atol=1e-8)
    sizes = [torch.Size((2, len(normal.mean))) for normal in flow.normals]
    assert [z.shape[:2] for z in latents] == sizes and [z.shape[2] for z in latents] == [16 >> s for s in flow.scales]


def test_the_volume_is_that_of_the_jacobian(build, monkeypatch):
    """ln |det| of the map from image and noise to latents, less the noise's own ln density, is what `encode` says."""
    flow = build(SMALL)
    image = torch.rand(1, 3, 8, 8, dtype=torch.float64, generator=seeded())
    drawn = []
    randn = torch.randn
    monkeypatch.setattr(torch, "randn", lambda *a, **k: drawn.append(randn(*a, **k)) or drawn[-1])
    found = flow.encode(image, seeded())[1]
    noise = list(drawn)

    def map_(x, *given):
        left = list(given)
        monkeypatch.setattr(torch, "randn", lambda *_, **__: left.pop(0))
        return torch.cat([z.flatten() for z in flow.encode(x)[0]])

    parts = torch.autograd.functional.jacobian(map_, (image, *noise))
    jacobian = torch.cat([part.reshape(part.shape[0], -1) for part in parts], dim=1)
    assert jacobian.shape[0] == jacobian.shape[1] > image.numel()
    density = sum(float((-0.5 * (n.detach().square() + math.log(2 * math.pi))).sum()) for n in noise)
    assert float(found.detach()) == pytest.approx(float(torch.linalg.slogdet(jacobian)[1]) - density, abs=1e-6)


def test_density_integrates_to_one(build):
    """All of a 4-dimensional density, on a grid with one draw of noise at each point."""
    flow = build(TINY, 1, spread=0.05)
    samples = flow.sample(20000, 2, 2, generator=seeded()).detach().reshape(-1, 4)
    low, high = samples.amin(0), samples.amax(0)
    low, high = low - 0.3 * (high - low), high + 0.3 * (high - low)
    axes = [torch.linspace(float(a), float(b), 25, dtype=torch.float64) for a, b in zip(low, high, strict=True)]
    grid = torch.cartesian_prod(*axes).reshape(-1, 1, 2, 2)
    cell = math.prod(float(axis[1] - axis[0]) for axis in axes)
    generator = seeded(1)
    with torch.no_grad():
        density = torch.cat([flow.log_prob(part, generator).exp() for part in grid.split(100_000)])
    error = float(density.std()) * len(density) ** 0.5 * cell  # of the noise: each point has one draw
    assert error < 0.05 and float(density.sum()) * cell == pytest.approx(1, abs=4 * error)


@pytest.mark.parametrize("size", [(8, 8), (16, 72), (40, 24)])
def test_samples_at_any_multiple(build, size):
    flow = build(SMALL)
    sample = flow.sample(2, *size, generator=seeded(4))
    assert sample.shape == (2, 3, *size)
    assert torch.equal(sample, flow.sample(2, *size, generator=seeded(4)))


def test_samples_reach_every_parameter_but_those_of_the_noise(build):
    flow = build(SMALL)
    flow.sample(2, 24, 24, generator=seeded(4)).square().sum().backward()
    idle = {name for name, p in flow.named_parameters() if p.grad is None or float(p.grad.abs().sum()) == 0}
    assert idle == {name for name, _ in flow.named_parameters() if ".noises." in name}  # decoding drops the noise
    flow.log_prob(torch.rand(2, 3, 24, 24, dtype=torch.float64), seeded()).sum().backward()
    assert all(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in flow.parameters())


def test_all_that_is_random_comes_from_the_generator(build):
    flow = build(SMALL)
    image = torch.rand(2, 3, 16, 16, dtype=torch.float64, generator=seeded())
    first, again, other = (flow.bits_per_dimension(image, seeded(s)) for s in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_training_lowers_the_bits():
    torch.manual_seed(0)
    flow, generator = Flow(3, FlowConfig(network="denseflow-small"), (1 / 255,) * 3), seeded()
    optimizer = torch.optim.Adam(flow.parameters(), lr=2e-3)
    image = torch.nn.functional.interpolate(torch.rand(4, 3, 6, 6, generator=generator), size=(24, 24), mode="bilinear")
    bits = []
    for _ in range(25):
        loss = flow.bits_per_dimension((image * 255).round() / 255, generator).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        bits.append(float(loss.detach()))
    assert all(map(math.isfinite, bits)) and sum(bits[-5:]) / 5 < sum(bits[:5]) / 5 - 0.2


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name == "denseflow-74-10")) for name in SHAPES]
)
def test_smooth_parts_go_on_at_the_start(name, monkeypatch):
    monkeypatch.setitem(SHAPES, name, SHAPES[name]._replace(width=4, depth=1, growth=4))
    flow = Flow(3, FlowConfig(network=name), (1 / 255,) * 3)
    image = torch.nn.functional.interpolate(torch.rand(8, 3, 6, 6, generator=seeded()), size=(48, 48), mode="bicubic")
    flow.initialize(image)
    assert flow.multiple == 8  # what the config takes patch sizes to be multiples of
    with torch.no_grad():
        latents, _ = flow.eval().encode(image, seeded())
        without = flow.decode([torch.zeros_like(latents[0]), *latents[1:]])
    assert float((without - image).var() / image.var()) < 0.1  # what went out first was detail


def test_a_named_network_has_its_own_shape():
    with pytest.raises(ValueError, match="leave them out"):
        FlowConfig(network="denseflow-25-6", steps=5)
    assert set(SHAPES) == set(FlowConfig.model_json_schema()["properties"]["network"]["enum"]) - {"plain"}
