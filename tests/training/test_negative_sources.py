"""Laws of what is pasted: sizes, ranges, chance from the generator alone, and where gradients go."""

import numpy as np
import pytest
import torch
from PIL import Image

from geood.config.sections import FlowConfig, NegativesConfig
from geood.datasets.outlier_photos import PhotographFolder
from geood.errors import ConfigError, DataError
from geood.models.flow import Flow
from geood.training.negative_sources import TILE, draw_patches

SIZE = (16, 24)


def _image():
    return torch.rand(3, 3, 40, 48, generator=torch.Generator().manual_seed(0))


def _draw(source, *, seed=0, image=None, valid=None, flow=None, photographs=None, tint=0.0):
    image = _image() if image is None else image
    valid = torch.ones(len(image), *image.shape[2:], dtype=torch.bool) if valid is None else valid
    folder = "photos" if source == "folder" else None
    generator = torch.Generator().manual_seed(seed)
    settings = NegativesConfig(source=source, folder=folder, tint=tint)
    return draw_patches(
        settings, SIZE, image=image, valid=valid, flow=flow, photographs=photographs, generator=generator
    )


def _photographs(folder, *, bands=3):
    for i, side in enumerate((10, 60, 100)):
        pixels = np.full((side, side + 4, 3), 40 * (i + 1), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return PhotographFolder(folder, bands=bands)


def _sources(tmp_path):
    flow = Flow(3, FlowConfig(steps=1, layers=1, growth=4), (1 / 255,) * 3)
    flow.initialize(_image())
    return {
        "flow": {"flow": flow},
        "noise": {},
        "colour": {},
        "shuffled": {},
        "folder": {"photographs": _photographs(tmp_path)},
    }


@pytest.mark.parametrize("source", ["flow", "noise", "colour", "shuffled", "folder"])
def test_every_source_gives_one_patch_an_image_out_of_its_generator(tmp_path, source):
    with_ = _sources(tmp_path)[source]
    first, again, other = _draw(source, **with_), _draw(source, **with_), _draw(source, seed=1, **with_)
    assert first.shape == (3, 3, *SIZE) and torch.equal(first, again) and not torch.equal(first, other)
    assert first.requires_grad == (source == "flow")
    if source != "flow":
        assert float(first.min()) >= 0 and float(first.max()) <= 1


def test_colour_is_even_and_noise_is_not():
    colour, noise = _draw("colour"), _draw("noise")
    assert torch.equal(colour, colour[..., :1, :1].expand_as(colour))
    assert float(noise.std((2, 3)).min()) > 0.2 and len(set(colour[:, 0, 0, 0].tolist())) == 3


def test_shuffled_crops_are_tiles_of_another_image():
    image = torch.arange(3.0)[:, None, None, None].expand(3, 3, 40, 48) / 4
    patches = _draw("shuffled", image=image)
    assert [float(p.unique()) for p in patches] == [0.25, 0.5, 0.0]
    ramp = torch.arange(40.0 * 48).reshape(1, 1, 40, 48) / (40 * 48)
    [patch] = _draw("shuffled", image=ramp)
    rows = patch[0].unfold(0, TILE, TILE).unfold(1, TILE, TILE)
    assert torch.allclose(rows.diff(dim=3), torch.tensor(1 / (40 * 48)), atol=1e-6)  # whole inside a tile
    joints = patch[0].diff(dim=1)[:, TILE - 1 :: TILE]
    assert not torch.allclose(joints, torch.tensor(1 / (40 * 48)), atol=1e-6)  # not from one to the next


def test_shuffled_crops_are_of_another_image_also_where_one_has_no_data():
    image = torch.arange(3.0)[:, None, None, None].expand(3, 3, 40, 48) / 4
    valid = torch.ones(3, 40, 48, dtype=torch.bool)
    valid[0] = False
    assert [float(p.unique()) for p in _draw("shuffled", image=image, valid=valid)] == [0.25, 0.5, 0.25]


def test_shuffled_crops_come_from_places_with_data():
    image = torch.zeros(2, 1, 40, 48)
    valid = torch.zeros(2, 40, 48, dtype=torch.bool)
    image[0, :, 5:30, 5:40], valid[0, 5:30, 5:40] = 1.0, True
    assert float(_draw("shuffled", image=image, valid=valid).min()) == 1.0
    assert float(_draw("shuffled", image=image, valid=torch.zeros_like(valid)).unique()) == 0.5


def test_small_photographs_are_enlarged_and_large_ones_cut(tmp_path):
    photographs = _photographs(tmp_path)
    values = {
        round(float(p.unique()) * 255)
        for seed in range(20)
        for p in photographs(2, 32, 32, torch.Generator().manual_seed(seed))
    }
    assert values == {40, 80, 120}


def test_a_folder_that_gives_no_negatives_is_explained(tmp_path):
    with pytest.raises(DataError, match="is not a folder"):
        PhotographFolder(tmp_path / "missing", bands=3)
    with pytest.raises(DataError, match="holds no photograph"):
        PhotographFolder(tmp_path, bands=3)
    (tmp_path / "bad.jpg").write_text("no photograph")
    with pytest.raises(DataError, match=r"bad\.jpg: cannot be read"):
        PhotographFolder(tmp_path, bands=3)
    (tmp_path / "bad.jpg").unlink()
    with pytest.raises(ConfigError, match=r"3 bands, but 4 are used"):
        _photographs(tmp_path, bands=4)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 90, 3), np.uint8)).save(tmp_path / "cut.png")
    whole = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    for name in "012":
        (tmp_path / f"{name}.png").unlink()
    with pytest.raises(DataError, match=r"cut\.png: cannot be read"):
        PhotographFolder(tmp_path, bands=3)
    Image.fromarray(np.full((9, 9), 0.5, np.float32)).save(tmp_path / "cut.tif")
    (tmp_path / "cut.png").unlink()
    with pytest.raises(DataError, match=r"cut\.tif: has more than 8 bits"):
        PhotographFolder(tmp_path, bands=3)


def test_a_source_that_is_not_there_is_refused():
    for source in ("flow", "folder", "none"):
        with pytest.raises(ValueError, match=source):
            _draw(source)
