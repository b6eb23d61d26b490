"""Laws of the decoders: sizes, what pyramid pooling averages, who sees whom."""

import pytest
import torch

from geood.models.decoder import PYRAMID_ROWS, Ladder, PyramidPooling, bn_relu_conv


@pytest.mark.parametrize(("height", "width"), [(4, 4), (3, 9), (1, 1), (16, 24)])
def test_pooling_keeps_the_size_and_constants_stay_constant(height, width):
    torch.manual_seed(0)
    pooling = PyramidPooling(6, width=8, level=4).eval()
    flat = torch.rand(2, 6, 1, 1).expand(2, 6, height, width)
    with torch.no_grad():
        out = pooling(flat)
    assert out.shape == (2, 8, height, width)
    torch.testing.assert_close(out, out[..., :1, :1].expand_as(out))


def test_cells_are_about_square(monkeypatch):
    asked = []
    pool = torch.nn.functional.adaptive_avg_pool2d
    monkeypatch.setattr(torch.nn.functional, "adaptive_avg_pool2d", lambda x, size: asked.append(size) or pool(x, size))
    PyramidPooling(6, width=8, level=4).eval()(torch.rand(1, 6, 16, 32))
    assert asked == [(rows, 2 * rows) for rows in PYRAMID_ROWS]


def test_a_ladder_climbs_to_the_finest_features():
    ladder = Ladder([3, 5, 7, 9], top=bn_relu_conv(9, 12, kernel=1), channels=[12, 10, 8, 6]).eval()
    features = [torch.rand(2, width, 32 >> i, 48 >> i) for i, width in enumerate([3, 5, 7, 9])]
    with torch.no_grad():
        assert ladder(features).shape == (2, 6, 32, 48)
    with pytest.raises(ValueError, match="as many"):
        Ladder([3, 5, 7, 9], top=bn_relu_conv(9, 12, kernel=1), channels=[12, 10, 8])
