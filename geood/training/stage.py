"""Training and validation step of each stage: the segmenter alone, the flow alone, and what learns from negatives.

`Stage` is a LightningModule; which stages there are is in `plans`, the losses of the third one in `third_stage`, files
and checkpoints in `trainer`, learning rates in `optimizers`. Every random number of a step comes from a generator
seeded by (seed, stage, step). A stage decides which parts learn: in stage head the segmenter without its outlier head
takes no gradient and stays in eval mode, so that its class logits do not change in a single bit.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from geood._torch_compat import declare_missing_operators

declare_missing_operators()

import lightning.pytorch as pl  # noqa: E402

from geood.config import Config  # noqa: E402
from geood.constants import IGNORE  # noqa: E402
from geood.datasets import Crops, seed_of  # noqa: E402
from geood.errors import TrainingError  # noqa: E402
from geood.metrics import Confusion  # noqa: E402
from geood.models import Flow, Segmenter  # noqa: E402
from geood.training.light import in_other_light  # noqa: E402
from geood.training.losses import class_nll  # noqa: E402
from geood.training.mixed_content import mixed_content  # noqa: E402
from geood.training.negative_sources import Photographs  # noqa: E402
from geood.training.optimizers import make_optimizer, schedules  # noqa: E402
from geood.training.pasting import PastedBatch, draw_boxes, draw_size  # noqa: E402
from geood.training.plans import STAGES, THIRD, Plan  # noqa: E402
from geood.training.sample_monitor import (  # noqa: E402
    REAL,
    far_off,
    outlined,
    pasted_figures,
    sample_figures,
    sample_picture,
    stacked,
)
from geood.training.third_stage import head_figures, joint_figures, telling  # noqa: E402

__all__ = ["Stage", "cut_crops", "first_crops", "pl"]

log = logging.getLogger("geood")
FORGOTTEN, DROWNED = 0.3, 0.03  # limits beyond which `troubles` warns
PASTED = 6  # crops with pasted negatives that are shown
MOST_BARE = 0.5  # share of crops without a negative beyond which a stage warns
SAMPLES = 32  # samples of the flow, and real crops, that a validation measures
FIRST_CROPS = 32  # training crops that the flow is initialized from


@dataclass
class _Validation:
    """Running figures of one validation: `nll`, summed over the `labelled` pixels, and `bpd` per crop.

    `samples` of the flow, batches of `real` crops of their size, and images with `pasted` negatives, outlined, with
    these images as they were `before`; `negatives` are figures of the pasted pixels. These are of the batch with the
    most classes, which are so many `kinds`: the first ones may be of water alone.
    """

    confusion: Confusion
    samples: Tensor | None = None
    real: list[Tensor] = field(default_factory=list)
    pasted: Tensor | None = None
    before: Tensor | None = None
    kinds: int = -1
    negatives: dict[str, float] = field(default_factory=dict)
    nll: float = 0.0
    labelled: int = 0
    bpd: list[float] = field(default_factory=list)


class Stage(pl.LightningModule):
    """Lightning module with the training and validation steps of a stage, after the paper's equations.

    Holds the networks that the stage trains, and in the third stage both even if one is frozen. `photographs` cuts
    negatives from photographs, where the config asks for those; `before` are the last validation figures of earlier
    stages, named `stage/figure`.
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
        self._choose_learners()
        self.train()
        self.figures: dict[str, Tensor] = {}  # of the last step
        self.validated: dict[str, float] = {}  # of the last validation
        self._validation = _Validation(Confusion(len(config.data.classes)))
        self._warned: set[str] = set()
        self._crops, self._bare = 0, torch.zeros((), dtype=torch.int64)  # of the third stage; those without a negative

    def _choose_learners(self) -> None:
        """Let those parameters take gradients that this stage trains.

        With several devices, every one of them must get a gradient in each step.
        """
        stage = self.plan.stage
        if self.flow is not None:
            self.flow.requires_grad_(self.flow_learns)
        if self.segmenter is not None:
            self.segmenter.requires_grad_(stage != "head")
            if self.segmenter.outlier_head is not None:
                self.segmenter.outlier_head.requires_grad_(stage in THIRD)

    def train(self, mode: bool = True) -> Stage:
        """Set training or eval mode; in stage head, the parts of the segmenter that stay as they are keep eval mode."""
        super().train(mode)
        if self.plan.stage == "head" and self.segmenter is not None:
            for part in self.segmenter.frozen_parts:
                part.eval()
        return self

    @property
    def confusion(self) -> Confusion | None:
        """Confusion of the classes in the last validation; None in a stage without the segmenter."""
        return None if self.segmenter is None else self._validation.confusion

    @property
    def flow_learns(self) -> bool:
        """True if this stage trains the flow."""
        return self.flow is not None and (self.plan.stage == "flow" or self.config.train.joint_flow_lr > 0)

    def generator(self) -> torch.Generator:
        """Return the generator of this step, seeded by seed, stage, step and rank alone."""
        key = (self.config.train.seed, STAGES.index(self.plan.stage), self.global_step, self.global_rank)
        return torch.Generator(device=self.device).manual_seed(seed_of(*key))

    def training_step(self, batch: dict[str, Any], _: int) -> Tensor:
        alone = {"segmenter": self._segmenter_step, "flow": self._flow_step}
        figures = alone.get(self.plan.stage, self._third_step)(batch)
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
        return {"loss": class_nll(self.segmenter(batch["image"], False).logits, batch["mask"])}

    def _flow_step(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Compute the flow's loss on crops of the largest size of patches, or where gaps leave none, of a smaller one.

        Pixels far apart can only be learned from large patches, and what is learned from these holds in small ones too.
        """
        assert self.flow is not None
        generator, side = self.generator(), self.config.negatives.patch_max_px
        crops = cut_crops(batch, (side, side), generator)
        if crops is None:
            crops = cut_crops(batch, self._draw_size(generator), generator)
        if crops is None:
            return {"loss": self._no_flow()}
        return {"loss": self.flow.bits_per_dimension(crops, generator).mean()}

    def _third_step(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Compute loss and figures on crops with patches, of which a flow that learns gets what they replace."""
        assert self.segmenter is not None
        generator, settings = self.generator(), self.config.loss
        moved = self.flow_learns and (settings.negative_to_flow or settings.class_to_flow)
        pasted, bits = self._pasted(batch, generator, moved=moved), None
        self._crops += len(pasted.negative)
        self._bare = self._bare + (~pasted.negative.flatten(1).any(1)).sum()
        if self.plan.stage == "head":
            strength = self.config.train.head_light
            lit = in_other_light(pasted.image, batch["valid"], strength=strength, generator=generator)
            pasted = pasted._replace(image=lit)
        if self.flow is not None and self.flow_learns and pasted.crops:
            alike = _by_size(pasted.crops)
            bits = torch.cat([self.flow.bits_per_dimension(crops, generator) for crops in alike])
        figures_of = {"joint": joint_figures, "head": head_figures}[self.plan.stage]
        figures = figures_of(self.segmenter, pasted, bits, self.config)
        if self.flow_learns and not pasted.crops:
            figures["loss"] = figures["loss"] + self._no_flow()
        return figures

    def on_train_end(self) -> None:
        """Warn if most crops had no room for a negative: what learns from these has not learned then."""
        settings = self.config.negatives
        if settings.sources and self.global_rank == 0 and int(self._bare) > MOST_BARE * self._crops:
            log.warning(
                "stage %s: in %.0f %% of the crops no negative of %d to %d px fitted between the gaps in the data, so "
                "little was learned from them; lower negatives.patch_min_px and patch_max_px, or raise data.min_valid",
                self.plan.stage,
                100 * int(self._bare) / self._crops,
                settings.patch_min_px,
                settings.patch_max_px,
            )

    def _pasted(self, batch: dict[str, Any], generator: torch.Generator, *, moved: bool) -> PastedBatch:
        """Paste negatives into a batch; with `moved` they carry the flow's graph."""
        if "attribution" in self.config.negatives.sources:
            assert self.segmenter is not None
            batch = batch | {"telling": telling(self.segmenter, batch["image"])}
        return mixed_content(
            batch,
            self.config.negatives,
            flow=self.flow,
            photographs=self.photographs,
            learns=self.flow_learns,
            moved=moved,
            generator=generator,
        )

    def _no_flow(self) -> Tensor:
        """Return a zero that depends on every parameter of the flow, for a batch without room for a patch.

        With several devices, each step must give every parameter a gradient on all of them.
        """
        assert self.flow is not None
        return torch.stack([p.sum() for p in self.flow.parameters()]).sum() * 0.0

    def _draw_size(self, generator: torch.Generator) -> tuple[int, int]:
        multiple = max(8, self.flow.multiple if self.flow is not None else 8)
        return draw_size(self.config.negatives, multiple=multiple, generator=generator)

    def on_validation_epoch_start(self) -> None:
        samples = None if self.flow is None else self._draw_samples()
        self._validation = _Validation(Confusion(len(self.config.data.classes)), samples)

    def validation_step(self, batch: dict[str, Any], index: int) -> None:
        if self.segmenter is not None:
            logits = self.segmenter(batch["image"], False).logits.float()
            labelled = int((batch["mask"] != IGNORE).sum())
            self._validation.nll += labelled * float(class_nll(logits, batch["mask"]))
            self._validation.labelled += labelled
            self._validation.confusion.update(logits.argmax(1).cpu().numpy(), batch["mask"].cpu().numpy())
        generator = torch.Generator(device=self.device).manual_seed(index)
        if self.flow is not None:
            side = self.config.negatives.patch_max_px
            crops = cut_crops(batch, (side, side), generator)
            if crops is not None:
                self._validation.bpd += self.flow.bits_per_dimension(crops, generator).tolist()
                if sum(len(part) for part in self._validation.real) < SAMPLES:
                    self._validation.real.append(crops)
        if self.plan.stage not in THIRD or not self.config.negatives.sources:
            return
        if (kinds := _kinds(batch["mask"])) > self._validation.kinds:
            self._validation.kinds = kinds
            pasted = self._pasted(batch, generator, moved=False)
            shown = _most_kinds(batch["mask"])[:PASTED]
            self._validation.pasted = outlined(pasted.image.detach(), pasted.covered)[shown]
            self._validation.before = batch["image"][shown]
            self._validation.negatives = pasted_figures(pasted.image, batch["image"], pasted.negative)

    def on_validation_end(self) -> None:
        tally, figures = self._validation, dict[str, float]()
        if self.segmenter is not None:
            figures |= {"class": tally.nll / max(1, tally.labelled), "miou": float(tally.confusion.miou)}
        if self.flow is not None:
            figures["bpd"] = float(np.mean(tally.bpd)) if tally.bpd else float("nan")
        self.validated = figures | self._judge_samples(tally)
        over = self.plan.stage in THIRD or (self.plan.stage == "flow" and self.global_step >= self.plan.steps)
        if over and self.trainer.is_global_zero:
            for trouble in troubles(self.validated, self.before):
                if (what := trouble.partition("(")[0]) not in self._warned:
                    log.warning("step %d of the %s stage: %s", self.global_step, self.plan.stage, trouble)
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
        rows, figures = dict[str, Tensor](), dict[str, float]()
        if self.flow is not None and tally.samples is not None:
            size = " x ".join(str(side) for side in tally.samples.shape[2:])
            if (real := stacked(tally.real, SAMPLES)) is not None:
                rows[f"real crops, {size} px"] = real
                figures = {REAL + k: v for k, v in sample_figures(real, self.flow.step).items()}
            rows[f"samples of the flow, {size} px"] = tally.samples
            figures |= sample_figures(tally.samples, self.flow.step)
        if tally.pasted is not None and tally.before is not None:
            size = " x ".join(str(side) for side in tally.pasted.shape[2:])
            rows[f"crops of the validation ground, {size} px"] = tally.before
            rows["the same crops with negatives pasted in, outlined in yellow"] = tally.pasted
            figures |= tally.negatives
        if rows and self.trainer.is_global_zero and self.trainer.default_root_dir:
            path = Path(self.trainer.default_root_dir) / "samples" / f"{self.plan.stage}_{self.global_step:06d}.png"
            path.parent.mkdir(exist_ok=True)
            picture = sample_picture(rows)
            picture.save(path)
            board = self.logger.experiment if self.logger else None
            if board is not None:
                board.add_image("samples", np.asarray(picture), self.global_step, dataformats="HWC")
        return figures

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
    cure = "raise train.flow_steps, and in the third stage lower train.joint_flow_lr or raise loss.flow_weight"
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
    boxes = draw_boxes(batch["valid"], [size] * len(batch["image"]), generator)
    corners = [(image, *box) for image, box in zip(batch["image"], boxes, strict=True) if box is not None]
    crops = [image[:, row : row + size[0], col : col + size[1]] for image, row, col in corners]
    return torch.stack(crops) if crops else None


def _kinds(mask: Tensor) -> int:
    """Return the number of classes in masks of any shape."""
    return int((mask.unique() != IGNORE).sum())


def _most_kinds(mask: Tensor) -> Tensor:
    """Return the indexes (B,) of crops, those with the most classes in their masks (B, H, W) first, else in order."""
    return torch.tensor([_kinds(each) for each in mask]).argsort(descending=True, stable=True)


def first_crops(crops: Crops) -> Tensor:
    """Cut crops (N, C, h, w) to initialize the flow: windows of the largest patch size in the first training crops.

    Raises:
        TrainingError: no such window is free of gaps.
    """
    config, side = crops.config, crops.config.negatives.patch_max_px
    samples = crops.training(config.train.seed, FIRST_CROPS)
    batch = default_collate([samples[i] for i in range(FIRST_CROPS)])
    cut = cut_crops(batch, (side, side), torch.Generator().manual_seed(config.train.seed))
    if cut is None:
        raise TrainingError(
            f"no {side} x {side} pixels without a gap in {FIRST_CROPS} training crops, so no patch of that size fits; "
            "lower negatives.patch_max_px, or raise data.min_valid"
        )
    return cut


def _by_size(crops: Sequence[Tensor]) -> list[Tensor]:
    """Stack crops (C, h, w) of one size each to (N, C, h, w)."""
    alike: dict[tuple[int, ...], list[Tensor]] = {}
    for crop in crops:
        alike.setdefault(tuple(crop.shape), []).append(crop)
    return [torch.stack(group) for group in alike.values()]
