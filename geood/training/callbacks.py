"""Lightning callback of a training stage: metrics, checkpoints, throughput.

Nothing here changes what is learned.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from geood.atomic import atomic_write
from geood.progress import Progress
from geood.training.plans import Plan
from geood.training.run_folder import append_metrics, write_confusion
from geood.training.stage import Stage, pl

log = logging.getLogger("geood")


class CheckpointCallback(pl.Callback):
    """Callback that ends each epoch with a row per figure in metrics.csv and a checkpoint, each written atomically.

    It also measures throughput: crops per second, and the share of time spent waiting for data.
    """

    def __init__(self, run: Path, plan: Plan, progress: Progress) -> None:
        self.run, self.plan, self.progress = run, plan, progress
        self.checkpoint = run / "checkpoints" / f"{plan.stage}.ckpt"
        self.crops, self.busy, self.waited = 0, 0.0, 0.0  # seconds
        self.started, self.saved = False, 0  # once weights and optimizers are in place; step of the last checkpoint
        self._mark = 0.0

    def on_train_start(self, *_: Any) -> None:
        self.started = True

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
            if module.confusion is not None:
                names = [name for _, name in sorted(module.config.data.classes.items())]
                write_confusion(self.run / "confusion.csv", names, module.confusion.counts)
            if trainer.logger is not None:
                trainer.logger.log_metrics(validated, step=trainer.global_step)
            with atomic_write(self.checkpoint, alone=True) as partial:
                trainer.save_checkpoint(partial)
        else:
            trainer.save_checkpoint(self.checkpoint)  # collective: takes part, but does not write
        self.saved = trainer.global_step

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
        """Return the seconds since the last call; on a GPU, those until the work was queued."""
        before, self._mark = self._mark, time.perf_counter()
        return self._mark - before


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silence Lightning's advice about its own settings; errors still show."""
    names = ("lightning.pytorch", "lightning.fabric")
    before = {n: logging.getLogger(n).level for n in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            warnings.filterwarnings("ignore", module="torch.utils.data")
            yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
