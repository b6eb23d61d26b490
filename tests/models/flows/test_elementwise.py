"""Laws of elementwise maps: inverse, volume, and what they do to the ends of the range and to heavy tails."""

import pytest
import torch

from geood.models.flows.elementwise import END, WEIGHTS, Ends, Stretch, Tails, half_step


def _seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_tails_bend_what_is_heavy_tailed_to_a_normal_and_leave_a_normal_alone():
    generator = _seeded()
    normal = torch.randn(4, 1, 40, 40, dtype=torch.float64, generator=generator)
    heavy = torch.sinh(2 * torch.randn(4, 1, 40, 40, dtype=torch.float64, generator=generator))
    tails, x = Tails(2).double(), torch.cat([normal, heavy], dim=1)
    tails.data_dependent_init(x)
    y, log_det = tails.encode(x)
    torch.testing.assert_close(tails.decode(y), x, rtol=1e-9, atol=1e-9)
    jacobian = torch.autograd.functional.jacobian(lambda v: tails.encode(v[None])[0].flatten(), x[0, :, :3, :3])
    part = tails.encode(x[:1, :, :3, :3])[1]
    assert float((part[0] - torch.linalg.slogdet(jacobian.reshape(18, 18))[1]).detach()) == pytest.approx(0, abs=1e-9)
    weight = (tails.log_weight.exp() * x.std((0, 2, 3))).detach()
    assert float(weight[0]) < 0.1 and float(weight[1]) == pytest.approx(WEIGHTS[-1], rel=0.01)
    assert torch.isfinite(log_det).all() and y.detach().std((0, 2, 3)).tolist() == pytest.approx([1, 1], abs=0.01)


def test_the_stretch_inverts_tells_its_volume_and_presses_what_lies_beyond_the_range():
    stretch, x = Stretch(1).double(), torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(1, 1, 3, 3)
    y, log_det = stretch.encode(x)
    torch.testing.assert_close(stretch.decode(y), x, rtol=0, atol=1e-12)
    jacobian = torch.autograd.functional.jacobian(lambda v: stretch.encode(v)[0].flatten(), x).reshape(9, 9)
    assert float((log_det - torch.linalg.slogdet(jacobian)[1]).detach()) == pytest.approx(0, abs=1e-9)
    edge = float(stretch.encode(x.new_full((1, 1, 1, 1), 0.5))[0].detach())
    beyond = float(stretch.decode(x.new_full((1, 1, 1, 1), 1.5 * edge)).detach())
    assert 0.5 < beyond < 0.5 + 0.5 * 0.5 * edge


def test_the_ends_leave_the_middle_alone_and_press_all_else_into_the_range():
    ends = Ends((1 / 255, 1 / 65535)).double()
    edge = ends.edge.flatten().tolist()
    assert edge == pytest.approx([0.5 + half_step(1 / 255)] * 2)  # finer digital numbers than of 8 bits: the same
    x = torch.linspace(-0.5 - 0.5 / 255, 0.5 + 0.5 / 255, 18, dtype=torch.float64).reshape(1, 2, 3, 3)
    y, log_det = ends.encode(x)
    torch.testing.assert_close(ends.decode(y), x, rtol=0, atol=1e-12)
    inside = x.abs() < edge[0] - END
    assert torch.equal(y[inside], x[inside]) and bool((y[~inside].abs() > x[~inside].abs()).all())
    jacobian = torch.autograd.functional.jacobian(lambda v: ends.encode(v)[0].flatten(), x).reshape(18, 18)
    assert float(log_det - torch.linalg.slogdet(jacobian)[1]) == pytest.approx(0, abs=1e-6)
    wild = 10 * torch.randn(1, 2, 9, 9, dtype=torch.float64, generator=_seeded())
    assert float(ends.decode(wild).abs().max()) <= edge[0]
    assert torch.isfinite(ends.encode(ends.decode(wild))[0]).all()


def test_the_ends_pass_a_gradient_at_the_ends_of_the_images():
    ends, x = Ends((1 / 255,)), torch.tensor([-0.5, -0.48, 0.0, 0.48, 0.5]).reshape(1, 1, 1, 5).requires_grad_()
    out, log_det = ends.encode(x)
    (out.sum() + log_det.sum()).backward()
    assert x.grad is not None and torch.isfinite(x.grad).all() and float(x.grad[0, 0, 0, 2]) == 1
