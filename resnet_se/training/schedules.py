"""Learning-rate schedules.

A schedule is `lr(t) = lr₀ × warm-up(t) × decay(t) × plateau`, t in epochs and
continuous; each factor is a pure function of progress but the last, which
`ReduceLROnPlateau` keeps.  The factors multiply, so that a plateau's reduction survives
the next step (the paper uses warm-up, decays at epochs 100 and 250, and
ReduceLROnPlateau at the same time).  In Keras they do not: `overrides_plateau`.
"""

from __future__ import annotations

import inspect
import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from resnet_se.utils.errors import UserError, nearest
from resnet_se.utils.validation import (
    Natural,
    NonNegative,
    Unit,
    check_value,
    hints_of,
    validated,
)

# (t, length of training), both in epochs → factor >= 0.  `Schedule` checks arguments
# that are bound to one against its hints, once.
Decay = Callable[[float, float], float]


# --- decays ------------------------------------------------------


def constant(t: float, total: float) -> float:
    """The factor 1 throughout."""
    return 1.0


def cosine(t: float, total: float, final: float = 0.0) -> float:
    """Half a cosine from 1 to `final` (Loshchilov & Hutter 2017, arXiv 1608.03983)."""
    return final + (1 - final) * (1 + math.cos(math.pi * min(t / total, 1.0))) / 2


def multistep(
    t: float, total: float, milestones: Sequence[float], gamma: float
) -> float:
    """`gamma` to the power of the number of milestones that t has reached.

    Args:
        milestones: ascending epochs.
    """
    return gamma ** bisect_right(milestones, t)


def triangular(
    t: float,
    total: float,
    peak: Annotated[float, Field(ge=0, lt=1)],
    final: float = 0.0,
) -> float:
    """Linear 0 → 1 until the share `peak` of training, then linear to `final`.

    The short schedule of airbench (Jordan 2024, arXiv 2404.00498, §3).
    """
    done = min(t / total, 1.0)
    if done < peak:
        return done / peak
    return final + (1 - final) * (1 - done) / (1 - peak)


def one_cycle(
    t: float,
    total: float,
    peak: Annotated[float, Field(gt=0, lt=1)] = 0.3,
    start: float = 0.04,
    final: float = 4e-6,
) -> float:
    """Half cosines `start` → 1 at the share `peak` of training → `final`.

    One cycle (Smith & Topin 2018, arXiv 1708.07120) as torch's `OneCycleLR` has it with
    its defaults, 1/25 and 1/25 × 1e-4, and without its cycle of the momentum.
    """
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


# --- the schedule ------------------------------------------------


class Schedule(LRScheduler):
    """Set every group's rate to its base × warm-up × decay × plateau, once a step.

    Args:
        optimizer: its rates are the base.
        steps_per_epoch: optimizer steps in an epoch; t is steps / steps_per_epoch.
        epochs: length of training.
        decay: (t, epochs) → factor.
        warmup_epochs: length of the warm-up, 0 for none.
        warmup_start: factor at the first step.
        plateau: arguments of torch's `ReduceLROnPlateau` (factor, patience in epochs,
            …), which sees the validation loss, or None.
        plateau_rule: reading of those arguments: `torch`, or `keras`: acts after P bad
            epochs and not P + 1, a fall counts from an absolute `threshold`, a cooldown
            of c epochs waits c − 1.
        overrides_plateau: the rate is set anew by warm-up and decay, where there are
            any, so that a plateau's reduction never acts: Keras's
            `LearningRateScheduler` beside its `ReduceLROnPlateau`.

    Raises:
        UserError: a range; a warm-up longer than training; a decay that is not a finite
            factor >= 0 somewhere in training.  All of it before the first step.
    """

    @validated
    def __init__(
        self,
        optimizer: Optimizer,
        steps_per_epoch: float,
        epochs: float,
        decay: Decay = constant,
        warmup_epochs: NonNegative = 0.0,
        warmup_start: Unit = 0.0,
        plateau: dict[str, Any] | None = None,
        plateau_rule: Literal["torch", "keras"] = "torch",
        overrides_plateau: bool = False,
    ):
        if warmup_epochs > epochs:
            raise UserError(
                f"scheduler.warmup_epochs: expected 0..{epochs:g} (the length of "
                f"training), got {warmup_epochs:g}; scheduler.warmup_epochs=0 is "
                "none, budget.scale=… in place of trainer.max_epochs scales both"
            )
        _check_decay(decay, epochs)
        self._steps_per_epoch = steps_per_epoch
        self._epochs = epochs
        self._decay = decay
        self._warmup = (warmup_epochs, warmup_start)
        self._plateau = (
            None if plateau is None else _make_plateau(plateau, plateau_rule)
        )
        rule = decay.func if isinstance(decay, partial) else decay
        scheduled = warmup_epochs > 0 or rule is not constant
        self._overrides_plateau = overrides_plateau and scheduled
        # torch's rule works on an optimizer of rate 1: that rate is our factor.
        self._reduced: dict[str, Any] = (
            self._plateau.optimizer.param_groups[0] if self._plateau else {"lr": 1.0}
        )
        super().__init__(optimizer)

    def factor(self, step: int) -> float:
        """Return the factor on the base rates at optimizer step `step`, from 0."""
        t = step / self._steps_per_epoch
        decayed = warmup(t, *self._warmup) * self._decay(t, self._epochs)
        return decayed if self._overrides_plateau else decayed * self._reduced["lr"]

    def get_lr(self) -> list[float | torch.Tensor]:
        factor = self.factor(self.last_epoch)
        return [base * factor for base in self.base_lrs]

    def set_rates(self) -> None:
        """Set the optimizer's rates to those of the present step."""
        self._last_lr = self.get_lr()
        groups = self.optimizer.param_groups
        for group, base, lr in zip(groups, self.base_lrs, self._last_lr, strict=True):
            group["lr"], group["initial_lr"] = lr, base

    def observe(self, val_loss: float) -> None:
        """Show the plateau rule an epoch's validation loss."""
        if self._plateau:
            self._plateau.step(val_loss)
            groups = self.optimizer.param_groups
            for group, lr in zip(groups, self.get_lr(), strict=True):
                group["lr"] = lr

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {"last_epoch": self.last_epoch}
        if self._plateau:
            state["plateau"] = self._plateau.state_dict()
            state["plateau_factor"] = self._reduced["lr"]
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        check_value("Schedule.last_epoch", state["last_epoch"], Natural)
        self.last_epoch = state["last_epoch"]
        # Without it (`ckpt_path` of a run with another schedule) the plateau starts.
        if self._plateau and "plateau" in state:
            check_value("Schedule.plateau_factor", state["plateau_factor"], NonNegative)
            self._reduced["lr"] = state["plateau_factor"]
            # The rest of its state are its arguments, which are configured.
            for name in ("best", "num_bad_epochs", "cooldown_counter", "last_epoch"):
                value = state["plateau"][name]
                if not isinstance(value, int | float):  # the best may be infinite
                    raise UserError(f"Schedule.plateau.{name}: got {value!r}")
                setattr(self._plateau, name, value)
        self._last_lr = self.get_lr()


def _check_decay(decay: Decay, epochs: float) -> None:
    if isinstance(decay, partial):
        hints = hints_of(decay.func)
        for name, value in decay.keywords.items():
            check_value(f"scheduler.decay.{name}", value, hints.get(name, Any))
        milestones = decay.keywords.get("milestones", [])
        if any(a >= b for a, b in pairwise(milestones)):
            raise UserError(
                f"scheduler.decay.milestones: expected ascending, got {milestones}"
            )
    for epoch in range(math.ceil(epochs) + 1):
        factor = decay(min(epoch, epochs), epochs)
        if not (math.isfinite(factor) and factor >= 0):
            raise UserError(
                "scheduler.decay: expected a finite factor >= 0 at every epoch, "
                f"got {factor} after {epoch} epochs"
            )


def _make_plateau(options: dict[str, Any], rule: str) -> ReduceLROnPlateau:
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
    if rule == "keras":
        # The epoch that ends a cooldown counts as a bad one already, unlike torch's.
        shorter = {"patience": options.get("patience", 10) - 1}
        shorter["cooldown"] = options.get("cooldown", 0) - 1
        shorter = {name: max(0, epochs) for name, epochs in shorter.items()}
        options = {"threshold_mode": "abs", **options, **shorter}
    try:
        return ReduceLROnPlateau(torch.optim.SGD([torch.zeros(1)], lr=1.0), **options)
    except (TypeError, ValueError) as error:
        raise UserError(f"scheduler.plateau: {error}") from None
