"""A bundle as a STAC item with the Machine Learning Model extension, for catalogs of models.

The item says what goes in (bands, their scaling, the size of a pixel), what comes out (score and class), with which
settings the model was trained, and where its file is. Its footprint is that of the training's blocks, where the file
`split.gpkg` of the run lies beside the bundle, and null elsewhere: nothing is guessed. Paths of the training data stay
out of it. Specification: https://github.com/stac-extensions/mlm, version 1.5.2, and STAC 1.1.0.
"""

from __future__ import annotations

import datetime
import re
from pathlib import Path
from typing import Any

import pyogrio
from pyproj import CRS, Transformer
from pyproj.exceptions import ProjError

from geood._version import DISTRIBUTION, __version__
from geood.constants import NO_CLASS
from geood.errors import DataError
from geood.geo.ogr import local_file
from geood.geo.paths import seen_from
from geood.models import ModelBundle

STAC = "1.1.0"
EXTENSION = "https://stac-extensions.github.io/mlm/v1.5.2/schema.json"
SPLIT, BLOCKS = "split.gpkg", "blocks"
WGS84 = 4326
# Keys of a config that hold paths of the machine that trained.
PATHS: Any = {"data": True, "segmenter": {"weights"}, "negatives": {"folder"}, "train": {"stages_from", "tune_from"}}


def stac_item(bundle: ModelBundle, path: Path, *, folder: Path) -> dict[str, Any]:
    """Return the STAC item of a bundle as JSON values.

    Args:
        bundle: the bundle.
        path: its file.
        folder: folder of the item, from which its links start.

    Raises:
        DataError: `split.gpkg` beside the bundle cannot be read.
    """
    bands = [{"name": name} for name in bundle.bands.names]
    box = footprint(path.parent / SPLIT)
    written = datetime.datetime.fromtimestamp(path.stat().st_mtime, datetime.UTC)
    return {
        "type": "Feature",
        "stac_version": STAC,
        "stac_extensions": [EXTENSION],
        "id": f"geood-{bundle.identity}",
        "geometry": None if box is None else _outline(box),
        **({} if box is None else {"bbox": list(box)}),
        "properties": {
            "datetime": written.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "description": f"Anomaly model of {DISTRIBUTION} {__version__}: it scores what it was never taught",
            "bands": bands,
            **_model(bundle),
        },
        "links": [],
        "assets": {
            "model": {
                "href": seen_from(path, folder),
                "title": "Weights, bands, classes, thresholds and config in one file",
                "type": "application/octet-stream; application=safetensors",
                "roles": ["mlm:model", "mlm:weights"],
                "mlm:artifact_type": "safetensors.torch.save_file",
                "bands": bands,
            }
        },
    }


def footprint(split: Path) -> tuple[float, float, float, float] | None:
    """Return west, south, east and north in degrees of the blocks in a run's `split.gpkg`; None where there is none.

    Raises:
        DataError: the file cannot be read.
    """
    if not split.is_file():
        return None
    try:
        with local_file(split) as plain:
            frame = pyogrio.read_dataframe(plain, layer=BLOCKS, columns=[])
        if frame.crs is None or frame.empty:
            return None
        to_degrees = Transformer.from_crs(CRS(frame.crs), CRS.from_epsg(WGS84), always_xy=True)
        west, south, east, north = to_degrees.transform_bounds(*frame.total_bounds, errcheck=True)
    except DataError as error:  # of another kind than its name says
        raise DataError(f"{error}; or move it away to export without a footprint") from None
    except (OSError, pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, ProjError) as error:
        raise DataError(f"{split}: cannot be read ({error}); move it away to export without a footprint") from None
    return round(west, 7), round(south, 7), round(east, 7), round(north, 7)


def _outline(box: tuple[float, float, float, float]) -> dict[str, Any]:
    """Return a box as GeoJSON; one whose west is greater than its east crosses the date line, and is cut there."""
    west, south, east, north = box
    parts = [(west, east)] if west <= east else [(west, 180.0), (-180.0, east)]
    rings = [[[[w, south], [e, south], [e, north], [w, north], [w, south]]] for w, e in parts]
    if len(rings) == 1:
        return {"type": "Polygon", "coordinates": rings[0]}
    return {"type": "MultiPolygon", "coordinates": rings}


def _model(bundle: ModelBundle) -> dict[str, Any]:
    """Return the fields of the extension."""
    config, weights = bundle.config, bundle.config.segmenter.weights
    source = {None: None, "imagenet": "ImageNet"}.get(weights, Path(weights or "").name)
    sections = config.model_dump(mode="json", exclude=PATHS)
    parts = [part for part in (bundle.segmenter, bundle.flow, bundle.inliers) if part is not None]
    tensors = [tensor for part in parts for tensor in part.state_dict().values()]
    return {
        "mlm:name": f"geood {config.segmenter.encoder} {bundle.identity}",
        "mlm:architecture": f"{config.segmenter.encoder} with ladder decoder",
        "mlm:tasks": ["semantic-segmentation"],
        "mlm:framework": "PyTorch",
        "mlm:total_parameters": sum(weight.numel() for part in parts for weight in part.parameters()),
        "mlm:memory_size": sum(tensor.numel() * tensor.element_size() for tensor in tensors),
        "mlm:pretrained": weights is not None,
        "mlm:pretrained_source": source,
        "mlm:accelerator_constrained": False,
        "mlm:hyperparameters": sections,
        "mlm:input": [_input(bundle)],
        "mlm:output": _outputs(bundle),
    }


def _input(bundle: ModelBundle) -> dict[str, Any]:
    bands = bundle.bands
    size = "unknown" if bundle.resolution is None else f"{bundle.resolution:g} m"
    return {
        "name": "image",
        "description": f"digital numbers, pixels of {size}; height and width are multiples of 32",
        "bands": list(bands.names),
        "input": {
            "shape": [-1, bands.count, -1, -1],
            "dim_order": ["batch", "bands", "height", "width"],
            "data_type": "float32",
        },
        "value_scaling": [
            {"type": "min-max", "minimum": low, "maximum": high}
            for low, high in zip(bands.low, bands.high, strict=True)
        ],
        "resize_type": None,
    }


def _outputs(bundle: ModelBundle) -> list[dict[str, Any]]:
    names = bundle.config.data.classes
    kind, threshold = bundle.config.score.kind, bundle.thresholds.get(str(bundle.config.score.fpr))
    said = "" if threshold is None else f"; more than {threshold:.6g} is taken for an anomaly"
    shape = {"shape": [-1, -1, -1], "dim_order": ["batch", "height", "width"]}
    classes = [(i, names[i]) for i in bundle.class_ids]
    return [
        {
            "name": "score",
            "description": f"anomaly score {kind}, higher is more anomalous, NaN where there is no data{said}",
            "tasks": ["regression"],
            "result": {**shape, "data_type": "float32"},
        },
        {
            "name": "class",
            "description": f"id of the most likely class, {NO_CLASS} where there is no data",
            "tasks": ["semantic-segmentation"],
            "result": {**shape, "data_type": "uint8"},
            "classification:classes": [
                {"value": i, "name": re.sub(r"[^0-9A-Za-z_-]+", "_", name) or f"class_{i}", "description": name}
                for i, name in classes
            ],
        },
    ]
