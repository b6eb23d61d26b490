"""One step of each stage of training: the segmenter alone, the flow alone, both with pasted negatives.

`Stage` is the mathematics of a step and of a validation, in the form that Lightning's Trainer runs; the order of
stages, files and checkpoints are the matter of `training`. Every random number of a step comes from a generator seeded
by (seed, stage, step). Each stage has its own optimizer state; in the joint stage one Adam holds both networks as
groups with their own learning rates, which is the same as two Adams stepped together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from geood.operators import declare_missing_operators

declare_missing_operators()

import lightning.pytorch as pl  # noqa: E402

from geood.config import Config  # noqa: E402
from geood.datasets.scenes import seed_of  # noqa: E402
from geood.errors import TrainingError  # noqa: E402
from geood.flow import Flow  # noqa: E402
from geood.losses import class_nll, joint_loss  # noqa: E402
from geood.metrics import Confusion  # noqa: E402
from geood.negatives import PastedBatch, draw_boxes, draw_size, paste  # noqa: E402
from geood.segmenter import Segmenter  # noqa: E402

__all__ = ["STAGES", "Plan", "Stage", "cut_crops", "pl", "plans", "sample_picture"]

STAGES = ("segmenter", "flow", "joint")
WARM_UP = 100  # steps over which each stage's learning rate rises
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
        self.figures: dict[str, Tensor] = {}  # of the last step
        self.validated: dict[str, float] = {}  # of the last validation

    def generator(self) -> torch.Generator:
        """The generator of this step: a function of seed, stage and step alone."""
        key = (self.config.train.seed, STAGES.index(self.plan.stage), self.global_step, self.global_rank)
        return torch.Generator(device=self.device).manual_seed(seed_of(*key))

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
        if not len(pasted.crops):
            return {"loss": self._no_flow()}
        return {"loss": self.flow.bits_per_dimension(pasted.crops, generator).mean()}

    def _joint_step(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        assert self.segmenter is not None and self.flow is not None
        generator = self.generator()
        pasted = self._paste(batch, generator, patches=self.flow)
        log_prob = (
            self.flow.log_prob(self.flow.dequantize(pasted.crops, generator), generator) if len(pasted.crops) else None
        )
        losses = joint_loss(
            self.segmenter(pasted.image), pasted, log_prob, config=self.config.loss, step=self.step_size
        )
        total = losses.total if log_prob is not None else losses.total + self._no_flow()
        return {"loss": total, "class": losses.classification, "jsd": losses.jsd, "bpd": losses.flow}

    def _no_flow(self) -> Tensor:
        """A zero that touches every parameter of the flow: nowhere in this batch was enough data for a patch.

        Where several devices train together each step must reach all parameters on all of them.
        """
        assert self.flow is not None
        return torch.stack([p.sum() for p in self.flow.parameters()]).sum() * 0.0

    def _paste(self, batch: dict[str, Any], generator: torch.Generator, *, patches: Flow | None) -> PastedBatch:
        """Paste samples of the flow (None: leave the images, only take the crops) in one box of each image."""
        assert self.flow is not None
        settings = self.config.negatives
        size = draw_size(settings, multiple=max(8, self.flow.multiple), generator=generator)
        boxes = draw_boxes(batch["valid"], size, generator)
        image = batch["image"]
        if patches is None:
            samples = image.new_zeros(len(image), image.shape[1], *size)
        else:
            samples = patches.sample(len(image), *size, temperature=settings.temperature, generator=generator)
        return paste(image, batch["mask"], batch["valid"], samples.to(image.dtype), boxes)

    def on_validation_start(self) -> None:
        classes = len(self.config.data.classes)
        self._confusion = Confusion(classes)
        self._nll: list[float] = []
        self._bpd: list[float] = []

    def validation_step(self, batch: dict[str, Any], index: int) -> None:
        if self.segmenter is not None:
            logits = self.segmenter(batch["image"]).float()
            self._nll.append(float(class_nll(logits, batch["mask"])))
            self._confusion.update(logits.argmax(1).cpu().numpy(), batch["mask"].cpu().numpy())
        if self.flow is not None:
            generator = torch.Generator(device=self.device).manual_seed(index)
            crops = cut_crops(batch, self.config.negatives.patch_max_px, generator)
            if crops is not None:
                self._bpd += self.flow.bits_per_dimension(crops, generator).tolist()

    def on_validation_end(self) -> None:
        found: dict[str, float] = {}
        if self.segmenter is not None:
            found |= {"class": float(np.mean(self._nll)), "miou": float(self._confusion.miou)}
        if self.flow is not None:
            found["bpd"] = float(np.mean(self._bpd)) if self._bpd else float("nan")
            found |= self._draw_samples()
        self.validated = found

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


def cut_crops(batch: dict[str, Any], side: int, generator: torch.Generator) -> Tensor | None:
    """Squares (N, C, side, side) from places with data, one from each image that has one; None if none has."""
    boxes = draw_boxes(batch["valid"], (side, side), generator)
    places = [(image, *box) for image, box in zip(batch["image"], boxes, strict=True) if box is not None]
    cut = [image[:, row : row + side, col : col + side] for image, row, col in places]
    return torch.stack(cut) if cut else None


def sample_picture(samples: Tensor) -> Image.Image:
    """A picture of images (N, C, h, w) in [0, 1], four in a row; other than three bands are shown as grey or 1-2-3."""
    from torchvision.utils import make_grid

    shown = samples[:, :3] if samples.shape[1] >= 3 else samples[:, :1].expand(-1, 3, -1, -1)
    grid = make_grid(shown.clamp(0, 1).cpu(), nrow=4, padding=2, pad_value=1.0)
    return Image.fromarray((grid * 255).round().byte().permute(1, 2, 0).numpy())
