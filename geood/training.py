"""From a config to a bundle: the segmenter alone, the flow alone, then both together.

`train` is the order of things; one step of each stage is in `stages`. Lightning's Trainer runs a stage (precision,
devices) and stays hidden. A stage is cut into equal epochs, each ended by a validation and a checkpoint. The crop at
position i of a stage is a pure function of (seed, stage, i), and so is every other random number of its step: a run
continued after a kill redoes at most one epoch and ends with the same weights as an unbroken one (bit for bit on a
CPU). Pre-training flow and segmenter apart keeps the segmenter from over-fitting to the first, poor samples (arXiv
2112.12833).
"""

from __future__ import annotations

import dataclasses
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, default_collate

from geood.bundle import ModelBundle
from geood.config import FALSE_POSITIVE_RATES, IGNORE, Config
from geood.datasets.scenes import Scenes, open_scenes
from geood.errors import ConfigError, GeoodError, OutputError, TrainingError
from geood.flow import Flow
from geood.metrics import INLIER, PixelCurve
from geood.progress import Progress
from geood.runs import append_metrics, check_run, last_metrics, make_run, steps_done, trim_metrics
from geood.segmenter import Segmenter
from geood.stages import STAGES, Plan, Stage, cut_crops, pl, plans

log = logging.getLogger("geood")
FIRST_CROPS = 32  # training crops that the flow takes its starting point from


class EpochSlice(Sampler[int]):
    """The positions of one epoch out of all positions of a stage; Lightning sets the epoch."""

    def __init__(self, length: int) -> None:
        self.length, self.epoch = length, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.epoch * self.length, (self.epoch + 1) * self.length))

    def __len__(self) -> int:
        return self.length


class Keeper(pl.Callback):
    """After each epoch: one row for every figure in metrics.csv and one checkpoint, both whole or not at all."""

    def __init__(self, run: Path, plan: Plan, progress: Progress) -> None:
        self.run, self.plan, self.progress = run, plan, progress
        self.checkpoint = run / "checkpoints" / f"{plan.stage}.ckpt"

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        assert isinstance(module, Stage)
        if trainer.global_step % 10 == 0 or self.progress.done + 1 >= self.progress.total:
            shown = {k: float(v) for k, v in module.figures.items()}
            shown |= {f"val {k}": module.validated[k] for k in ("miou", "bpd") if k in module.validated}
            self.progress.advance(trainer.global_step - self.progress.done, **shown)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, Stage)
        if trainer.is_global_zero:  # before the checkpoint: rows beyond it are dropped when a run is continued
            trained = {f"train/{k}": float(v) for k, v in module.figures.items()}
            validated = {f"val/{k}": v for k, v in module.validated.items()}
            append_metrics(self.run / "metrics.csv", self.plan.stage, trainer.global_step, trained | validated)
            if trainer.logger is not None:
                trainer.logger.log_metrics(validated, step=trainer.global_step)
        partial = self.checkpoint.with_suffix(".partial")
        try:
            trainer.save_checkpoint(partial)
            if trainer.is_global_zero:
                os.replace(partial, self.checkpoint)
        finally:
            if trainer.is_global_zero:
                partial.unlink(missing_ok=True)


def train(config: Config, out: str | Path, *, resume: bool = False) -> Path:
    """Train a bundle; returns its path, `out/model.safetensors`.

    The run folder also holds config.yaml (resolved), split.gpkg (blocks and crops), metrics.csv, samples/ (pictures of
    synthetic negatives), tensorboard/ and checkpoints/.

    Args:
        config: what to train on and how.
        out: the run folder; made, with its parents, when all is checked.
        resume: go on with the run in `out`, which must have the same config.

    Raises:
        DataError: the scenes or labels cannot be used.
        OutputError: the folder holds a run already (without `resume`), or cannot be written.
        TrainingError: a loss became infinite or NaN, or the run cannot be continued.
    """
    run = Path(out)
    leader = _is_leader()
    if not leader:
        log.setLevel(logging.WARNING)  # one process speaks for all
    if leader:
        check_run(run, config, resume=resume)
    _check_devices(config)
    bundle_path = run / "model.safetensors"
    if bundle_path.exists() and resume:
        log.info("%s is finished already", run)
        return bundle_path
    torch.manual_seed(config.train.seed)
    scenes = open_scenes(config)
    segmenter = Segmenter(scenes.bands.count, len(config.data.classes), config.segmenter)
    flow = Flow(scenes.bands.count, config.flow, scenes.bands.step)
    if leader:
        make_run(run, config)
        scenes.write_split(run / "split.gpkg")
    figures: dict[str, float] = {}
    for plan in plans(config):
        if plan.stage != "segmenter" and not flow.initialized:
            flow.initialize(_first_crops(scenes, config))
        stage = Stage(plan, config, segmenter=segmenter, flow=flow, step=scenes.bands.step)
        figures |= _run_stage(stage, run, scenes)
    bundle = ModelBundle(
        segmenter=segmenter.cpu().eval(),
        flow=flow.cpu().eval(),
        bands=scenes.bands,
        config=config,
        class_ids=scenes.class_ids,
        resolution=scenes.resolution_m,
        thresholds={},
        metrics=figures,
    )
    if leader:
        _calibrated(bundle, scenes).save(bundle_path)
    return bundle_path


def _run_stage(stage: Stage, run: Path, scenes: Scenes) -> dict[str, float]:
    """Run one stage to its end (from its last checkpoint, if there is one); return its last validation figures."""
    plan, config = stage.plan, stage.config
    checkpoint = run / "checkpoints" / f"{plan.stage}.ckpt"
    begun = steps_done(checkpoint)
    if _is_leader():
        trim_metrics(run / "metrics.csv", plan.stage, begun)
    from lightning.pytorch.loggers import TensorBoardLogger

    with Progress(plan.stage, plan.steps, start=begun) as progress, _quiet_lightning():
        trainer = pl.Trainer(
            accelerator=config.train.accelerator,
            devices=config.train.devices,
            precision=config.train.precision,
            max_epochs=plan.epochs,
            logger=TensorBoardLogger(run, name="tensorboard", version=plan.stage),
            callbacks=[Keeper(run, plan, progress)],
            default_root_dir=run,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            log_every_n_steps=10,
            use_distributed_sampler=False,
        )
        try:
            trainer.fit(
                stage,
                train_dataloaders=_training_loader(stage, scenes, trainer),
                val_dataloaders=DataLoader(scenes.validation(), batch_size=config.train.batch),
                ckpt_path=checkpoint if checkpoint.exists() else None,
                weights_only=True,
            )
        except TrainingError as error:
            done = steps_done(checkpoint)
            last = f"{checkpoint} (step {done})" if done else "none in this stage yet"
            raise TrainingError(f"{error}; last good checkpoint: {last}") from None
        except GeoodError as error:
            raise _of_worker(error) from None
        except OSError as error:
            raise OutputError(
                f"{run}: cannot be written to ({error.strerror or error}); free space and --resume"
            ) from None
        except SystemExit:  # how Lightning ends after Ctrl-C
            raise KeyboardInterrupt from None
    return last_metrics(run / "metrics.csv", plan.stage)


def _check_devices(config: Config) -> None:
    """See that the devices asked for are there."""
    train, found = config.train, torch.cuda.device_count()
    if train.accelerator == "gpu" and not found:
        raise ConfigError("train.accelerator is gpu, but torch sees no GPU here; set it to auto or cpu")
    on_gpu = train.accelerator == "gpu" or (train.accelerator == "auto" and found)
    if on_gpu and train.devices > found:
        raise ConfigError(
            f"train.devices is {train.devices}, but there are {found} GPUs here; set it to {found} or less"
        )


def _of_worker(error: GeoodError) -> GeoodError:
    """The error itself, without the traceback that a reading process puts around its message."""
    text = str(error)
    if text.startswith("Caught "):
        return type(error)(text.strip().splitlines()[-1].partition(": ")[2])
    return error


def _is_leader() -> bool:
    """Whether this is the process that writes, the only one unless several devices train."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def _first_crops(scenes: Scenes, config: Config) -> Tensor:
    """Crops (N, C, h, w) for the flow's starting point: where the largest patch fits in the first training crops."""
    side = config.negatives.patch_max_px
    samples = scenes.training(config.train.seed, FIRST_CROPS)
    batch = default_collate([samples[i] for i in range(FIRST_CROPS)])
    generator = torch.Generator().manual_seed(config.train.seed)
    crops = cut_crops(batch, side, generator)
    if crops is None:
        raise TrainingError(
            f"no {side} x {side} pixels without a gap in {FIRST_CROPS} training crops, so no patch of that size fits; "
            "lower negatives.patch_max_px, or raise data.min_valid"
        )
    return crops


def _training_loader(stage: Stage, scenes: Scenes, trainer: pl.Trainer) -> DataLoader[Any]:
    """Batches of a whole stage; each epoch takes the next slice of its positions."""
    plan, config = stage.plan, stage.config
    per_epoch = plan.epoch_steps * config.train.batch
    key = (config.train.seed, STAGES.index(plan.stage))
    dataset = scenes.training(
        int(np.random.SeedSequence(key).generate_state(1)[0]),
        per_epoch * plan.epochs,
        rank=trainer.global_rank,
        world=trainer.world_size,
    )
    workers = config.data.workers
    return DataLoader(
        dataset,
        batch_size=config.train.batch,
        sampler=EpochSlice(per_epoch),
        num_workers=workers,
        persistent_workers=workers > 0,
        multiprocessing_context="spawn" if workers else None,
        pin_memory=torch.cuda.is_available() and config.train.accelerator != "cpu",
    )


def _calibrated(bundle: ModelBundle, scenes: Scenes) -> ModelBundle:
    """The bundle with the thresholds that its scores on inlier pixels of the validation blocks give."""
    curve = PixelCurve()
    on_gpu = bundle.config.train.accelerator != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    bundle.to(device)
    for batch in DataLoader(scenes.validation(), batch_size=bundle.config.train.batch):
        score = bundle.score(batch["image"].to(device)).float().cpu().numpy()
        curve.update(score, np.where(batch["mask"].numpy() == IGNORE, IGNORE, INLIER).astype(np.uint8))
    bundle.to("cpu")
    thresholds = {str(rate): float(curve.fpr_threshold(rate)) for rate in FALSE_POSITIVE_RATES}
    return dataclasses.replace(bundle, thresholds=thresholds)


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Keep Lightning's advice about its own settings off the user's screen; errors still show."""
    names = ("lightning.pytorch", "lightning.fabric")
    before = {n: logging.getLogger(n).level for n in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        warnings.filterwarnings("ignore", module="torch.utils.data")
        yield
    for name, level in before.items():
        logging.getLogger(name).setLevel(level)
