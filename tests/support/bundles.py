"""Small configs, and bundles with seeded random weights."""

import dataclasses

import torch

from geood.config.sections import Config
from geood.geo.bands import Bands
from geood.models.bundle import ModelBundle
from geood.models.encoder_bank import located, usual_distance
from geood.models.flows.flow import Flow
from geood.models.inlier_statistics import InlierFit, Inliers
from geood.models.score_maps import with_tails
from geood.models.segmenter import Segmenter


def small_config(**sections):
    """A config with tiny networks and lengths; sections override keys."""
    tree = {
        "data": {
            "images": ["*.tif"],
            "labels": ["*.tif"],
            "classes": {0: "land", 1: "road", 2: "roof"},
            "anomaly": [7],
        },
        "segmenter": {"encoder": "test_resnet", "decoder_channels": 16, "outlier": "none"},
        "flow": {"steps": 1, "layers": 1, "growth": 8},
        "negatives": {"patch_max_px": 32, "source": "flow"},
        "train": {"third_stage": "joint"},
        "score": {"kind": "jsd"},
        "predict": {"tile_px": 128, "halo_px": 32, "min_area_m2": 0.0},
    }
    for section, keys in sections.items():
        tree[section] = tree.get(section, {}) | keys
    return Config.model_validate(tree)


def make_bundle(path, *, bands=3, high=255.0, names=None, **sections):
    """Save a bundle with seeded random weights, whose scores spread over [0, 1], and return it."""
    config = small_config(**sections)
    torch.manual_seed(0)
    classes = len(config.data.classes)
    segmenter, flow = Segmenter(bands, classes, config.segmenter), Flow(bands, config.flow, (1 / high,) * bands)
    with torch.no_grad():
        segmenter.head[-1].weight.mul_(120)  # strong opinions, so that classes and scores vary from pixel to pixel
        for name, weight in segmenter.named_parameters():
            if name.startswith("outlier_head.") and name.endswith("last.weight"):
                torch.nn.init.normal_(weight)  # as if trained: it starts at zero
    bundle = ModelBundle(
        segmenter=segmenter.eval(),
        flow=flow.eval(),
        inliers=None,
        bands=Bands(
            names=names or tuple(f"band_{i + 1}" for i in range(bands)),
            indexes=tuple(range(1, bands + 1)),
            low=(0.0,) * bands,
            high=(high,) * bands,
            fill=(0.5,) * bands,
            step=(1 / high,) * bands,
            scene_count=bands,
        ),
        config=config,
        class_ids=tuple(sorted(config.data.classes)),
        resolution=0.5,
        calibration={config.score.kind: {"0.001": 0.9, "0.01": 0.7, "0.05": 0.5}},
        calibrated=config.score,
        metrics={"joint/miou": 0.5},
    )
    return bundle.save(path)


def with_false_alarms(bundle, path, image, *, false, reach=None):
    """Save a bundle with statistics anew with places of false alarms: those of an image where `false` (B, H, W) is."""
    held = bundle.inliers.state_dict()
    answer = bundle.infer(image)
    at = located((answer.encoder, answer.coarser), shift=held["encoder_shift"], axes=held["encoder_axes"])
    places = at[false[:, 4::8, 4::8]]
    far = usual_distance(held["encoder_near"]).reshape(1) if reach is None else torch.tensor([reach])
    return dataclasses.replace(bundle, inliers=Inliers(held | {"encoder_false": places, "encoder_reach": far})).save(
        path
    )


def with_statistics(bundle, path):
    """Save a bundle with an outlier head anew with statistics for every score, of seeded noise, and return it."""
    classes = len(bundle.class_ids)
    fit = InlierFit(classes, samples=200, places=100, batches=1, seed=0)
    noise = torch.rand(2, bundle.bands.count, 64, 64, generator=torch.Generator().manual_seed(0))
    fit.update(bundle.infer(noise), torch.zeros(2, 64, 64, dtype=torch.int64))
    found = with_tails(fit.finish(), lambda kind: lambda share: -share)
    return dataclasses.replace(bundle, inliers=found).save(path)
