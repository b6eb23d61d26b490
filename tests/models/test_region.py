"""Laws of regions: a pass that answers for one gives within the core what a pass over all gives there."""

import pytest
import torch

from geood.config.sections import SegmenterConfig
from geood.models.inference import folded_segmenter
from geood.models.region import MARGIN, STEP, WHOLE, region_around
from geood.models.segmenter import Segmenter

SIZE = 224, 256
CORES = [
    (slice(64, 160), slice(96, 192)),
    (slice(0, 64), slice(160, 256)),  # at an edge of the image
    (slice(32, 75), slice(33, 130)),  # at no lattice
    WHOLE,
]


@pytest.fixture(scope="module", params=["ladder", "folded", pytest.param("ldn121", marks=pytest.mark.slow)])
def segmenter(request):
    torch.manual_seed(0)
    keys = {"network": "ldn121"} if request.param == "ldn121" else {"encoder": "resnet10t", "decoder_channels": 8}
    made = Segmenter(3, 4, SegmenterConfig(outlier="head", **keys)).eval()
    torch.nn.init.normal_(made.outlier_head.last.weight)  # which starts at zero
    return folded_segmenter(made) if request.param == "folded" else made


@pytest.mark.parametrize("core", CORES)
@torch.inference_mode()
def test_within_a_core_a_region_answers_as_the_whole(segmenter, core):
    image = torch.rand(1, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    region, (rows, cols) = region_around(core, SIZE)
    whole, part = segmenter(image), segmenter(image, True, region)
    assert part.logits.shape[-2:] == tuple(side.stop - side.start for side in region)
    for ours, theirs in ((part.logits, whole.logits), (part.outlier, whole.outlier)):
        torch.testing.assert_close(ours[..., rows, cols], theirs[..., *core], rtol=1e-4, atol=1e-5)
    for ours, theirs, stride in ((part.features, whole.features, 4), (part.encoder, whole.encoder, 8)):
        (top, left), (high, wide) = (side.start // stride for side in region), ours.shape[-2:]
        inner = slice(rows.start // stride, rows.stop // stride), slice(cols.start // stride, cols.stop // stride)
        there = theirs[..., top : top + high, left : left + wide]
        torch.testing.assert_close(ours[..., *inner], there[..., *inner], rtol=1e-4, atol=1e-5)


def test_a_region_is_the_core_and_what_its_scores_look_at():
    size, core = (1152, 640), (slice(64, 1088), slice(0, 509))
    (rows, cols), inner = region_around(core, size)
    assert (rows, cols) == (slice(64 - MARGIN, 1088 + MARGIN), slice(0, 509 + MARGIN + 3))
    assert inner == (slice(MARGIN, MARGIN + 1024), slice(0, 509))
    (rows, _), _ = region_around(core, size, radius=20)
    assert rows.start <= 44 - MARGIN and rows.stop >= 1108 + MARGIN
    assert not (rows.start % STEP or rows.stop % STEP)
    assert region_around(WHOLE, size)[0] == (slice(0, 1152), slice(0, 640))
