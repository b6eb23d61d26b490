"""Training from a config to a bundle: the segmenter alone, the flow alone, then what learns from negatives.

`train` runs the stages in order; the steps of a stage are in `stage`. Lightning's Trainer runs a stage (precision,
devices) and stays hidden. A stage is cut into equal epochs, each ended by a validation and a checkpoint. The crop at
position i of a stage is a pure function of (seed, stage, i), and so is every other random number of its step: a run
resumed after a kill repeats at most one epoch and ends with the same weights as an uninterrupted one (bit for bit on a
CPU). Pre-training flow and segmenter separately keeps the segmenter from over-fitting to the first, poor samples (arXiv
2112.12833).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from geood.config import Config, load_config
from geood.datasets import Crops, PhotographFolder, open_crops, open_photographs, settle_classes
from geood.errors import BundleError, GeoodError, OutputError, TrainingError, shown
from geood.models import Flow, ModelBundle, Segmenter, bundle_path_of
from geood.progress import Progress
from geood.training.calibration import finish_bundle
from geood.training.callbacks import CheckpointCallback, quiet_lightning
from geood.training.checkpoints import steps_at, unfit
from geood.training.feed import feed_of
from geood.training.first_checks import check_first
from geood.training.inputs import Inputs, check_inputs, inputs_of, note_inputs
from geood.training.pace import announce_long
from geood.training.plans import plans
from geood.training.run_folder import (
    LABELS,
    alone_in,
    as_begun,
    check_run,
    kept_defaults,
    last_metrics,
    make_run,
    take_stages,
    trim_metrics,
)
from geood.training.stage import Stage, first_crops, pl
from geood.training.tuning import Begun, take_model, with_kept_head

log = logging.getLogger("geood")


def train(config: Config | str | Path, out: str | Path, *, resume: bool = False) -> Path:
    """Train a bundle and return its path, `out/model.safetensors`.

    The run folder also holds config.yaml (resolved), split.gpkg (blocks and crops) or split.csv (photographs),
    metrics.csv, confusion.csv (classes of the last validation), versions.json, inputs.json (sizes and times of the
    files that were read), samples/ (pictures of synthetic negatives beside real crops), tensorboard/, checkpoints/ and,
    where labels are polygons, labels/.

    Args:
        config: data, networks and training settings; or the path of a config file.
        out: the run folder; created, with its parents, once everything is checked.
        resume: continue the run in `out`, with the config that it was begun with: what is given must be the same, and
            what is left to its default stays as it was.

    Returns:
        Path of the bundle.

    Raises:
        ConfigError: the config asks for devices, scores or stages that are not available.
        DataError: the images or labels cannot be used.
        OutputError: the folder holds a run already (without `resume`), one of other files, or cannot be written.
        TrainingError: a loss became infinite or NaN, no patch fits into the first crops, or a file of the run to be
            resumed is damaged beyond what can be made again.

    Example:
        >>> import geood
        >>> config = geood.load_config("aerial.yaml", ["train.flow_steps=2"])
        >>> bundle_path = geood.train(config, "runs/aerial")
        >>> bundle_path.as_posix()
        'runs/aerial/model.safetensors'
        >>> geood.ModelBundle.load(bundle_path).class_ids
        (0, 1, 2)
    """
    config, run = config if isinstance(config, Config) else load_config(config), Path(out)
    given, config = config, settle_classes(config)
    leader = _is_leader()
    if not leader:
        log.setLevel(logging.WARNING)  # one process logs for all
    begun = as_begun(run, config, given=given) if resume else config
    kept = kept_defaults(config, begun)
    config = with_kept_head(begun, given=given)
    if leader:
        check_run(run, config, resume=resume)
    bundle_path = run / "model.safetensors"
    if resume and _is_finished(bundle_path):
        log.info("%s is finished already", run)
        return bundle_path
    check_first(config)
    with alone_in(run) if leader else nullcontext():
        _train(config, run, leader=leader, kept=kept)
    return bundle_path


def _train(config: Config, run: Path, *, leader: bool, kept: str) -> None:
    """Train the stages of a config and save the bundle, in a run folder that nobody else writes; see `train`.

    `kept` says what a run that goes on keeps in place of today's defaults; it is told once nothing refuses the run.
    """
    torch.manual_seed(config.train.seed)
    crops = open_crops(config, run / LABELS)
    segmenter = Segmenter(crops.bands.count, len(config.data.classes), config.segmenter)
    crops, flow, figures, bank = _begun_from(config, crops, segmenter)
    photographs = open_photographs(config, crops.bands.count)
    if leader:
        read = _read(run, config, crops, photographs)
        check_inputs(run, read)
        make_run(run, config)
        note_inputs(run, read)
        crops.write_split(run)
        if kept:
            log.info("%s goes on as it was begun, with %s", run, kept)
    chosen = plans(config)
    done = steps_at(run / "checkpoints", [plan.stage for plan in chosen])
    if any(done.values()) and not (run / "metrics.csv").exists():
        log.warning("%s is missing: the figures of earlier steps are lost", run / "metrics.csv")
    if leader:
        announce_long(crops, done, segmenter=segmenter, flow=flow, photographs=photographs)
    with _told_to_resume(run):
        for plan in chosen:
            begun = done[plan.stage]
            if begun is None:
                figures |= last_metrics(run / "metrics.csv", plan.stage)
                continue
            if plan.stage != "segmenter" and flow is not None and not flow.initialized:
                flow.initialize(first_crops(crops))
            stage = Stage(plan, config, segmenter=segmenter, flow=flow, photographs=photographs, before=figures)
            later = [other.stage for other in chosen[chosen.index(plan) + 1 :] if done[other.stage]]
            networks = {"segmenter": segmenter, "flow": flow}
            others = partial(unfit, run / "checkpoints", later, networks)
            figures |= _run_stage(stage, run, crops, begun=begun, others=others)
        if leader:
            finish_bundle(segmenter, flow, crops, figures, kept=bank).save(run / "model.safetensors")


@contextmanager
def _told_to_resume(run: Path) -> Iterator[None]:
    """Say how a training goes on if a person or the system ends it here."""
    try:
        yield
    except KeyboardInterrupt:
        log.warning("the run is kept in %s: add --resume to continue it", run)
        raise


def _begun_from(config: Config, crops: Crops, segmenter: Segmenter) -> Begun:
    """Return crops, flow (None: no negatives come from one), figures of stages and kept bank of a training that begins.

    They and the segmenter's weights are those of the model, or of the run, that the config goes on with, if any.
    """
    if config.train.tune_from:
        return take_model(Path(config.train.tune_from), config, crops, segmenter=segmenter)
    drawn = "flow" in config.negatives.sources
    flow = Flow(crops.bands.count, config.flow, crops.bands.step) if drawn else None
    if not config.train.stages_from:
        return Begun(crops, flow, {})
    return Begun(crops, flow, take_stages(Path(config.train.stages_from), config, segmenter=segmenter, flow=flow))


def _read(run: Path, config: Config, crops: Crops, photographs: PhotographFolder | None) -> Inputs:
    """Return what is noted of the files of a training: images, labels, photographs, the model that it goes on with."""
    model = [] if config.train.tune_from is None else [bundle_path_of(config.train.tune_from)]
    return inputs_of(run, [*crops.ground.files(), *([] if photographs is None else photographs.files), *model])


def _is_finished(bundle_path: Path) -> bool:
    """Return whether a run has its bundle; a damaged one is made again from the checkpoints."""
    if not bundle_path.exists():
        return False
    try:
        ModelBundle.load(bundle_path)
    except BundleError as error:
        log.warning("%s; it is made again from the checkpoints", error)
        return False
    return True


def _run_stage(
    stage: Stage, run: Path, crops: Crops, *, begun: int, others: Callable[[], list[str]]
) -> dict[str, float]:
    """Run one stage to its end, from step `begun` of its checkpoint (0: afresh); return its last validation figures.

    `others` names the later stages whose checkpoints do not fit either, where its own does not.
    """
    plan, config = stage.plan, stage.config
    checkpoint = run / "checkpoints" / f"{plan.stage}.ckpt"
    if plan.asked not in (None, plan.steps):
        said = (plan.stage, plan.asked, plan.steps, plan.epochs, plan.epoch_steps)
        log.info("%s: asked for %d steps, does %d: %d parts of %d, each with its validation", *said)
    if _is_leader():
        trim_metrics(run / "metrics.csv", plan.stage, begun)
    from lightning.pytorch.loggers import TensorBoardLogger

    # The head starts at zero and learns for a few steps: an average over more would leave it there.
    decay = 0.0 if plan.stage == "head" else config.train.average_decay
    average = [pl.callbacks.EMAWeightAveraging(decay=decay)] if decay else []
    with Progress(plan.stage, plan.steps, start=begun) as progress, quiet_lightning():
        callback = CheckpointCallback(run, plan, progress)
        trainer = pl.Trainer(
            accelerator=config.train.accelerator,
            devices=config.train.devices,
            precision=config.train.precision,
            max_epochs=plan.epochs,
            logger=TensorBoardLogger(run, name="tensorboard", version=plan.stage),
            callbacks=[callback, *average],
            default_root_dir=run,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            log_every_n_steps=10,
            use_distributed_sampler=False,
        )
        feed = feed_of(stage, crops, trainer, epoch=begun // plan.epoch_steps)
        try:
            trainer.fit(
                stage,
                train_dataloaders=feed,
                val_dataloaders=DataLoader(crops.validation(), batch_size=config.train.batch),
                ckpt_path=checkpoint if begun else None,
                weights_only=True,
            )
            for ema in average:  # Lightning does not call it in a stage that was finished before
                ema.on_train_end(trainer, stage)
        except TrainingError as error:
            done = callback.saved or begun
            last = f"{checkpoint} (step {done})" if done else "none in this stage yet"
            raise TrainingError(f"{error}; last good checkpoint: {last}") from None
        except GeoodError as error:
            raise _of_worker(error) from None
        except OSError as error:
            raise OutputError(
                f"{run}: cannot be written to ({error.strerror or error}); free space and --resume"
            ) from None
        except (RuntimeError, KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
            if callback.started or not begun:
                raise
            also = others()
            files = "".join(f" and {other}.ckpt" for other in also)
            files += f", which {'does' if len(also) == 1 else 'do'} not fit either" if also else ""
            again = f"stages {' and '.join([plan.stage, *also])}" if also else f"stage {plan.stage}"
            raise TrainingError(
                f"{checkpoint}: does not fit this run ({shown(error)}), it may be of another geood; remove it{files}, "
                f"and --resume begins the {again} again"
            ) from None
        except SystemExit:  # Lightning's reaction to Ctrl-C
            raise KeyboardInterrupt from None
        finally:
            feed.close()
    return last_metrics(run / "metrics.csv", plan.stage)


def _of_worker(error: GeoodError) -> GeoodError:
    """Return the error without the traceback that a data-loading worker adds to its message."""
    text = str(error)
    if text.startswith("Caught "):
        return type(error)(text.strip().splitlines()[-1].partition(": ")[2])
    return error


def _is_leader() -> bool:
    """Return True in the process that writes, the only one unless several devices train."""
    return os.environ.get("LOCAL_RANK", "0") == "0"
