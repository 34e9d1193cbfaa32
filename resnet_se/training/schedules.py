"""Learning-rate schedules.

A schedule is `lr(t) = lr₀ × warm-up(t) × decay(t) × plateau`, t in epochs and
continuous; each factor is a pure function of progress but the last, which
`ReduceLROnPlateau` keeps.  The factors multiply, so that a plateau's reduction survives
the next step (the paper uses warm-up, decays at epochs 100 and 250, and
ReduceLROnPlateau at the same time).
"""

from __future__ import annotations

import inspect
import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from resnet_se.utils.errors import UserError, nearest
from resnet_se.utils.validation import Natural, NonNegative, check_value

Decay = Callable[[float, float], float]
# Of `ReduceLROnPlateau`; the rest of its state are its arguments, which are configured.
PLATEAU_STATE = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch")


# --- decays: (t, total epochs) → factor --------------------------


def constant(t: float, total: float) -> float:
    """1 throughout."""
    return 1.0


def cosine(t: float, total: float, final: float = 0.0) -> float:
    """Half a cosine from 1 to `final` (Loshchilov & Hutter 2017, arXiv 1608.03983)."""
    return final + (1 - final) * (1 + math.cos(math.pi * min(t / total, 1.0))) / 2


def multistep(
    t: float, total: float, milestones: Sequence[float], gamma: float
) -> float:
    """gamma to the number of milestones (epochs) that t has reached."""
    return gamma ** bisect_right(milestones, t)


def triangular(t: float, total: float, peak: float, final: float = 0.0) -> float:
    """Linear 0 → 1 until the share `peak` of training, then linear to `final`.

    The short schedule of airbench (Jordan 2024, arXiv 2404.00498, §3).
    """
    if not 0 <= peak < 1:
        raise UserError(f"scheduler.decay.peak: expected 0 <= peak < 1, got {peak}")
    done = min(t / total, 1.0)
    if done < peak:
        return done / peak
    return final + (1 - final) * (1 - done) / (1 - peak)


def one_cycle(
    t: float, total: float, peak: float = 0.3, start: float = 0.04, final: float = 4e-6
) -> float:
    """Half cosines `start` → 1 at the share `peak` of training → `final`.

    One cycle (Smith & Topin 2018, arXiv 1708.07120) as torch's `OneCycleLR` has it with
    its defaults, 1/25 and 1/25 × 1e-4, and without its cycle of the momentum.
    """
    if not 0 < peak < 1:
        raise UserError(f"scheduler.decay.peak: expected 0 < peak < 1, got {peak}")
    done = min(t / total, 1.0)
    a, b, share = (
        (start, 1.0, done / peak)
        if done < peak
        else (1.0, final, (done - peak) / (1 - peak))
    )
    return b + (a - b) * (1 + math.cos(math.pi * share)) / 2


def warmup(t: float, epochs: float, start: float = 0.0) -> float:
    """Linear from `start` at t = 0 to 1 at t = epochs, 1 from there."""
    return 1.0 if t >= epochs else start + (1 - start) * t / epochs


class Schedule(LRScheduler):
    """Sets every group's rate to its base × warm-up × decay × plateau, once a step.

    Args:
        optimizer: whose rates are the base.
        steps_per_epoch: optimizer steps in an epoch; t is steps / steps_per_epoch.
        epochs: length of training.
        decay: (t, epochs) → factor.
        warmup_epochs: length of the warm-up, 0 for none.
        warmup_start: factor at the first step.
        plateau: arguments of torch's `ReduceLROnPlateau` (factor, patience in epochs,
            …), which sees the validation loss, or None.

    Raises:
        UserError: a range; a warm-up longer than training; a decay that is not a finite
            factor >= 0 somewhere in training.  All of it before the first step.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        steps_per_epoch: float,
        epochs: float,
        decay: Decay = constant,
        warmup_epochs: float = 0.0,
        warmup_start: float = 0.0,
        plateau: dict[str, Any] | None = None,
    ):
        if not 0 <= warmup_epochs <= epochs:
            raise UserError(
                f"scheduler.warmup_epochs: expected 0..{epochs:g} (the length of "
                f"training), got {warmup_epochs:g}; scheduler.warmup_epochs=0 is "
                "none, budget.scale=… in place of trainer.max_epochs scales both"
            )
        if not 0 <= warmup_start <= 1:
            raise UserError(
                f"scheduler.warmup_start: expected 0..1, got {warmup_start}"
            )
        self._steps_per_epoch = steps_per_epoch
        self._epochs = epochs
        self._decay = decay
        self._warmup = (warmup_epochs, warmup_start)
        self._check_decay()
        self._plateau = _plateau(plateau)
        super().__init__(optimizer)

    def _check_decay(self) -> None:
        milestones = getattr(self._decay, "keywords", {}).get("milestones", [])
        if any(a >= b for a, b in pairwise(milestones)):
            raise UserError(
                f"scheduler.decay.milestones: expected ascending, got {milestones}"
            )
        for epoch in range(math.ceil(self._epochs) + 1):
            factor = self._decay(min(epoch, self._epochs), self._epochs)
            if not (math.isfinite(factor) and factor >= 0):
                raise UserError(
                    "scheduler.decay: expected a finite factor >= 0 at every epoch, "
                    f"got {factor} at epoch {epoch}"
                )

    def factor(self, step: int) -> float:
        """What the base rate is multiplied with at optimizer step `step`, from 0."""
        t = step / self._steps_per_epoch
        plateau = self._plateau.optimizer.param_groups[0]["lr"] if self._plateau else 1
        return warmup(t, *self._warmup) * self._decay(t, self._epochs) * plateau

    def get_lr(self) -> list[float]:
        factor = self.factor(self.last_epoch)
        return [base * factor for base in self.base_lrs]

    def observe(self, val_loss: float) -> None:
        """Once an epoch, after validation: lets the plateau rule see the loss."""
        if self._plateau:
            self._plateau.step(val_loss)
            for group, lr in zip(
                self.optimizer.param_groups, self.get_lr(), strict=True
            ):
                group["lr"] = lr

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {"last_epoch": self.last_epoch}
        if self._plateau:
            state["plateau"] = self._plateau.state_dict()
            state["plateau_factor"] = self._plateau.optimizer.param_groups[0]["lr"]
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        check_value("Schedule.last_epoch", state["last_epoch"], Natural)
        self.last_epoch = state["last_epoch"]
        # Without it (`ckpt_path` of a run with another schedule) the plateau starts.
        if self._plateau and "plateau" in state:
            check_value("Schedule.plateau_factor", state["plateau_factor"], NonNegative)
            self._plateau.optimizer.param_groups[0]["lr"] = state["plateau_factor"]
            for name in PLATEAU_STATE:
                value = state["plateau"][name]
                if not isinstance(value, int | float):  # the best may be infinite
                    raise UserError(f"Schedule.plateau.{name}: got {value!r}")
                setattr(self._plateau, name, value)
        self._last_lr = self.get_lr()


def _plateau(options: dict[str, Any] | None) -> ReduceLROnPlateau | None:
    """torch's own rule on an optimizer whose rate is 1: its rate is our factor."""
    if options is None:
        return None
    known = list(inspect.signature(ReduceLROnPlateau).parameters)[1:]
    for name in options:
        if name not in known:
            raise UserError(
                f"scheduler.plateau.{name}: unknown; {nearest(name, known)}"
            )
    if not 0 < options.get("factor", 0.1) < 1:
        raise UserError(
            f"scheduler.plateau.factor: expected 0 < f < 1, got {options['factor']}"
        )
    unit = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    try:
        return ReduceLROnPlateau(unit, **options)
    except (TypeError, ValueError) as error:
        raise UserError(f"scheduler.plateau: {error}") from None
