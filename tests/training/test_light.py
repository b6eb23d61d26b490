"""Other light on training crops: what changes, what stays, and that one seed gives one light."""

import pytest
import torch

from geood.training.light import CHANGED, in_other_light


def images(count: int = 64, bands: int = 3) -> torch.Tensor:
    return torch.rand(count, bands, 16, 16, generator=torch.Generator().manual_seed(5))


def lit(image: torch.Tensor, *, strength: float = 1.0, seed: int = 0) -> torch.Tensor:
    valid = torch.ones(image.shape[0], *image.shape[2:], dtype=torch.bool)
    return in_other_light(image, valid, strength=strength, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bands", [1, 3, 7])
@pytest.mark.parametrize("strength", [0.5, 2.0])
def test_stays_in_range_and_changes_most_images(bands, strength):
    before = images(bands=bands)
    after = lit(before, strength=strength)
    changed = (after != before).flatten(1).any(1).float().mean()
    assert after.min() >= 0
    assert after.max() <= 1
    assert abs(changed - CHANGED) < 0.2


def test_each_image_has_its_own_light():
    after = lit(torch.full((32, 3, 16, 16), 0.5))
    means = after.mean((1, 2, 3))
    assert len(means.unique()) > 20


def test_without_strength_nothing_changes():
    before = images()
    assert lit(before, strength=0.0) is before


def test_one_seed_gives_one_light():
    before = images()
    assert torch.equal(lit(before, seed=3), lit(before, seed=3))
    assert not torch.equal(lit(before, seed=3), lit(before, seed=4))


def test_gaps_stay_and_do_not_count():
    """Pixels without data keep their value, and their value moves no other pixel, not in the blur beside them."""
    before = images(8)
    valid = torch.ones(8, 16, 16, dtype=torch.bool)
    valid[:, :, 12:] = False
    dark, bright = before.clone(), before.clone()
    dark[:, :, :, 12:], bright[:, :, :, 12:] = 0.0, 1.0
    found = [in_other_light(x, valid, strength=1.0, generator=torch.Generator().manual_seed(1)) for x in (dark, bright)]
    assert (found[0][..., 12:] == 0).all()
    assert (found[1][..., 12:] == 1).all()
    torch.testing.assert_close(found[0][..., :12], found[1][..., :12])


def test_gradient_reaches_the_image():
    """A flow whose samples are pasted learns through the light."""
    before = images(16).requires_grad_()
    lit(before).sum().backward()
    assert before.grad is not None
    assert before.grad.isfinite().all()
    assert (before.grad != 0).float().mean() > 0.8
