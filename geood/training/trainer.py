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
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, default_collate

from geood.config.sections import FALSE_POSITIVE_RATES, IGNORE, Config
from geood.datasets import open_crops
from geood.datasets.crops import Crops
from geood.datasets.outlier_photos import PhotographFolder
from geood.errors import ConfigError, GeoodError, OutputError, TrainingError
from geood.metrics.pixels import INLIER, PixelCurve
from geood.models.bundle import ModelBundle, check_score
from geood.models.flow import Flow
from geood.models.inlier_statistics import CLASS_SCORES, FEATURE_SCORES, InlierFit, Inliers
from geood.models.scores import LOGIT_SCORES, OUTLIER_SCORES
from geood.models.segmenter import Segmenter
from geood.progress import Progress
from geood.training.negative_sources import Photographs
from geood.training.run_folder import (
    append_metrics,
    check_run,
    last_metrics,
    make_run,
    steps_done,
    take_stages,
    trim_metrics,
)
from geood.training.stage import STAGES, Plan, Stage, cut_crops, pl, plans

log = logging.getLogger("geood")
FIRST_CROPS = 32  # training crops that the flow takes its starting point from
FIT_CROPS = 256  # training crops that statistics of inliers are made from


class EpochSlice(Sampler[int]):
    """The positions of one epoch out of all positions of a stage; Lightning sets the epoch.

    But not in time for the first: reading processes have taken positions by then, so that is given with `epoch`.
    """

    def __init__(self, length: int, epoch: int) -> None:
        self.length, self.epoch = length, epoch

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.epoch * self.length, (self.epoch + 1) * self.length))

    def __len__(self) -> int:
        return self.length


class Keeper(pl.Callback):
    """After each epoch: one row for every figure in metrics.csv and one checkpoint, both whole or not at all.

    Also keeps the time: crops a second, and the share of it that went by waiting for data.
    """

    def __init__(self, run: Path, plan: Plan, progress: Progress) -> None:
        self.run, self.plan, self.progress = run, plan, progress
        self.checkpoint = run / "checkpoints" / f"{plan.stage}.ckpt"
        self.crops, self.busy, self.waited = 0, 0.0, 0.0  # seconds
        self._mark = 0.0

    def on_train_epoch_start(self, *_: Any) -> None:
        self._mark = time.perf_counter()

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, *_: Any) -> None:
        self.waited += self._passed()

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, _: Any, batch: Any, *__: Any) -> None:
        assert isinstance(module, Stage)
        self.busy += self._passed()
        self.crops += len(batch["image"]) * trainer.world_size
        if trainer.global_step % 10 == 0 or self.progress.done + 1 >= self.progress.total:
            shown = {k: float(v) for k, v in module.figures.items()}
            shown |= {f"val {k}": module.validated[k] for k in ("miou", "bpd") if k in module.validated}
            shown |= {"crops/s": self.crops / (self.busy + self.waited)}
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

    def on_train_end(self, *_: Any) -> None:
        if self.crops:
            total = self.busy + self.waited
            log.info(
                "%s: %.1f crops/s, %.0f %% of the time waiting for data",
                self.plan.stage,
                self.crops / total,
                100 * self.waited / total,
            )

    def _passed(self) -> float:
        """Seconds since the last call, on a GPU of what was handed to it."""
        before, self._mark = self._mark, time.perf_counter()
        return self._mark - before


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
    _check_sense(config)
    bundle_path = run / "model.safetensors"
    if bundle_path.exists() and resume:
        log.info("%s is finished already", run)
        return bundle_path
    torch.manual_seed(config.train.seed)
    crops = open_crops(config)
    segmenter = Segmenter(crops.bands.count, len(config.data.classes), config.segmenter)
    flow, photographs = _negatives(config, crops)
    figures: dict[str, float] = {}
    if config.train.stages_from:
        figures |= take_stages(Path(config.train.stages_from), config, segmenter=segmenter, flow=flow)
    if leader:
        make_run(run, config)
        crops.write_split(run)
    for plan in plans(config):
        if plan.stage != "segmenter" and flow is not None and not flow.initialized:
            flow.initialize(_first_crops(crops, config))
        stage = Stage(plan, config, segmenter=segmenter, flow=flow, photographs=photographs, before=figures)
        figures |= _run_stage(stage, run, crops)
    if leader:
        _finished(segmenter, flow, crops, figures).save(bundle_path)
    return bundle_path


def _check_sense(config: Config) -> None:
    """See that the config can give the score that it asks for."""
    kinds = LOGIT_SCORES + CLASS_SCORES + OUTLIER_SCORES[config.segmenter.outlier]
    check_score(
        config.score.kind, kinds + (FEATURE_SCORES if config.score.feature_bank else ()), config.segmenter.outlier
    )
    without = config.negatives.source == "none" or not config.train.joint_steps or not config.loss.outlier_weight
    if config.segmenter.outlier != "none" and without:
        raise ConfigError(
            f"segmenter.outlier {config.segmenter.outlier} learns from negatives in the joint stage, and there are "
            "none, or they weigh nothing; give negatives.source, train.joint_steps and loss.outlier_weight, or set "
            "segmenter.outlier to none"
        )


def _negatives(config: Config, crops: Crops) -> tuple[Flow | None, Photographs | None]:
    """What makes the negatives, as far as the config's source needs something made."""
    settings, bands = config.negatives, crops.bands
    if settings.source == "flow":
        return Flow(bands.count, config.flow, bands.step), None
    if settings.folder is not None:
        return None, PhotographFolder(Path(config.data.root) / settings.folder, bands=bands.count)
    return None, None


def _run_stage(stage: Stage, run: Path, crops: Crops) -> dict[str, float]:
    """Run one stage to its end (from its last checkpoint, if there is one); return its last validation figures."""
    plan, config = stage.plan, stage.config
    checkpoint = run / "checkpoints" / f"{plan.stage}.ckpt"
    begun = steps_done(checkpoint)
    if _is_leader():
        trim_metrics(run / "metrics.csv", plan.stage, begun)
    from lightning.pytorch.loggers import TensorBoardLogger

    average = [pl.callbacks.EMAWeightAveraging(decay=config.train.average_decay)] if config.train.average_decay else []
    with Progress(plan.stage, plan.steps, start=begun) as progress, _quiet_lightning():
        trainer = pl.Trainer(
            accelerator=config.train.accelerator,
            devices=config.train.devices,
            precision=config.train.precision,
            max_epochs=plan.epochs,
            logger=TensorBoardLogger(run, name="tensorboard", version=plan.stage),
            callbacks=[Keeper(run, plan, progress), *average],
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
                train_dataloaders=_training_loader(stage, crops, trainer, epoch=begun // plan.epoch_steps),
                val_dataloaders=DataLoader(crops.validation(), batch_size=config.train.batch),
                ckpt_path=checkpoint if checkpoint.exists() else None,
                weights_only=True,
            )
            for callback in average:  # does nothing of itself in a stage that was finished before
                callback.on_train_end(trainer, stage)
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


def _first_crops(crops: Crops, config: Config) -> Tensor:
    """Crops (N, C, h, w) for the flow's starting point: where the largest patch fits in the first training crops."""
    side = config.negatives.patch_max_px
    samples = crops.training(config.train.seed, FIRST_CROPS)
    batch = default_collate([samples[i] for i in range(FIRST_CROPS)])
    generator = torch.Generator().manual_seed(config.train.seed)
    cut = cut_crops(batch, (side, side), generator)
    if cut is None:
        raise TrainingError(
            f"no {side} x {side} pixels without a gap in {FIRST_CROPS} training crops, so no patch of that size fits; "
            "lower negatives.patch_max_px, or raise data.min_valid"
        )
    return cut


def _training_loader(stage: Stage, crops: Crops, trainer: pl.Trainer, *, epoch: int) -> DataLoader[Any]:
    """Batches of a whole stage, from `epoch` on; each epoch takes the next slice of its positions."""
    plan, config = stage.plan, stage.config
    per_epoch = plan.epoch_steps * plan.batch
    key = (config.train.seed, STAGES.index(plan.stage))
    dataset = crops.training(
        int(np.random.SeedSequence(key).generate_state(1)[0]),
        per_epoch * plan.epochs,
        rank=trainer.global_rank,
        world=trainer.world_size,
    )
    workers = config.data.workers
    return DataLoader(
        dataset,
        batch_size=plan.batch,
        sampler=EpochSlice(per_epoch, epoch),
        num_workers=workers,
        persistent_workers=workers > 0,
        multiprocessing_context="spawn" if workers else None,
        pin_memory=torch.cuda.is_available() and config.train.accelerator != "cpu",
    )


def _finished(segmenter: Segmenter, flow: Flow | None, crops: Crops, figures: dict[str, float]) -> ModelBundle:
    """The bundle, with what its scores need to know of inliers and the thresholds they have on the validation side."""
    config = crops.config
    on_gpu = config.train.accelerator != "cpu" and torch.cuda.is_available()
    bundle = ModelBundle(
        segmenter=segmenter.eval(),
        flow=None if flow is None else flow.eval(),
        inliers=None,
        bands=crops.bands,
        config=config,
        class_ids=crops.class_ids,
        resolution=crops.resolution_m,
        calibration={},
        calibrated=config.score,
        metrics=figures,
    ).to("cuda" if on_gpu else "cpu")
    bundle = dataclasses.replace(bundle, inliers=_fitted(bundle, crops))
    return _calibrated(bundle, crops).to("cpu")


def _fitted(bundle: ModelBundle, crops: Crops) -> Inliers:
    """Statistics of the answers to training crops."""
    config, bank = crops.config, crops.config.score.feature_bank
    each = -(-bank * config.train.batch // FIT_CROPS)
    fit = InlierFit(len(crops.class_ids), samples=bank, each=each, seed=config.train.seed)
    samples = crops.training(config.train.seed, FIT_CROPS)
    for batch in DataLoader(samples, batch_size=config.train.batch):
        answer = bundle.answer(batch["image"].to(bundle.device))
        fit.update(answer.logits, answer.features, batch["mask"].to(bundle.device))
    return fit.finish().to(bundle.device)


def _calibrated(bundle: ModelBundle, crops: Crops) -> ModelBundle:
    """The bundle with the thresholds of all its scores on inlier pixels of the validation side."""
    curves = {kind: PixelCurve() for kind in bundle.scores}
    for batch in DataLoader(crops.validation(), batch_size=bundle.config.train.batch):
        image, valid = batch["image"].to(bundle.device), batch["valid"].to(bundle.device)
        truth = np.where(batch["mask"].numpy() == IGNORE, IGNORE, INLIER).astype(np.uint8)
        answer = bundle.answer(image)
        for kind, curve in curves.items():
            curve.update(bundle.score_of(answer, image, valid, kind=kind).float().cpu().numpy(), truth)
    calibration = {
        kind: {str(rate): float(curve.fpr_threshold(rate)) for rate in FALSE_POSITIVE_RATES}
        for kind, curve in curves.items()
    }
    return dataclasses.replace(bundle, calibration=calibration)


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
