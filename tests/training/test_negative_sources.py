"""Laws of what is pasted: sizes, ranges, chance from the generator alone, and where gradients go."""

from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from geood.config.sections import FlowConfig, NegativesConfig, Source
from geood.datasets.outlier_photos import PhotographFolder
from geood.errors import ConfigError, DataError
from geood.models.flows.flow import Flow
from geood.training.negative_sources import DRAWN, MOVED, TILE, Images, draw_patches
from support.cpu import slow

SIZE = (16, 24)


def _image():
    return torch.rand(3, 3, 40, 48, generator=torch.Generator().manual_seed(0))


def _drawn(source, *, seed=0, image=None, valid=None, flow=None, photographs=None, tint=0.0, sizes=None, telling=None):
    """A patch for each image, of the sizes given."""
    image = _image() if image is None else image
    valid = torch.ones(len(image), *image.shape[2:], dtype=torch.bool) if valid is None else valid
    folder = "photos" if "folder" in source else None
    generator = torch.Generator().manual_seed(seed)
    settings = NegativesConfig(source=source, folder=folder, tint=tint)
    sizes = [SIZE] * len(image) if sizes is None else sizes
    given = Images(image, valid, image.amax(1) if telling is None else telling)
    return draw_patches(settings, sizes, given, flow=flow, photographs=photographs, generator=generator)


def _draw(source, **keys):
    """Patches of one size, stacked."""
    return torch.stack(_drawn(source, **keys))


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
        "folder": {"photographs": _photographs(tmp_path)},
        **{source: {} for source in DRAWN},
    }


SOURCES = ["flow", "folder", *DRAWN]


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_gives_one_patch_an_image_out_of_its_generator(tmp_path, source):
    with_ = _sources(tmp_path)[source]
    first, again, other = _draw(source, **with_), _draw(source, **with_), _draw(source, seed=1, **with_)
    assert first.shape == (3, 3, *SIZE) and torch.equal(first, again) and not torch.equal(first, other)
    assert first.requires_grad == (source == "flow")
    if source != "flow":
        assert float(first.min()) >= 0 and float(first.max()) <= 1


def test_the_config_and_the_functions_know_the_same_sources():
    assert set(get_args(Source)) == {*SOURCES, "none"}


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_gives_each_image_the_size_that_it_asks_for(tmp_path, source):
    sizes = [(9, 31), (16, 8), (8, 8)]
    patches = _drawn(source, sizes=sizes, **_sources(tmp_path)[source])
    assert [patch.shape for patch in patches] == [(3, *size) for size in sizes]
    assert all(torch.isfinite(patch).all() for patch in patches)


def test_a_mixture_draws_its_sources_by_their_weights_and_the_flow_in_it_keeps_its_gradient():
    image, flow = torch.zeros(200, 3, 40, 48), Flow(3, FlowConfig(steps=1, layers=1, growth=4), (1 / 255,) * 3)
    flow.initialize(_image())
    patches = _drawn({"flow": 1.0, "crop": 3.0}, image=image, flow=flow, sizes=[(8, 8)] * 200)
    flows = [patch.requires_grad for patch in patches]
    assert sum(flows) == pytest.approx(50, abs=20) and len({*flows[:8]}) == 2
    assert all(not patch.any() for patch, of_flow in zip(patches, flows, strict=True) if not of_flow)  # crops of zeros
    torch.stack(patches).square().sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in flow.parameters())


def _waves():
    """Two images of two bands: a wave along one direction each, the second band the first one turned upside down."""
    ys, xs = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    first, second = (0.5 + 0.2 * torch.sin(2 * torch.pi * place / 8) for place in (ys, xs))
    return torch.stack([torch.stack([wave, 1 - wave]) for wave in (first, second)])


def test_a_phase_patch_has_mean_spread_spectrum_and_ties_of_a_crop_and_not_the_crop():
    """Of a wave along rows it makes waves along rows, of the same length, elsewhere; bands stay opposite."""
    image = _waves()
    for seed in range(5):
        patches = _drawn("phase", image=image, seed=seed, sizes=[(48, 48), (40, 56)])
        for patch, source, axis in zip(patches, (image[1], image[0]), (1, 0), strict=True):
            assert float(patch.mean()) == pytest.approx(0.5, abs=0.02)
            assert float(patch.std()) == pytest.approx(float(source.std()), rel=0.2)
            torch.testing.assert_close(patch[0] + patch[1], torch.ones_like(patch[0]), rtol=0, atol=0.02)
            power = torch.fft.fft2(patch[0] - patch[0].mean()).abs().square()
            along = power.sum(1 - axis)
            half = along[: len(along) // 2]
            assert int(half.argmax()) == pytest.approx(patch.shape[1 + axis] / 8, abs=1)  # waves of 8 pixels


def test_phases_are_drawn_anew_and_alike_for_all_bands():
    image = _waves()[:1]
    first, second = (_drawn("phase", image=image, seed=seed, sizes=[(32, 32)])[0] for seed in (0, 1))
    assert not torch.allclose(first, second, atol=0.05)
    grey = image[:, :1].expand(-1, 3, -1, -1)
    patch = _drawn("phase", image=grey, sizes=[(32, 32)])[0]
    assert torch.equal(patch, patch[:1].expand_as(patch))


def test_a_phase_patch_of_an_even_crop_is_that_crop():
    image = torch.tensor([0.25, 0.75])[:, None, None, None].expand(2, 3, 40, 48)
    patches = _drawn("phase", image=image, sizes=[(8, 8), (16, 16)])
    for patch, level in zip(patches, (0.75, 0.25), strict=True):
        torch.testing.assert_close(patch, torch.full_like(patch, level))


def _smooth_fields(count, side, sigma, seed=0):
    """Stationary random fields of two bands, blurred by a Gaussian of `sigma` pixels, with mean 0.5 and spread 0.1."""
    noise = torch.randn((count, 2, side, side), generator=torch.Generator().manual_seed(seed))
    far = torch.fft.fftfreq(side).square()
    blur = (-2 * torch.pi**2 * sigma**2 * (far[:, None] + far)).exp()
    field = torch.fft.ifft2(torch.fft.fft2(noise) * blur).real
    return 0.5 + 0.1 * field / field.std()


def _correlations(patches):
    """Correlation of pixels one and two apart, each patch and band about its own mean."""
    centred = torch.stack(patches)
    centred = centred - centred.mean((2, 3), keepdim=True)
    found = []
    for lag in (1, 2):
        pairs = (centred[..., lag:], centred[..., :-lag]), (centred[..., lag:, :], centred[..., :-lag, :])
        found.append(sum(float((a * b).mean() / centred.square().mean()) for a, b in pairs) / 2)
    return found


@pytest.mark.parametrize("sigma", [1.0, *slow(2.0)])
@pytest.mark.parametrize("size", [(8, 8), (8, 24), (12, 40)])
def test_small_phase_patches_hang_together_as_their_crops_do(sigma, size):
    image = _smooth_fields(8, 64, sigma)
    draw = {"image": image, "sizes": [size] * len(image)}
    phase, crop = (
        _correlations([p for seed in range(25) for p in _drawn(source, seed=seed, **draw)])
        for source in ("phase", "crop")
    )
    assert phase == pytest.approx(crop, abs=0.1)


def test_a_small_phase_patch_takes_what_surroundings_there_are():
    """From another image if any has room for the patch, from little of it if there is no more."""
    image, valid = torch.zeros(2, 1, 64, 64), torch.zeros(2, 64, 64, dtype=torch.bool)
    image[0], valid[0] = 0.25, True
    image[1, :, 10:20, 10:20], valid[1, 10:20, 10:20] = 0.75, True
    first, second = _drawn("phase", image=image, valid=valid, sizes=[(8, 8), (8, 8)])
    torch.testing.assert_close(first, torch.full_like(first, 0.75))
    torch.testing.assert_close(second, torch.full_like(second, 0.25))
    narrow = image[:1, :, :20]
    [patch] = _drawn("phase", image=narrow, sizes=[(8, 8)])
    torch.testing.assert_close(patch, torch.full_like(patch, 0.25))


def _places():
    """Three images whose pixels say which image, row and column they are."""
    rows, cols = torch.meshgrid(torch.arange(40.0), torch.arange(48.0), indexing="ij")
    return torch.stack([torch.stack([torch.full_like(rows, i / 4), rows / 40, cols / 48]) for i in range(3)])


def test_crops_are_of_another_image_and_as_they_are():
    image = _places()
    for seed in range(10):
        for i, patch in enumerate(_drawn("crop", image=image, seed=seed)):
            j, row, col = (round(float(value) * n) for value, n in zip(patch[:, 0, 0], (4, 40, 48), strict=True))
            assert j != i and torch.equal(patch, image[j, :, row : row + SIZE[0], col : col + SIZE[1]])


def test_scaled_crops_are_two_to_four_times_as_dense_turned_and_mirrored():
    image, found, turned = _places(), [], set()
    for seed in range(60):
        for i, patch in enumerate(_drawn("scaled", image=image, seed=seed, sizes=[(9, 9)] * 3)):
            assert round(float(patch[0].mean()) * 4) != i
            steps = torch.stack([patch[1].diff(dim=0).mean() * 40, patch[1].diff(dim=1).mean() * 40])
            found.append(float(steps.abs().max()))
            turned.add((int(steps.abs().argmax()), bool(steps[steps.abs().argmax()] > 0)))
    assert min(found) > 1.8 and max(found) < 4.2 and max(found) - min(found) > 1
    assert turned == {(0, True), (0, False), (1, True), (1, False)}


def test_a_scaled_crop_is_less_shrunk_where_there_is_no_room_for_more():
    image, valid = _places(), torch.zeros(3, 40, 48, dtype=torch.bool)
    valid[:, 5:25, 5:25] = True
    for patch in _drawn("scaled", image=image, valid=valid, sizes=[(16, 16)] * 3):
        rows, cols = patch[1] * 40, patch[2] * 48
        assert float(rows.min()) > 4.5 and float(rows.max()) < 24.5 and float(cols.max()) < 24.5
        assert float(rows.max() - rows.min()) < 20


def test_attribution_moves_the_most_telling_pixels_of_a_crop_and_no_others():
    image = _places()
    telling = torch.rand(3, 40, 48, generator=torch.Generator().manual_seed(5))
    for i, patch in enumerate(_drawn("attribution", image=image, telling=telling)):
        rows, cols = (patch[band] * n for band, n in ((1, 40), (2, 48)))
        top, left = round(float(rows.median(1).values.min())), round(float(cols.median(0).values.min()))
        j = round(float(patch[0].mean() * 4))
        window = slice(top, top + SIZE[0]), slice(left, left + SIZE[1])
        there, told = image[j][:, *window], telling[j][*window]
        moved, most = (patch != there).any(0), told >= told.flatten().topk(round(MOVED * told.numel())).values[-1]
        assert j != i and moved.any() and not (moved & ~most).any()
        pixels = [sorted(map(tuple, values.flatten(1).T.tolist())) for values in (patch, there)]
        assert pixels[0] == pixels[1]  # moved, not changed
    with pytest.raises(ValueError, match="needs to know which pixels"):
        generator, valid = torch.Generator(), torch.ones(3, 40, 48, dtype=torch.bool)
        settings = NegativesConfig(source="attribution")
        draw_patches(settings, [SIZE] * 3, Images(image, valid), flow=None, photographs=None, generator=generator)


def test_colour_is_even_and_noise_is_not():
    colour, noise = _draw("colour"), _draw("noise")
    assert torch.equal(colour, colour[..., :1, :1].expand_as(colour))
    assert float(noise.std((2, 3)).min()) > 0.2 and len(set(colour[:, 0, 0, 0].tolist())) == 3


def test_shuffled_crops_are_tiles_of_another_image():
    image = torch.arange(3.0)[:, None, None, None].expand(3, 3, 40, 48) / 4
    patches = _draw("shuffled", image=image)
    assert all(float(p.unique()) != i / 4 for i, p in enumerate(patches))
    ramp = torch.arange(40.0 * 48).reshape(1, 1, 40, 48) / (40 * 48)
    [patch] = _draw("shuffled", image=ramp)
    rows = patch[0].unfold(0, TILE, TILE).unfold(1, TILE, TILE)
    assert torch.allclose(rows.diff(dim=3), torch.tensor(1 / (40 * 48)), atol=1e-6)  # whole inside a tile
    joints = patch[0].diff(dim=1)[:, TILE - 1 :: TILE]
    assert not torch.allclose(joints, torch.tensor(1 / (40 * 48)), atol=1e-6)  # not from one to the next


def test_crops_are_of_another_image_also_where_one_has_no_data():
    image = torch.arange(3.0)[:, None, None, None].expand(3, 3, 40, 48) / 4
    valid = torch.ones(3, 40, 48, dtype=torch.bool)
    valid[0] = False
    first, second, third = (float(p.unique()) for p in _draw("shuffled", image=image, valid=valid))
    assert first in (0.25, 0.5) and (second, third) == (0.5, 0.25)
    valid[2] = False
    assert [float(p.unique()) for p in _draw("crop", image=image, valid=valid)] == [
        0.25,
        0.25,
        0.25,
    ]  # only one has room


@pytest.mark.parametrize("source", ["crop", "scaled", "shuffled", "phase"])
def test_crops_come_from_places_with_data_and_are_grey_where_there_are_none(source):
    image = torch.zeros(2, 1, 40, 48)
    valid = torch.zeros(2, 40, 48, dtype=torch.bool)
    image[0, :, 5:30, 5:40], valid[0, 5:30, 5:40] = 1.0, True
    assert float(_draw(source, image=image, valid=valid).min()) > 0.999
    assert torch.allclose(_draw(source, image=image, valid=torch.zeros_like(valid)), torch.tensor(0.5))


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
    text = PngInfo()
    text.add_text("Software", "a" * 2_000_000, zip=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "bad.png", pnginfo=text)  # more than Pillow unpacks
    with pytest.raises(DataError, match=r"bad\.png: cannot be read"):
        PhotographFolder(tmp_path, bands=3)
    (tmp_path / "bad.png").unlink()
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
    for source in ("flow", "folder"):
        with pytest.raises(ValueError, match=source):
            _draw(source)
