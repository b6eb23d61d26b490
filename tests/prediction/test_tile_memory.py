"""Laws of the memory of a tile: what lives at once, told exactly or roughly, and whether a machine holds it."""

import gc
import os
from dataclasses import replace

import pytest
import torch

from geood.models.inlier_statistics import Inliers
from geood.models.region import MARGIN
from geood.prediction.tile_memory import SPARE, _Alive, machine_holds, pixel_bytes, tile_bytes
from support.bundles import make_bundle, with_statistics
from support.cpu import slow


def test_what_lives_at_once_is_counted_once_and_until_it_dies():
    alive, one = _Alive(), torch.empty(1000)
    alive.see([one, one.view(10, 100), (one[:5],)])
    assert alive.now == alive.peak == 4000
    two = torch.empty(50)
    alive.see(two)
    del one
    gc.collect()
    assert (alive.now, alive.peak) == (200, 4200)
    alive.see({"again": torch.empty(500), "none": None})
    gc.collect()
    assert (alive.now, alive.peak) == (200, 4200)


def test_the_memory_of_a_tile_is_told_roughly_by_a_few_pixels(bundle):
    exact = tile_bytes(bundle, 256)
    assert 0.7 * exact < pixel_bytes(bundle) * 256**2 < 1.2 * exact
    assert not any(module._forward_hooks for module in bundle.segmenter.modules())


def test_a_tiles_memory_grows_with_its_pixels(bundle):
    small, large = tile_bytes(bundle, 128), tile_bytes(bundle, 256)
    assert small > 128 * 128 * 4 * 3
    assert large == pytest.approx(4 * small, rel=0.02)


@pytest.mark.parametrize("kinds", [("jsd", "hybrid", "combined"), *slow((None,))])
def test_a_tiles_memory_is_that_of_its_score_too(tmp_path, kinds):
    """Tensors that live at once: those of the pass, or its answer with what the score is computed from and smoothed."""
    head = {"outlier": "head"}
    bundle = with_statistics(make_bundle(tmp_path / "a.safetensors", segmenter=head), tmp_path / "b.safetensors")
    plane = 256 * 256 * 4

    def needed(kind, smooth=0):
        score = bundle.config.score.model_copy(update={"kind": kind, "smooth_px": smooth})
        return tile_bytes(bundle.with_score(score), 256)

    each = {kind: needed(kind) for kind in kinds or bundle.scores}
    assert min(each.values()) >= plane * (3 + 3)  # image and logits
    assert each["combined"] >= each["hybrid"] >= each["jsd"]
    assert all(needed(kind, smooth=4) >= each[kind] for kind in each)
    held = dict(bundle.inliers.named_buffers())
    wide = replace(bundle, inliers=Inliers(held | {"bank": held["bank"].repeat(40, 1)}))
    seen = (256 - 2 * bundle.halo_px + 2 * MARGIN) // 4  # places of the decoder's features along a side
    distances = seen**2 * 40 * len(held["bank"]) * 4
    more = tile_bytes(wide.with_score(bundle.config.score.model_copy(update={"kind": "knn"})), 256)
    assert distances <= more < 3 * distances and tile_bytes(wide, 256) == each["jsd"] < distances


def test_a_machine_holds_a_tile_for_each_core_in_half_of_its_memory(bundle, monkeypatch):
    from distributed import system

    needed = int(2 * (os.cpu_count() or 1) * SPARE * pixel_bytes(bundle) * (512 + 2 * bundle.halo_px) ** 2)
    for memory, held in ((needed + 1, True), (needed - 1, False)):
        monkeypatch.setattr(system, "MEMORY_LIMIT", memory)
        assert machine_holds(bundle, 512) is held


@pytest.mark.parametrize(
    ("group", "file"),
    [
        ("0::/", "memory.max"),  # a container
        ("0::/slurm/job_7/step", "slurm/job_7/memory.max"),
        ("5:cpu,memory:/\n2:cpu:/x", "memory/memory.limit_in_bytes"),
        ("5:memory:/batch", "memory/batch/memory.limit_in_bytes"),
    ],
)
def test_the_memory_of_a_machine_is_that_of_its_container_or_job(tmp_path, bundle, monkeypatch, group, file):
    monkeypatch.setattr("geood.prediction.tile_memory.GROUPS", tmp_path)
    monkeypatch.setattr("geood.prediction.tile_memory.OWN_GROUPS", tmp_path / "own")
    assert machine_holds(bundle, 64)
    (tmp_path / "own").write_text(f"{group}\n")
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    for text, held in (("max\n", True), (f"{2**62}\n", True), ("1000000\n", False)):
        (tmp_path / file).write_text(text)
        assert machine_holds(bundle, 64) is held
