"""The training engine and what it needs: optimiser, schedule, average weights, checkpoints, resuming."""

import logging
import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import CacheDataset, DataLoader
from monai.data.utils import set_rnd
from monai.engines import Evaluator, SupervisedTrainer
from monai.transforms import Compose
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from . import processes
from .losses import TrainingStep
from .runtime import bar_interval
from .segmenter import Segmenter
from .weights import EARLIER, CheckpointError, load_checkpoint, mismatches, save_checkpoint
from .windows import plain

logger = logging.getLogger(__name__)


def build_optimizer(network: nn.Module, lr: float, weight_decay: float = 0.05, layer_decay: float = 1.0) -> AdamW:
    """AdamW. Vectors (norms, biases, layer scales) and learned tokens are not decayed.

    layer_decay: factor on the learning rate per block below the last, for pretrained backbones (METHOD: 0.8).
    Raises ValueError for a learning rate that is no positive number.
    """
    if not isinstance(lr, int | float) or not lr > 0:
        raise ValueError(f"learning_rate must be a positive number, got {lr!r} (in YAML 1e-3 is text: write 1.0e-3)")
    segmenter: Any = network.network if isinstance(network, TrainingStep) else network
    depth = len(segmenter.encoder.blocks)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in segmenter.named_parameters():
        decay = 0.0 if parameter.ndim < 2 or name.endswith(("_token", "pos_embed", "query")) else weight_decay
        groups.setdefault((lr * layer_decay ** _levels_below(name, depth), decay), []).append(parameter)
    return AdamW([{"params": p, "lr": rate, "weight_decay": decay} for (rate, decay), p in groups.items()])


def _levels_below(name: str, depth: int) -> int:
    """How many blocks lie above a parameter: 0 for the last block, the decoder and the policy."""
    if name.startswith("encoder.blocks."):
        return depth - 1 - int(name.split(".")[2])
    return depth - 1 if name.startswith(("patch_embed.", "cls_token", "reg_token", "pos_embed")) else 0


def build_schedule(optimizer: Optimizer, total: int, warmup: int, power: float = 0.9) -> LambdaLR:
    """Per step: linear warm-up from 0, then (1 - t)^power to 0. total, warmup: optimiser steps."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return max(0.0, 1 - (step - warmup) / max(1, total - warmup)) ** power

    return LambdaLR(optimizer, factor)


def build_average(network: nn.Module, decay: float = 0.999) -> AveragedModel:
    """Exponential moving average of the weights, min(decay, (1 + n) / (10 + n)) at update n; buffers are copied."""
    if not 0 <= decay < 1:
        raise ValueError(f"ema_decay must be in [0, 1), got {decay}")

    def update(average: Tensor, current: Tensor, count: Tensor | int) -> Tensor:
        n = float(count)
        return torch.lerp(average, current, 1 - min(decay, (1 + n) / (10 + n)))

    return AveragedModel(network, avg_fn=update)


def optimizer_steps(epochs: int, batches: int, accumulate: int = 1) -> int:
    """How many optimiser steps a training has: one for ``accumulate`` batches, and one for what an epoch leaves over.

    Raises ValueError for an ``accumulate`` that is no whole number of at least 1.
    """
    if not isinstance(accumulate, int) or accumulate < 1:
        raise ValueError(f"accumulate must be a whole number of at least 1, got {accumulate}")
    return epochs * math.ceil(batches / accumulate)


class DrawnByIndex(CacheDataset):
    """A CacheDataset whose random transforms draw by (seed, epoch, index): alike in whichever process and order."""

    epoch = 0  # set by `reseed`

    def __init__(self, *args: Any, seed: int, **kwargs: Any):
        self.seed = seed
        super().__init__(*args, **kwargs)

    def _transform(self, index: int) -> Any:
        sequence = np.random.SeedSequence((self.seed, self.epoch, index))
        self.transform.set_random_state(seed=int(sequence.generate_state(1)[0]))
        return super()._transform(index)


class VesselTrainer(SupervisedTrainer):
    """MONAI's trainer with the routed training step: loss terms from the trace, gradient clipping, schedule, average.

    network: a TrainingStep, or one wrapped for data-parallel training. average: of the Segmenter inside. accumulate:
    batches to an optimiser step; its loss is the mean of theirs, and the last step of an epoch takes what is left. The
    output of an iteration is a dictionary of floats, of all processes: "loss" and each of its terms.
    """

    def __init__(
        self,
        *,
        schedule: LambdaLR,
        average: AveragedModel,
        seed: int = 0,
        clip_norm: float = 1.0,
        accumulate: int = 1,
        **kwargs: Any,
    ):
        super().__init__(loss_function=nn.Identity(), decollate=False, **kwargs)
        if self.state.max_epochs is None or self.state.max_epochs < 1:
            raise ValueError(f"max_epochs must be at least 1, got {self.state.max_epochs}")
        self.schedule = schedule
        self.average = average
        self.clip_norm = clip_norm
        self.accumulate = accumulate
        self.add_event_handler(Events.EPOCH_STARTED, lambda engine: reseed(seed, engine))

    @property
    def segmenter(self) -> Segmenter:
        """The network inside the step, data-parallel or not."""
        step: Any = self.network
        return (step.module if hasattr(step, "module") else step).network

    def _iteration(self, engine: Any, batch: Mapping[str, Tensor]) -> dict[str, float]:
        device = engine.state.device
        image, label, fov = (plain(batch[key]).to(device, non_blocking=True) for key in ("image", "label", "fov"))
        image = image.contiguous(memory_format=torch.channels_last)  # as at inference; a tenth faster on a CPU
        progress = (engine.state.iteration - 1) / max(1, engine.state.max_epochs * engine.state.epoch_length)
        number, size = self._place(engine.state)
        self.network.train()
        if number == 0:
            self.optimizer.zero_grad(set_to_none=True)
        with self._gradients_exchanged(number == size - 1):
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.amp):
                terms = self.network(image, label, fov, progress)
                loss = torch.stack(list(terms.values())).sum()
            output = _output(loss, terms)
            if not math.isfinite(output["loss"]):
                where = f"at iteration {engine.state.iteration}"
                raise FloatingPointError(f"the loss became {output['loss']} {where}; lower --learning_rate and resume")
            (loss / size).backward()
        if number == size - 1:
            self._step()
        return output

    def _place(self, state: Any) -> tuple[int, int]:
        """The number of this batch among those of its optimiser step, and how many those are."""
        number = (state.iteration - 1) % state.epoch_length
        first = number - number % self.accumulate
        return number - first, min(self.accumulate, state.epoch_length - first)

    def _gradients_exchanged(self, wanted: bool) -> AbstractContextManager[None]:
        """Between processes once for a step, with its last batch."""
        step: Any = self.network
        return nullcontext() if wanted or not hasattr(step, "no_sync") else step.no_sync()

    def _step(self) -> None:
        nn.utils.clip_grad_norm_(self.network.parameters(), self.clip_norm)
        self.optimizer.step()
        self.schedule.step()
        processes.share_batch_statistics(self.segmenter)
        self.average.update_parameters(self.segmenter)


def _output(loss: Tensor, terms: Mapping[str, Tensor]) -> dict[str, float]:
    values = processes.means(torch.stack([loss, *terms.values()]).float()).tolist()
    return dict(zip(("loss", *terms), values, strict=True))


def reseed(seed: int, engine: Engine) -> None:
    """Make every epoch a function of (seed, epoch): a resumed training repeats the uninterrupted one exactly."""
    value = (seed * 1_000_003 + engine.state.epoch) % 2**31  # of all processes: windows are equal, crops have an index
    random.seed(value)
    np.random.seed(value)  # noqa: NPY002 MONAI's transforms seed themselves from the global state
    torch.manual_seed(value)
    loader = engine.state.dataloader
    if isinstance(loader, DataLoader):
        if isinstance(loader.dataset, DrawnByIndex):
            loader.dataset.epoch = engine.state.epoch
        set_rnd(loader.dataset, seed=value)


class TrainingState:
    """A MONAI handler that keeps everything a training needs to go on; attach it behind the ValidationHandler.

    Written after every epoch into ``directory``: ``last.pt``, the complete state, and ``best.pt``, the average weights
    with the highest validation AP so far, or without a validator those after the last epoch; after the epochs
    ``keep_epochs`` also ``epoch_0008.pt``, the average weights.

    validator: the evaluator of the average weights, with "ap" as its key metric; None: nothing validates.
    val_interval: epochs between validations; the last epoch is always validated. configuration: plain values that a
    resumed training must share. write: False on all processes but one.
    """

    def __init__(
        self,
        directory: str | Path,
        validator: Evaluator | None,
        val_interval: int,
        configuration: Mapping[str, Any],
        write: bool = True,
        keep_epochs: Sequence[int] = (),
    ):
        if val_interval < 1:
            raise ValueError(f"val_interval must be at least 1, got {val_interval}")
        self.directory = Path(directory)
        self.validator = validator
        self.val_interval = val_interval
        self.configuration = dict(configuration)
        self.identity: Mapping[str, Any] = {}  # what else tells this training from others; a resumed one may change it
        self.write = write
        self.keep_epochs = frozenset(keep_epochs)
        self.best_ap = -1.0
        self.run_id: str | None = None
        self.metrics: dict[str, float] = {}
        self._sums: Counter[str] = Counter()

    @property
    def last(self) -> Path:
        """The complete state after the last epoch."""
        return self.directory / "last.pt"

    @property
    def best(self) -> Path:
        """The average weights with the best validation AP; the last ones where nothing validates."""
        return self.directory / "best.pt"

    def attach(self, engine: VesselTrainer) -> None:
        """Register with the trainer."""
        self.trainer = engine
        engine.add_event_handler(Events.EPOCH_STARTED, lambda: self._sums.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: self._sums.update(engine.state.output))
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.epoch_completed)

    def epoch_completed(self) -> None:
        """Gather the metrics of the epoch, validate where that is still to be done, write the checkpoints."""
        state = self.trainer.state
        self.metrics = {f"train/{name}": total / state.epoch_length for name, total in self._sums.items()}
        self.metrics["train/learning_rate"] = self.trainer.optimizer.param_groups[0]["lr"]
        if self.validator is not None:
            self._validate(self.validator)
        elif state.epoch == state.max_epochs and self.write:
            save_checkpoint(self.best, self._averaged())
        if self.write and state.epoch in self.keep_epochs:
            save_checkpoint(kept_checkpoint(self.directory, state.epoch), self._averaged(epoch=state.epoch))
        if self.write:
            save_checkpoint(self.last, self._complete())

    def _validate(self, validator: Evaluator) -> None:
        """Take the validation of this epoch, where there is one, and keep the weights if they are the best."""
        state = self.trainer.state
        validated = state.epoch % self.val_interval == 0
        if state.epoch == state.max_epochs and not validated:
            validator.run(global_epoch=state.epoch)
            validated = True
        if validated:
            found = {name: float(value) for name, value in validator.state.metrics.items()}
            self.metrics |= {f"validation/{name}": value for name, value in found.items()}
            self._save_if_best(found["ap"])
            scores = ", ".join(f"{name} {value:.4f}" for name, value in found.items())
            loss = self.metrics["train/loss"]
            logger.info("epoch %d of %d: loss %.3f, validation %s", state.epoch, state.max_epochs, loss, scores)

    def _averaged(self, **chosen: int) -> dict[str, Any]:
        """The average weights. chosen: by what other than their AP, which tells them from the best."""
        configuration = {**self.configuration, **self.identity, **chosen}
        network = self.trainer.average.module.state_dict()
        return {"network": network, "epoch": self.trainer.state.epoch, "configuration": configuration}

    def _complete(self) -> dict[str, Any]:
        trainer = self.trainer
        return {
            "network": trainer.segmenter.state_dict(),
            "ema": trainer.average.module.state_dict(),
            "ema_updates": int(trainer.average.n_averaged),
            "optimizer": trainer.optimizer.state_dict(),
            "schedule": {k: v for k, v in trainer.schedule.state_dict().items() if k != "lr_lambdas"},
            "rng": torch.get_rng_state(),
            "processes": processes.count(),
            "epoch": trainer.state.epoch,
            "best_ap": self.best_ap,
            "run_id": self.run_id,
            "metrics": self.metrics,
            "configuration": {**self.configuration, **self.identity, "epoch": trainer.state.epoch},
        }

    def _save_if_best(self, ap: float) -> None:
        if not ap > self.best_ap:  # nan, where nothing could be measured, is never the best
            return
        self.best_ap = ap
        if self.write:
            save_checkpoint(self.best, {**self._averaged(), "validation_ap": ap})

    def resume(self) -> None:
        """Continue from ``last.pt``. Raises CheckpointError where it is absent or of another configuration."""
        saved = load_checkpoint(self.last)
        trainer, earlier = self.trainer, {**EARLIER, **saved["configuration"]}
        problems = mismatches(trainer.segmenter.state_dict(), saved["network"])
        problems += [
            f"{key} was {earlier.get(key)!r} and is now {value!r}"
            for key, value in self.configuration.items()
            if earlier.get(key) != value
        ]
        if (before := saved.get("processes", 1)) != processes.count():
            problems.append(f"it was trained by {before} process(es) and now by {processes.count()}")
        if problems:
            raise CheckpointError(f"{self.last}: cannot resume, {problems[-1]}. Resume with the same configuration.")
        trainer.segmenter.load_state_dict(saved["network"])
        trainer.average.module.load_state_dict(saved["ema"])
        trainer.average.n_averaged.fill_(saved["ema_updates"])
        self._resume_optimizer(saved)
        torch.set_rng_state(saved["rng"].cpu())
        self.best_ap, self.run_id, self.metrics = saved["best_ap"], saved["run_id"], saved["metrics"]
        trainer.state.epoch = saved["epoch"]
        trainer.state.iteration = saved["epoch"] * trainer.state.epoch_length

    def _resume_optimizer(self, saved: Mapping[str, Any]) -> None:
        """Moments and place in the schedule go on; learning rate and weight decay are those given now."""
        optimizer, schedule = self.trainer.optimizer, self.trainer.schedule
        given = [{key: group[key] for key in ("initial_lr", "weight_decay")} for group in optimizer.param_groups]
        optimizer.load_state_dict(saved["optimizer"])
        lambdas = [None] * len(given)  # functions are not saved; LambdaLR keeps its own
        rates = [group["initial_lr"] for group in given]
        schedule.load_state_dict({**saved["schedule"], "lr_lambdas": lambdas, "base_lrs": rates})
        for group, own, factor in zip(optimizer.param_groups, given, schedule.lr_lambdas, strict=True):
            group.update(own, lr=own["initial_lr"] * factor(schedule.last_epoch))


def kept_checkpoint(directory: str | Path, epoch: int) -> Path:
    """Where the average weights after an epoch of ``keep_epochs`` lie."""
    return Path(directory) / f"epoch_{epoch:04d}.pt"


def progress_bar(engine: Any) -> tqdm:
    """A progress bar over all steps, with the epoch and the latest loss, seldom drawn in a file; to be closed."""
    bar = tqdm(desc="training", unit="step", mininterval=bar_interval())

    def started() -> None:
        bar.reset(total=engine.state.max_epochs * engine.state.epoch_length)
        bar.update(engine.state.iteration)

    def advance() -> None:
        bar.set_postfix(epoch=engine.state.epoch, loss=f"{engine.state.output['loss']:.3f}", refresh=False)
        bar.update()

    engine.add_event_handler(Events.STARTED, started)
    engine.add_event_handler(Events.ITERATION_COMPLETED, advance)
    return bar


def joined(*steps: Compose) -> Compose:
    """One flat chain of transforms: CacheDataset caches what comes before the first random one, and looks no deeper."""
    return Compose([transform for step in steps for transform in step.transforms])


def prepare_batch(
    batch: Mapping[str, Tensor], device: torch.device | str | None = None, non_blocking: bool = False, **kwargs: Any
) -> tuple[Tensor, Tensor | None, tuple[()], dict[str, Tensor]]:
    """For MONAI's evaluator: image, label (None where there is none) and, for the inferer, the field of view."""
    image, fov = (batch[key].to(device, non_blocking=non_blocking) for key in ("image", "fov"))
    label = batch["label"].to(device, non_blocking=non_blocking) if "label" in batch else None
    return image, label, (), {"fov": fov}
