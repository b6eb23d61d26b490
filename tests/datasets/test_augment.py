"""Augmentation moves image, mask and validity together, and says the same twice for the same generator."""

import pytest
import torch

from geood.datasets.augment import augment
from support.bundles import small_config

STILL = {
    "flips": "none",
    "quarter_turns": False,
    "brightness": 0.0,
    "contrast": 0.0,
    "scale_min": 1.0,
    "scale_max": 1.0,
}


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def config(**keys):
    return small_config(data={"crop_px": 64} | STILL | keys).data


def sample(side=96, bands=3, seed=0):
    """Every pixel has its own value; mask and validity are functions of it."""
    image = torch.rand(bands, side, side, generator=seeded(seed))
    return {"image": image, "mask": (image[0] * 4).long(), "valid": image[1] > 0.2, "name": "tile"}


@pytest.mark.parametrize("seed", range(12))
def test_geometry_moves_everything_together(seed):
    out = augment(sample(), config(flips="both", quarter_turns=True), generator=seeded(seed))
    assert out["image"].shape == (3, 64, 64)
    assert torch.equal(out["mask"], (out["image"][0] * 4).long())
    assert torch.equal(out["valid"], out["image"][1] > 0.2)
    assert out["name"] == "tile"


def test_scaling_keeps_mask_over_image():
    ramp = torch.linspace(0, 1, 96).expand(96, 96)
    for seed in range(8):
        flat = {"image": ramp[None], "mask": (ramp > 0.5).long(), "valid": ramp < 0.7}
        out = augment(
            flat, config(scale_min=0.7, scale_max=1.6, flips="both", quarter_turns=True), generator=seeded(seed)
        )
        clear = (out["image"][0] - 0.5).abs() > 0.02
        assert torch.equal(out["mask"][clear], (out["image"][0] > 0.5).long()[clear])
        edge = (out["image"][0] - 0.7).abs() > 0.02
        assert torch.equal(out["valid"][edge], (out["image"][0] < 0.7)[edge])
        assert set(out["mask"].unique().tolist()) <= {0, 1}
        assert out["mask"].dtype == torch.int64
        assert out["valid"].dtype == torch.bool


@pytest.mark.parametrize("scale", [0.7, 1.4])
def test_what_is_invalid_is_in_no_valid_pixel(scale):
    """A rim of pixels half made of the fill value would pass for ground with a label."""
    valid = torch.rand(96, 96, generator=seeded(0)) > 0.3
    image = torch.where(valid, 0.9, 0.1).expand(2, 96, 96)
    given = {"image": image, "mask": torch.zeros(96, 96, dtype=torch.int64), "valid": valid}
    out = augment(given, config(scale_min=min(scale, 1), scale_max=max(scale, 1)), generator=seeded(1))
    assert torch.allclose(out["image"], torch.where(out["valid"], 0.9, 0.1).expand(2, 64, 64))


def test_with_everything_off_it_is_a_window():
    given = sample()
    out = augment(given, config(), generator=seeded(3))
    windows = given["image"].unfold(1, 64, 1).unfold(2, 64, 1).permute(1, 2, 0, 3, 4).reshape(-1, 3, 64, 64)
    assert any(torch.equal(out["image"], window) for window in windows)


def test_same_generator_same_sample_and_input_untouched():
    given = sample()
    before = {key: value.clone() for key, value in given.items() if key != "name"}
    keys = {
        "flips": "both",
        "quarter_turns": True,
        "brightness": 0.2,
        "contrast": 0.2,
        "scale_min": 0.75,
        "scale_max": 1.3,
    }
    first, again, other = (augment(given, config(**keys), generator=seeded(s)) for s in (5, 5, 6))
    assert all(torch.equal(first[key], again[key]) for key in before)
    assert not torch.equal(first["image"], other["image"])
    assert all(torch.equal(given[key], value) for key, value in before.items())


def test_light_changes_valid_pixels_only_and_stays_in_range():
    given = sample()
    plain = augment(given, config(), generator=seeded(2))
    lit = augment(given, config(brightness=0.5, contrast=0.5), generator=seeded(2))
    assert torch.equal(lit["valid"], plain["valid"])
    assert torch.equal(lit["image"][:, ~lit["valid"]], plain["image"][:, ~plain["valid"]])
    assert not torch.equal(lit["image"], plain["image"])
    assert lit["image"].min() >= 0
    assert lit["image"].max() <= 1


def test_every_orientation_comes_up():
    image = torch.zeros(1, 64, 64)
    image[0, 0, 1] = 1.0  # off the diagonal: eight places for eight orientations
    given = {"image": image, "mask": torch.zeros(64, 64).long(), "valid": torch.ones(64, 64).bool()}
    turned = config(flips="both", quarter_turns=True)
    places = {int(augment(given, turned, generator=seeded(s))["image"].argmax()) for s in range(80)}
    assert len(places) == 8


def test_a_sample_without_valid_pixels_passes():
    given = sample() | {"valid": torch.zeros(96, 96).bool()}
    out = augment(given, config(brightness=0.3), generator=seeded(0))
    assert torch.isfinite(out["image"]).all()


def test_a_window_without_enough_data_or_label_is_drawn_again():
    given = sample(side=160)
    given["valid"] = torch.zeros(160, 160).bool()
    given["valid"][:, :80] = True  # the window may start in columns 0 to 96; up to 48 half of it holds data
    outs = [augment(given, config(min_valid=0.5), generator=seeded(s)) for s in range(60)]
    again = [augment(given, config(min_valid=0.5), generator=seeded(s)) for s in range(60)]
    plain = [augment(given, config(min_valid=0.0), generator=seeded(s)) for s in range(60)]
    short = [sum(float(o["valid"].float().mean()) < 0.5 for o in found) for found in (outs, plain)]
    assert short[0] <= 3
    assert short[1] > 15
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(outs, again, strict=True))
    enough = [float(p["valid"].float().mean()) >= 0.5 for p in plain]
    assert all(torch.equal(o["image"], p["image"]) for o, p, e in zip(outs, plain, enough, strict=True) if e)
    given = sample(side=160)
    given["mask"] = torch.full((160, 160), 255)
    given["mask"][:40] = 1
    outs = [augment(given, config(min_valid=0.0), generator=seeded(s)) for s in range(60)]
    assert sum(bool((o["mask"] == 1).any()) for o in outs) >= 58


def test_the_best_window_is_kept_where_none_has_enough():
    given = sample(side=160)
    given["valid"] = torch.zeros(160, 160).bool()
    given["valid"][:10, :10] = True
    found = [float(augment(given, config(min_valid=0.9), generator=seeded(s))["valid"].sum()) for s in range(60)]
    plain = [float(augment(given, config(min_valid=0.0), generator=seeded(s))["valid"].sum()) for s in range(60)]
    assert all(f >= p for f, p in zip(found, plain, strict=True))
    assert sum(found) > 2 * sum(plain)


def test_too_small_a_sample_is_refused():
    with pytest.raises(ValueError, match="does not fit"):
        augment(sample(side=60), config(), generator=seeded(0))
