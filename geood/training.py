"""From a config to a bundle: the segmenter alone, the flow alone, then both together.

`Stage` is the mathematics of one training step and nothing else; `train` is the order of things. Lightning's Trainer
runs each stage (precision, devices, checkpoints) and stays hidden. A stage is cut into equal epochs, each ended by a
validation and a checkpoint. Every random number of a step comes from a generator seeded by (seed, stage, step), and the
crop at position i of a stage is a pure function of (seed, stage, i): so a run continued after a kill redoes at most one
epoch and ends with the same weights as an unbroken one (bit for bit on a CPU).

The stages exist for a reason given in the paper: pre-training flow and segmenter apart keeps the segmenter from
over-fitting to the first, poor samples. Each stage has its own optimizer state; in the joint stage one Adam holds both
networks as groups with their own learning rates, which is the same as two Adams stepped together.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler, default_collate

from geood.operators import declare_missing_operators

declare_missing_operators()

import lightning.pytorch as pl  # noqa: E402
from lightning.pytorch.loggers import TensorBoardLogger  # noqa: E402

from geood.bundle import ModelBundle  # noqa: E402
from geood.config import FALSE_POSITIVE_RATES, Config  # noqa: E402
from geood.datasets.scenes import Scenes, open_scenes  # noqa: E402
from geood.errors import TrainingError  # noqa: E402
from geood.flow import Flow  # noqa: E402
from geood.losses import class_nll, joint_loss  # noqa: E402
from geood.metrics import Confusion, PixelCurve  # noqa: E402
from geood.negatives import PastedBatch, draw_boxes, draw_size, paste  # noqa: E402
from geood.progress import Progress  # noqa: E402
from geood.runs import append_metrics, check_run, last_metrics, make_run, steps_done, trim_metrics  # noqa: E402
from geood.segmenter import Segmenter  # noqa: E402

log = logging.getLogger("geood")
STAGES = ("segmenter", "flow", "joint")
IGNORE = 255
WARM_UP = 100  # steps over which each stage's learning rate rises
FIRST_CROPS = 32  # training crops that the flow takes its starting point from
SAMPLES = 16  # synthetic negatives drawn in the picture of a validation


@dataclass(frozen=True)
class Plan:
    """One stage cut into equal epochs: `epochs` times `epoch_steps` steps."""

    stage: str
    epochs: int
    epoch_steps: int

    @property
    def steps(self) -> int:
        """All steps of the stage: those of the config, rounded up to whole epochs."""
        return self.epochs * self.epoch_steps


def plans(config: Config) -> list[Plan]:
    """The stages that the config asks for, in order; a stage of 0 steps is left out."""
    made = []
    for stage in STAGES:
        steps: int = getattr(config.train, f"{stage}_steps")
        if steps:
            epochs = max(1, round(steps / config.train.validate_every))
            made.append(Plan(stage, epochs, math.ceil(steps / epochs)))
    return made


class Stage(pl.LightningModule):
    """One training step and one validation of a stage, as the paper's equations say.

    Holds the networks that the stage moves: both in "joint", one in "segmenter" and "flow".
    """

    def __init__(
        self, plan: Plan, config: Config, *, segmenter: Segmenter, flow: Flow, step: tuple[float, ...]
    ) -> None:
        super().__init__()
        self.plan, self.config = plan, config
        self.segmenter = segmenter if plan.stage != "flow" else None
        self.flow = flow if plan.stage != "segmenter" else None
        self.register_buffer("step_size", torch.tensor(step, dtype=torch.float32), persistent=False)
        self.figures: dict[str, float] = {}

    def generator(self, salt: int = 0) -> torch.Generator:
        """The generator of this step: a function of seed, stage and step alone."""
        key = (self.config.train.seed, STAGES.index(self.plan.stage), self.global_step, self.global_rank, salt)
        seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)
        return torch.Generator(device=self.device).manual_seed(seed)

    def training_step(self, batch: dict[str, Any], _: int) -> Tensor:
        figures = getattr(self, f"_{self.plan.stage}_step")(batch)
        loss: Tensor = figures["loss"]
        if not torch.isfinite(loss):
            raise TrainingError(
                f"the loss of stage {self.plan.stage} is {loss.item()} at step {self.global_step}, on crops "
                f"{', '.join(batch['name'])}; lower train.*_lr, or look at these crops"
            )
        self.figures = {k: v.detach() for k, v in figures.items()}
        self.log_dict({f"train/{k}": v for k, v in self.figures.items()}, on_step=True, on_epoch=False)
        return loss

    def _segmenter_step(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        assert self.segmenter is not None
        return {"loss": class_nll(self.segmenter(batch["image"]), batch["mask"])}

    def _flow_step(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        assert self.flow is not None
        generator = self.generator()
        pasted = self._paste(batch, generator, patches=None)
        if not len(pasted.crops):  # nowhere enough data in this batch: a step of nothing
            return {"loss": torch.stack([p.sum() for p in self.flow.parameters()]).sum() * 0.0}
        return {"loss": self.flow.bits_per_dimension(pasted.crops, generator).mean()}

    def _joint_step(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        assert self.segmenter is not None and self.flow is not None
        generator = self.generator()
        pasted = self._paste(batch, generator, patches=self.flow)
        log_prob = self.flow.log_prob(self.flow.dequantize(pasted.crops, generator)) if len(pasted.crops) else None
        losses = joint_loss(
            self.segmenter(pasted.image), pasted, log_prob, config=self.config.loss, step=self.step_size
        )
        return {"loss": losses.total, "class": losses.classification, "jsd": losses.jsd, "bpd": losses.flow}

    def _paste(self, batch: dict[str, Any], generator: torch.Generator, *, patches: Flow | None) -> PastedBatch:
        """Paste samples of the flow (None: leave the images, only take the crops) in one box of each image."""
        settings = self.config.negatives
        size = draw_size(settings, multiple=max(8, 2**self.config.flow.levels), generator=generator)
        boxes = draw_boxes(batch["valid"], size, generator)
        image = batch["image"]
        if patches is None:
            samples = image.new_zeros(len(image), image.shape[1], *size)
        else:
            samples = patches.sample(len(image), *size, temperature=settings.temperature, generator=generator)
        return paste(image, batch["mask"], batch["valid"], samples.to(image.dtype), boxes)

    def on_validation_start(self) -> None:
        classes = len(self.config.data.classes)
        self._confusion, self._curve = Confusion(classes), PixelCurve()
        self._nll: list[float] = []
        self._bpd: list[float] = []

    def validation_step(self, batch: dict[str, Any], index: int) -> None:
        if self.segmenter is not None:
            logits = self.segmenter(batch["image"]).float()
            self._nll.append(float(class_nll(logits, batch["mask"])))
            self._confusion.update(logits.argmax(1).cpu().numpy(), batch["mask"].cpu().numpy())
        if self.flow is not None:
            generator = torch.Generator(device=self.device).manual_seed(index)
            crops = _cut_crops(batch, self.config.negatives.patch_max_px, generator)
            if crops is not None:
                self._bpd += self.flow.bits_per_dimension(crops, generator).tolist()

    def on_validation_end(self) -> None:
        found: dict[str, float] = {}
        if self.segmenter is not None:
            found |= {"class": float(np.mean(self._nll)), "miou": float(self._confusion.miou)}
        if self.flow is not None:
            found["bpd"] = float(np.mean(self._bpd)) if self._bpd else float("nan")
            found |= self._draw_samples()
        self.validated = {f"val/{k}": v for k, v in found.items()}

    @torch.no_grad()
    def _draw_samples(self) -> dict[str, float]:
        """Write a picture of flow samples; return the share of their values outside [0, 1].

        A flow that was driven off the images shows here first, as saturated checkerboard, while its likelihood still
        looks fine.
        """
        assert self.flow is not None
        side = self.config.negatives.patch_max_px
        generator = torch.Generator(device=self.device).manual_seed(self.config.train.seed)
        samples = self.flow.sample(
            SAMPLES, side, side, temperature=self.config.negatives.temperature, generator=generator
        ).float()
        outside = float(((samples < 0) | (samples > 1)).float().mean())
        if self.trainer.is_global_zero and self.trainer.default_root_dir:
            path = Path(self.trainer.default_root_dir) / "samples" / f"{self.plan.stage}_{self.global_step:06d}.png"
            path.parent.mkdir(exist_ok=True)
            picture = sample_picture(samples)
            picture.save(path)
            board = self.logger.experiment if self.logger else None
            if board is not None:
                board.add_image("samples", np.asarray(picture), self.global_step, dataformats="HWC")
        return {"outside": outside}

    def configure_optimizers(self) -> Any:
        train = self.config.train
        joint = self.plan.stage == "joint"
        groups: list[dict[str, Any]] = []
        if self.segmenter is not None:
            lr = train.joint_segmenter_lr if joint else train.segmenter_lr
            groups.append({"params": list(self.segmenter.parameters()), "lr": lr, "weight_decay": train.weight_decay})
        if self.flow is not None:
            lr = train.joint_flow_lr if joint else train.flow_lr
            groups.append({"params": list(self.flow.parameters()), "lr": lr, "weight_decay": 0.0})
        optimizer = torch.optim.AdamW(groups)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _rate(self, step: int) -> float:
        """Learning rate at a step as a share of the config's: a linear rise, then a cosine to a hundredth."""
        rise = min(WARM_UP, max(1, self.plan.steps // 10))
        if step < rise:
            return (step + 1) / rise
        done = (step - rise) / max(1, self.plan.steps - rise)
        return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    def configure_gradient_clipping(self, *_: Any, **__: Any) -> None:
        for network, norm in ((self.segmenter, 10.0), (self.flow, 10.0)):
            if network is not None:
                nn.utils.clip_grad_norm_(network.parameters(), norm)


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
            validated = {k.removeprefix("val/"): v for k, v in getattr(module, "validated", {}).items()}
            shown = {k: float(v) for k, v in module.figures.items()} | {
                f"val {k}": v for k, v in validated.items() if k in ("miou", "bpd")
            }
            self.progress.advance(trainer.global_step - self.progress.done, **shown)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, Stage)
        partial = self.checkpoint.with_suffix(".partial")
        trainer.save_checkpoint(partial)
        if trainer.is_global_zero:
            os.replace(partial, self.checkpoint)
            rows = {f"train/{k}": float(v) for k, v in module.figures.items()} | module.validated
            append_metrics(self.run / "metrics.csv", self.plan.stage, trainer.global_step, rows)
            if trainer.logger is not None:
                trainer.logger.log_metrics(module.validated, step=trainer.global_step)


def train(config: Config, out: str | Path, *, resume: bool = False) -> Path:
    """Train a bundle; returns its path, `out/model.safetensors`.

    The run folder also holds config.yaml (resolved), split.gpkg (blocks and crops), metrics.csv, samples/ (pictures of
    synthetic negatives), tensorboard/ and checkpoints/.

    Args:
        config: what to train on and how.
        out: the run folder; made if its parent exists.
        resume: go on with the run in `out`, which must have the same config.

    Raises:
        DataError: the scenes or labels cannot be used.
        OutputError: the folder holds a run already (without `resume`), or cannot be written.
        TrainingError: a loss became infinite or NaN, or the run cannot be continued.
    """
    run = Path(out)
    leader = os.environ.get("LOCAL_RANK", "0") == "0"
    if leader:
        check_run(run, config, resume=resume)
    bundle_path = run / "model.safetensors"
    if bundle_path.exists() and resume:
        log.info("%s is finished already", run)
        return bundle_path
    torch.manual_seed(config.train.seed)
    scenes = open_scenes(config)
    if leader:
        make_run(run, config)
        scenes.write_split(run / "split.gpkg")
    segmenter = Segmenter(scenes.bands.count, len(config.data.classes), config.segmenter)
    flow = Flow(scenes.bands.count, config.flow, scenes.bands.step)
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
    trim_metrics(run / "metrics.csv", plan.stage, begun)
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
        except SystemExit:  # how Lightning ends after Ctrl-C
            raise KeyboardInterrupt from None
    return last_metrics(run / "metrics.csv", plan.stage)


def _first_crops(scenes: Scenes, config: Config) -> Tensor:
    """Crops (N, C, h, w) for the flow's starting point: where the largest patch fits in the first training crops."""
    side = config.negatives.patch_max_px
    samples = scenes.training(config.train.seed, FIRST_CROPS)
    batch = default_collate([samples[i] for i in range(FIRST_CROPS)])
    generator = torch.Generator().manual_seed(config.train.seed)
    crops = _cut_crops(batch, side, generator)
    if crops is None:
        raise TrainingError(
            f"no {side} x {side} pixels without a gap in {FIRST_CROPS} training crops, so no patch of that size fits; "
            "lower negatives.patch_max_px, or raise data.min_valid"
        )
    return crops


def _cut_crops(batch: dict[str, Any], side: int, generator: torch.Generator) -> Tensor | None:
    """Squares (N, C, side, side) from places with data, one from each image that has one; None if none has."""
    boxes = draw_boxes(batch["valid"], (side, side), generator)
    places = [(image, *box) for image, box in zip(batch["image"], boxes, strict=True) if box is not None]
    cut = [image[:, row : row + side, col : col + side] for image, row, col in places]
    return torch.stack(cut) if cut else None


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
        curve.update(score, np.where(batch["mask"].numpy() == IGNORE, 255, 0).astype(np.uint8))
    bundle.to("cpu")
    thresholds = {str(rate): float(curve.fpr_threshold(rate)) for rate in FALSE_POSITIVE_RATES}
    return dataclasses.replace(bundle, thresholds=thresholds)


def sample_picture(samples: Tensor) -> Image.Image:
    """A picture of images (N, C, h, w) in [0, 1], four in a row; other than three bands are shown as grey or 1-2-3."""
    from torchvision.utils import make_grid

    shown = samples[:, :3] if samples.shape[1] >= 3 else samples[:, :1].expand(-1, 3, -1, -1)
    grid = make_grid(shown.clamp(0, 1).cpu(), nrow=4, padding=2, pad_value=1.0)
    return Image.fromarray((grid * 255).round().byte().permute(1, 2, 0).numpy())


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
