"""Laws of the examples of negatives: as many as asked, of one size, of the config's sources, the same each time."""

import numpy as np
import pytest
import torch

from geood.config.sections import FlowConfig, NegativesConfig
from geood.models.flows.flow import Flow
from geood.training.negative_examples import example_negatives
from support.bundles import small_config
from support.cpu import slow
from support.rasters import picture, write_raster


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    image = picture(160, 160, seed=0)
    write_raster(folder / "im_0.tif", image)
    write_raster(folder / "lab_0.tif", np.digitize(image[0], [90, 160]).astype("uint8"))
    data = {"root": str(folder), "images": ["im_*.tif"], "labels": ["lab_*.tif"], "crop_px": 64, "crops": 12}
    return small_config(data=data | {"block_m": 40.0, "validation_crops": 2})


@pytest.mark.parametrize("source", [{"flow": 1.0, "crop": 1.0}, *slow("phase", "flow")])
def test_examples_are_negatives_of_the_config(settings, source):
    config = settings.model_copy(update={"negatives": NegativesConfig(source=source, patch_max_px=32)})
    flow = Flow(3, FlowConfig(steps=1, layers=1, growth=4), (1 / 255,) * 3)
    flow.initialize(torch.rand(4, 3, 32, 32))
    first, again = (example_negatives(config, None, flow, count=5, side=20) for _ in range(2))
    assert first.shape == (5, 3, 20, 20) and torch.equal(first, again) and not first.requires_grad
    assert float(first.min()) >= 0 and float(first.max()) <= 1 and float(first.std()) > 0.01


def test_without_a_source_there_are_no_examples(settings):
    config = settings.model_copy(update={"negatives": NegativesConfig(source="none")})
    assert example_negatives(config, None, None, count=5, side=20) is None
