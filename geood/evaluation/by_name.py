"""`evaluate`: scenes, pairs or a published data set, measured under one name, as the command line does.

What differs between the three is in `scenes`, `pairs` and `catalog_sets`; here it is chosen among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from geood.catalog import measured_set
from geood.errors import ConfigError
from geood.evaluation.catalog_sets import evaluate_set
from geood.evaluation.pairs import evaluate_pairs
from geood.evaluation.results import Evaluation, SetEvaluation, staged, write_scene_figures
from geood.evaluation.scenes import evaluate_scenes
from geood.geo.scene_reading import AUTOMATIC, PartOptions, ReadingOptions
from geood.models import AnyBundle


def evaluate(  # noqa: PLR0913 - the options of a verb
    benchmark: str,
    root: str | Path,
    *,
    bundle: AnyBundle | None = None,
    scores: str | Path | None = None,
    split: str | None = None,
    protocol: str | None = None,
    settings: Sequence[str] = (),
    options: ReadingOptions | PartOptions = AUTOMATIC,
    out: str | Path | None = None,
    overwrite: bool = False,
) -> Evaluation | SetEvaluation:
    """Measure a bundle, or score files, on a benchmark.

    Args:
        benchmark: `scenes`, `pairs`, or the name of a data set of the catalog.
        root: the folder of the data set; for scenes a config with `data.test_images`, or a folder with X.tif and
            X_labels.tif; for pairs a folder of images and masks.
        bundle: a ModelBundle, its file, or the folder of its run; None: `scores` are measured.
        scores: a folder of score files of any tool, one for each image; not for scenes.
        split: the split of a data set; None: its last.
        protocol: the benchmark whose metrics are computed; None: the data set's own, of pairs `pooled`.
        settings: overrides such as `score.kind=energy` or `data.label_ids={255: 1}`.
        options: how the images are read.
        out: a folder for figures, tables and pictures; None: nothing is written.
        overwrite: replace an earlier evaluation there.

    Returns:
        The figures: an `Evaluation` of scenes, a `SetEvaluation` of pairs and data sets. Both have a `table()`.

    Raises:
        ConfigError: there is no such benchmark, or the options do not belong to it.
        DataError: files are missing or cannot be used.
        OutputError: `out` cannot be written.

    Example:
        >>> import geood
        >>> result = geood.evaluate("scenes", "labelled", bundle="model.safetensors")
        >>> result.score
        'jsd'
    """
    root, kept = Path(root), None if out is None else Path(out)
    files = None if scores is None else Path(scores)
    if benchmark == "scenes" and (files or split or protocol):
        raise ConfigError("scores, split and protocol are for pairs and data sets of the catalog; scenes have none")
    if benchmark == "pairs" and split:
        raise ConfigError("split is for data sets of the catalog; of pairs all are measured")
    with staged(kept, overwrite=overwrite, inputs=[root, *([files] if files else [])]) as folder:
        if benchmark == "scenes":
            if bundle is None:
                raise ConfigError("no model: give bundle=, a ModelBundle, the path of its file, or the run's folder")
            pictures = folder / "pictures" if folder else None
            found = evaluate_scenes(root, bundle, settings=settings, options=options, pictures=pictures)
            if folder:
                write_scene_figures(found, folder)
            return found
        if benchmark == "pairs":
            return evaluate_pairs(
                root,
                protocol=protocol or "pooled",
                bundle=bundle,
                scores=files,
                settings=settings,
                options=options,
                out=folder,
            )
        return evaluate_set(
            measured_set(benchmark, protocol),
            root,
            bundle=bundle,
            scores=files,
            split=split,
            settings=settings,
            options=options,
            out=folder,
        )
