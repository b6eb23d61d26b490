"""Training and validation step of each stage: the segmenter alone, the flow alone, both with pasted negatives.

`Stage` is a LightningModule; the order of stages, files and checkpoints are in `trainer`, learning rates in
`optimizers`. Every random number of a step comes from a generator seeded by (seed, stage, step).

The two terms on pixels share one forward pass. Where only the negatives' term is to train the flow, its gradient at the
pasted pixels is computed by itself (one more backward pass as far as the image) and passed on to the flow alone.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from geood._torch_compat import declare_missing_operators

declare_missing_operators()

import lightning.pytorch as pl  # noqa: E402

from geood.config import Config  # noqa: E402
from geood.constants import IGNORE  # noqa: E402
from geood.datasets import seed_of  # noqa: E402
from geood.errors import TrainingError  # noqa: E402
from geood.metrics import Confusion  # noqa: E402
from geood.models import Flow, Segmenter, anomaly_score  # noqa: E402
from geood.training.losses import Losses, class_nll, joint_loss  # noqa: E402
from geood.training.negative_sources import Photographs, draw_patches  # noqa: E402
from geood.training.optimizers import make_optimizer, schedules  # noqa: E402
from geood.training.pasting import PastedBatch, draw_boxes, draw_size, draw_strength, paste, unpasted  # noqa: E402
from geood.training.sample_monitor import (  # noqa: E402
    REAL,
    far_off,
    outlined,
    sample_figures,
    sample_picture,
    stacked,
)

__all__ = ["STAGES", "Plan", "Stage", "cut_crops", "pl", "plans"]

log = logging.getLogger("geood")
STAGES = ("segmenter", "flow", "joint")
PULL = 2.0**16  # scale of the gradient passed to the flow, so that it does not underflow in half precision
FORGOTTEN, DROWNED = 0.3, 0.03  # limits beyond which `troubles` warns
SAMPLES = 32  # samples of the flow, and real crops, that a validation measures


@dataclass(frozen=True)
class Plan:
    """Stage cut into equal epochs: `epochs` times `epoch_steps` steps of `batch` crops."""

    stage: str
    epochs: int
    epoch_steps: int
    batch: int = 8

    @property
    def steps(self) -> int:
        """Number of steps of the stage: that of the config, rounded up to whole epochs."""
        return self.epochs * self.epoch_steps


def plans(config: Config) -> list[Plan]:
    """Return the stages to run, in order; without those of 0 steps, those reused from a run, and a flow not needed."""
    chosen = []
    wanted = {"joint"} if config.train.stages_from else set(STAGES)
    if config.negatives.source != "flow":
        wanted.discard("flow")
    for stage in STAGES:
        steps: int = getattr(config.train, f"{stage}_steps")
        if steps and stage in wanted:
            epochs = max(1, round(steps / config.train.validate_every))
            batch = config.train.joint_batch if stage == "joint" else None
            chosen.append(Plan(stage, epochs, math.ceil(steps / epochs), batch or config.train.batch))
    return chosen


@dataclass
class _Validation:
    """Running figures of one validation: `nll` per batch, `bpd` per crop.

    `samples` of the flow, batches of `real` crops of their size, and images with `pasted` negatives, outlined.
    """

    confusion: Confusion
    samples: Tensor | None = None
    real: list[Tensor] = field(default_factory=list)
    pasted: Tensor | None = None
    nll: list[float] = field(default_factory=list)
    bpd: list[float] = field(default_factory=list)


class Stage(pl.LightningModule):
    """Lightning module with the training and validation steps of a stage, after the paper's equations.

    Holds the networks that the stage trains, and in "joint" the flow even if it is frozen. `photographs` cuts negatives
    from photographs, where the config asks for those; `before` are the last validation figures of earlier stages, named
    `stage/figure`.
    """

    def __init__(
        self,
        plan: Plan,
        config: Config,
        *,
        segmenter: Segmenter,
        flow: Flow | None,
        photographs: Photographs | None = None,
        before: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.plan, self.config, self.photographs = plan, config, photographs
        self.before = dict(before or {})
        self.segmenter = segmenter if plan.stage != "flow" else None
        self.flow = flow if plan.stage != "segmenter" else None
        if self.flow is not None:  # with several devices, every trainable parameter must get a gradient
            self.flow.requires_grad_(self.flow_learns)
        self.figures: dict[str, Tensor] = {}  # of the last step
        self.validated: dict[str, float] = {}  # of the last validation
        self._validation = _Validation(Confusion(len(config.data.classes)))
        self._warned: set[str] = set()

    @property
    def flow_learns(self) -> bool:
        """True if this stage trains the flow."""
        return self.flow is not None and (self.plan.stage == "flow" or self.config.train.joint_flow_lr > 0)

    def generator(self) -> torch.Generator:
        """Return the generator of this step, seeded by seed, stage, step and rank alone."""
        key = (self.config.train.seed, STAGES.index(self.plan.stage), self.global_step, self.global_rank)
        return torch.Generator(device=self.device).manual_seed(seed_of(*key))

    def training_step(self, batch: dict[str, Any], _: int) -> Tensor:
        steps = {"segmenter": self._segmenter_step, "flow": self._flow_step, "joint": self._joint_step}
        figures = steps[self.plan.stage](batch)
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
        answer = self.segmenter(batch["image"])
        loss = class_nll(answer.logits, batch["mask"])
        if answer.outlier is not None:  # not trained yet, but with several devices every parameter needs a gradient
            loss = loss + 0.0 * answer.outlier.sum()
        return {"loss": loss}

    def _flow_step(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Compute the flow's loss on crops of the sizes that patches will have."""
        assert self.flow is not None
        generator = self.generator()
        crops = cut_crops(batch, self._draw_size(generator), generator)
        if crops is None:
            return {"loss": self._no_flow()}
        return {"loss": self.flow.bits_per_dimension(crops, generator).mean()}

    def _joint_step(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        assert self.segmenter is not None
        generator, settings = self.generator(), self.config.loss
        pasted = self._paste(batch, generator)
        bits = None
        if self.flow is not None and self.flow_learns and pasted.crops:
            bits = torch.cat([self.flow.bits_per_dimension(crops, generator) for crops in pasted.crops])
        all_terms = settings.class_to_flow and settings.negative_to_flow and self.segmenter.outlier == "none"
        apart = pasted.image.requires_grad and not all_terms
        seen = pasted._replace(image=pasted.image.detach().requires_grad_()) if apart else pasted
        answer = self.segmenter(seen.image)
        losses = joint_loss(answer, seen, bits, kind=self.config.segmenter.outlier, config=settings)
        total = losses.total
        if apart:
            total = total + self._pull(losses, seen.image, pasted.image)
        if self.flow_learns and not pasted.crops:
            total = total + self._no_flow()
        figures = {"loss": total, "class": losses.classification, "negative": losses.negative}
        figures |= {"bpd": losses.flow} if bits is not None else {}
        figures |= {"outlier": losses.outlier} if answer.outlier is not None else {}
        return figures | self._gap(answer.logits.detach(), pasted)

    def _pull(self, losses: Losses, seen: Tensor, pasted: Tensor) -> Tensor:
        """Return a zero whose gradient in the flow is that of the terms that train it, through the pasted pixels.

        `seen` is the segmenter's input, detached from the graph that `pasted` still belongs to.
        """
        settings = self.config.loss
        moving = losses.negative * (settings.negative_to_flow * settings.negative_weight)
        moving = moving + losses.classification * float(settings.class_to_flow)
        [pull] = torch.autograd.grad(PULL * moving, seen, retain_graph=True)
        along = (pasted * (pull / PULL)).sum()
        return along - along.detach()

    @torch.no_grad()
    def _gap(self, logits: Tensor, pasted: PastedBatch) -> dict[str, Tensor]:
        """Return the mean score of negatives minus that of labelled pixels, which the joint stage is to widen."""
        inlier = pasted.mask != IGNORE
        if not pasted.negative.any() or not inlier.any():
            return {}
        score = anomaly_score(logits, "jsd")
        return {"gap": score[pasted.negative].mean() - score[inlier].mean()}

    def _no_flow(self) -> Tensor:
        """Return a zero that depends on every parameter of the flow, for a batch without room for a patch.

        With several devices, each step must give every parameter a gradient on all of them.
        """
        assert self.flow is not None
        return torch.stack([p.sum() for p in self.flow.parameters()]).sum() * 0.0

    def _draw_size(self, generator: torch.Generator) -> tuple[int, int]:
        multiple = max(8, self.flow.multiple if self.flow is not None else 8)
        return draw_size(self.config.negatives, multiple=multiple, generator=generator)

    def _paste(self, batch: dict[str, Any], generator: torch.Generator) -> PastedBatch:
        """Paste the config's number of patches into each image, fewer where no more fit."""
        settings = self.config.negatives
        pasted = unpasted(batch["image"], batch["mask"])
        for _ in range(settings.patches if settings.source != "none" else 0):
            size = self._draw_size(generator)
            boxes = draw_boxes(batch["valid"] & ~pasted.covered, size, generator)
            moved = self.flow_learns and (self.config.loss.negative_to_flow or self.config.loss.class_to_flow)
            with torch.set_grad_enabled(moved):
                patches = draw_patches(
                    settings,
                    size,
                    image=batch["image"],
                    valid=batch["valid"],
                    flow=self.flow,
                    photographs=self.photographs,
                    generator=generator,
                )
            strength = draw_strength(settings, len(patches), size, like=batch["image"], generator=generator)
            patches = patches.to(pasted.image.dtype)
            pasted = paste(pasted, patches, valid=batch["valid"], strength=strength, boxes=boxes)
        return pasted

    def on_validation_epoch_start(self) -> None:
        samples = None if self.flow is None else self._draw_samples()
        self._validation = _Validation(Confusion(len(self.config.data.classes)), samples)

    def validation_step(self, batch: dict[str, Any], index: int) -> None:
        if self.segmenter is not None:
            logits = self.segmenter(batch["image"]).logits.float()
            self._validation.nll.append(float(class_nll(logits, batch["mask"])))
            self._validation.confusion.update(logits.argmax(1).cpu().numpy(), batch["mask"].cpu().numpy())
        if self.flow is not None:
            generator = torch.Generator(device=self.device).manual_seed(index)
            side = self.config.negatives.patch_max_px
            crops = cut_crops(batch, (side, side), generator)
            if crops is not None:
                self._validation.bpd += self.flow.bits_per_dimension(crops, generator).tolist()
                self._validation.real.append(crops)
            if index == 0:
                pasted = self._paste(batch, generator)
                self._validation.pasted = outlined(pasted.image.detach(), pasted.covered)

    def on_validation_end(self) -> None:
        tally, figures = self._validation, dict[str, float]()
        if self.segmenter is not None:
            figures |= {"class": float(np.mean(tally.nll)), "miou": float(tally.confusion.miou)}
        if self.flow is not None:
            figures["bpd"] = float(np.mean(tally.bpd)) if tally.bpd else float("nan")
        self.validated = figures | self._judge_samples(tally)
        over = self.plan.stage == "joint" or (self.plan.stage == "flow" and self.global_step >= self.plan.steps)
        if over and self.trainer.is_global_zero:
            for trouble in troubles(self.validated, self.before):
                if (what := trouble.partition("(")[0]) not in self._warned:
                    log.warning("step %d of the stage %s: %s", self.global_step, self.plan.stage, trouble)
                    self._warned.add(what)

    @torch.no_grad()
    def _draw_samples(self) -> Tensor:
        """Draw samples of the flow of the largest patch size."""
        assert self.flow is not None
        side, temperature = self.config.negatives.patch_max_px, self.config.negatives.temperature
        generator = torch.Generator(device=self.device).manual_seed(self.config.train.seed)
        return self.flow.sample(SAMPLES, side, side, temperature=temperature, generator=generator).float()

    def _judge_samples(self, tally: _Validation) -> dict[str, float]:
        """Write a picture of samples, real crops and pasted negatives; return the figures of the first two.

        A flow that drifts away from the images shows here first, as a saturated checkerboard or one flat colour, while
        its likelihood still looks fine.
        """
        if self.flow is None or tally.samples is None:
            return {}
        size = " x ".join(str(side) for side in tally.samples.shape[2:])
        rows, figures = dict[str, Tensor](), dict[str, float]()
        if (real := stacked(tally.real, SAMPLES)) is not None:
            rows[f"real crops, {size} px"] = real
            figures = {REAL + k: v for k, v in sample_figures(real, self.flow.step).items()}
        rows[f"samples of the flow, {size} px"] = tally.samples
        if tally.pasted is not None:
            rows["negatives pasted, outlined"] = tally.pasted[:4]
        if self.trainer.is_global_zero and self.trainer.default_root_dir:
            path = Path(self.trainer.default_root_dir) / "samples" / f"{self.plan.stage}_{self.global_step:06d}.png"
            path.parent.mkdir(exist_ok=True)
            picture = sample_picture(rows)
            picture.save(path)
            board = self.logger.experiment if self.logger else None
            if board is not None:
                board.add_image("samples", np.asarray(picture), self.global_step, dataformats="HWC")
        return sample_figures(tally.samples, self.flow.step) | figures

    def configure_optimizers(self) -> Any:
        optimizer = make_optimizer(
            self.config.train, self.plan.stage, segmenter=self.segmenter, flow=self.flow if self.flow_learns else None
        )
        rates = schedules(optimizer, self.config.train, self.plan.stage, steps=self.plan.steps)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rates)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(self, *_: Any, **__: Any) -> None:
        for network, norm in ((self.segmenter, 10.0), (self.flow, 10.0)):
            if network is not None:
                nn.utils.clip_grad_norm_(network.parameters(), norm)


def troubles(now: Mapping[str, float], before: Mapping[str, float]) -> list[str]:
    """Compare validation figures with real crops and earlier stages; return a warning with remedy per problem."""
    cure = "raise train.flow_steps, and in the joint stage lower train.joint_flow_lr or raise loss.flow_weight"
    warnings = [f"{what}, see samples/; {cure}" for what in far_off(now)]
    if now.get("bpd", 0.0) - before.get("flow/bpd", math.inf) > FORGOTTEN:
        warnings.append("the flow forgets the images (bits per dimension rise); lower train.joint_flow_lr")
    if before.get("segmenter/miou", 0.0) - now.get("miou", math.inf) > DROWNED:
        warnings.append(
            "negatives drown inlier classes (mIoU falls); lower loss.negative_weight or negatives.patch_max_px"
        )
    return warnings


def cut_crops(batch: dict[str, Any], size: tuple[int, int], generator: torch.Generator) -> Tensor | None:
    """Cut random crops (N, C, h, w) of valid pixels, one from each image with room for one; None if no image has."""
    boxes = draw_boxes(batch["valid"], size, generator)
    corners = [(image, *box) for image, box in zip(batch["image"], boxes, strict=True) if box is not None]
    crops = [image[:, row : row + size[0], col : col + size[1]] for image, row, col in corners]
    return torch.stack(crops) if crops else None
