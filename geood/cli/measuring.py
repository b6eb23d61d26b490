"""Runs of `geood evaluate`: load the model, measure, print the table, and say where the figures are.

The verb in `app` parses and checks its options and says here what is to be measured. Nothing heavy is imported before a
run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from geood.errors import ConfigError

if TYPE_CHECKING:
    from geood.evaluation import SetEvaluation
    from geood.geo.scene_reading import ReadingOptions


def measure_scenes(
    root: Path,
    model: Callable[[], Path],
    out: Path | None,
    *,
    settings: Sequence[str],
    options: ReadingOptions,
    overwrite: bool,
) -> None:
    """Measure a model on scenes; `model` returns the path of the bundle.

    `out` is a folder for figures, tables and pictures, or a file ending in .json for the figures alone.
    """
    from geood.atomic import check_output

    alone = out is not None and out.suffix == ".json"
    if out and alone:
        check_output(out, overwrite=overwrite)
    from geood.evaluation import evaluate_scenes, staged, write_metrics, write_scene_figures
    from geood.models import ModelBundle

    bundle = ModelBundle.load(model(), flow=False)
    with staged(None if alone else out, overwrite=overwrite, inputs=[root]) as folder:
        pictures = folder / "pictures" if folder else None
        result = evaluate_scenes(root, bundle, settings=settings, options=options, pictures=pictures)
        if folder:
            write_scene_figures(result, folder)
    print(result.table())
    if out and alone:
        write_metrics(result, out, overwrite=overwrite)
    if out:
        print(f"\nfigures    {out}" + ("" if alone else " (results.json, scenes.csv, objects.csv, pictures/)"))


def set_measurement(name: str, root: Path, *, split: str | None, protocol: str | None) -> Callable[..., SetEvaluation]:
    """Return the measurement of a data set of the catalog, for `measure_images`.

    Raises:
        ConfigError: there is no such data set or protocol.
    """
    from geood.catalog import measured_set

    chosen = measured_set(name, protocol)
    from geood.evaluation import evaluate_set

    return partial(evaluate_set, chosen, root, split=split)


def pair_measurement(
    root: Path, *, images: str | None, labels: str | None, protocol: str | None
) -> Callable[..., SetEvaluation]:
    """Return the measurement of a folder of images and masks, for `measure_images`."""
    from geood.evaluation import evaluate_pairs

    return partial(evaluate_pairs, root, protocol=protocol or "pooled", images=images, labels=labels)


def measure_images(
    run: Callable[..., SetEvaluation],
    model: Callable[[], Path],
    out: Path | None,
    *,
    inputs: Sequence[Path],
    scores: Path | None,
    overwrite: bool,
    settings: Sequence[str],
    options: ReadingOptions,
) -> None:
    """Measure a model, or score files, on images; `out` is a folder for the figures, `inputs` must not lie in it.

    Raises:
        ConfigError: `out` has the name of a file.
    """
    if out and out.suffix == ".json":
        raise ConfigError(f"--out {out}: a JSON file holds the figures of scenes alone; name a folder, without .json")
    from geood.evaluation import staged
    from geood.models import ModelBundle

    bundle = None if scores else ModelBundle.load(model(), flow=False)
    with staged(out, overwrite=overwrite, inputs=inputs) as folder:
        measured = run(bundle=bundle, scores=scores, settings=settings, options=options, out=folder)
    print(measured.table())
    if out:
        print(f"\nfigures    {out} (metrics.json, images.csv, scores/, pictures/)")
