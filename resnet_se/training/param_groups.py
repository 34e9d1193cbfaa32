"""Optimizers, over groups of parameters selected by dimensions and kind of module."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from resnet_se.runs.checkpoint import OPTIMIZER
from resnet_se.utils.errors import UserError, nearest
from resnet_se.utils.validation import NonNegative, Positive, validated


@validated
def make_optimizer(
    net: nn.Module,
    cls: type[Optimizer],
    *,
    lr: Positive,
    weight_decay: NonNegative = 0.0,
    decay_norm_and_bias: bool = True,
    norm_bias_lr: Positive = 1.0,
    penalty: Literal["decay", "l2"] = "decay",
    epsilon: Literal["inside", "outside"] = "inside",
    **options: Any,
) -> Optimizer:
    """Return a `cls` over `net`'s trainable parameters, optionally sparing vectors.

    Args:
        lr: base learning rate.
        weight_decay: for SGD and Adam the L2 penalty, for AdamW decoupled.
        penalty: reading of `weight_decay`, λ: `decay` is torch's, a gradient of λw on
            all parameters; `l2` Keras's `L2(λ)`, a penalty of λ Σ w² on kernels alone:
            a gradient of 2 λw, and part of the validation loss (`l2_penalty`).
        epsilon: of Adam, inside the bias correction as torch has it, or `outside` as
            Keras, where first steps are shorter; other optimizers ignore it.
        decay_norm_and_bias: decay BatchNorm's parameters and biases (`ndim` 1) as well.
        norm_bias_lr: factor on the rate of BatchNorm's biases; their decay is divided
            by it, so that they shrink as the others do (Jordan 2024, arXiv 2404.00498,
            §3, where it is 64).
        options: further arguments of `cls`.

    Raises:
        UserError: a value out of its range, or an option that `cls` does not have.
    """
    known = inspect.signature(cls).parameters
    for name in options:
        if name not in known:
            raise UserError(
                f"optimizer.{name}: {cls.__name__} has no such argument; "
                f"{nearest(name, known)}"
            )
    if penalty == "l2":
        if issubclass(cls, torch.optim.AdamW):
            raise UserError(
                "optimizer.penalty: expected decay with AdamW, whose decay is no part "
                "of the gradient, got l2"
            )
        weight_decay, decay_norm_and_bias = 2 * weight_decay, False
    norms = (m for m in net.modules() if isinstance(m, nn.BatchNorm2d))
    faster = {m.bias for m in norms if norm_bias_lr != 1}
    others = [p for p in net.parameters() if p.requires_grad and p not in faster]
    decay = weight_decay if decay_norm_and_bias else 0.0
    groups: list[dict[str, Any]] = [
        {"params": [p for p in others if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in others if p.ndim <= 1], "weight_decay": decay},
    ]
    if faster:
        groups.append(
            {
                "params": [p for p in net.parameters() if p in faster],
                "weight_decay": decay / norm_bias_lr,
                "lr": lr * norm_bias_lr,
            }
        )
    if penalty == "l2":
        groups[0]["l2"] = weight_decay / 2
    make: Any = cls  # each optimizer of torch has a signature of its own
    try:
        optimizer: Optimizer = make(groups, lr=lr, **options)
    except (TypeError, ValueError) as error:
        raise UserError(f"optimizer: {cls.__name__}: {error}") from None
    if epsilon == "outside" and isinstance(optimizer, torch.optim.Adam):
        optimizer.register_step_pre_hook(_EpsilonOutside(optimizer))
    if cls is torch.optim.SGD:
        _begin_momentum(optimizer)
    return optimizer


class _EpsilonOutside:
    """Adam's step with epsilon outside the bias correction, as a hook before each step.

    Keras divides m̂ by √v / √(1 − β₂ᵗ) + ε / √(1 − β₂ᵗ), torch by √v / √(1 − β₂ᵗ) + ε
    (Kingma & Ba 2015, arXiv 1412.6980, §2, print both).  t is counted in the group
    and kept in checkpoints: reading Adam's own would wait for the device.
    """

    def __init__(self, optimizer: Optimizer):
        self.eps = [group["eps"] for group in optimizer.param_groups]

    def __call__(self, optimizer: Optimizer, *_: Any) -> None:
        for group, eps in zip(optimizer.param_groups, self.eps, strict=True):
            group["steps"] = group.get("steps", 0) + 1
            group["eps"] = eps / math.sqrt(1 - group["betas"][1] ** group["steps"])


@torch.no_grad()
def l2_penalty(optimizer: Optimizer) -> float:
    """Return λ Σ w² over the kernels that `penalty=l2` decays, 0 for other ones."""
    total = 0.0
    for group in optimizer.param_groups:
        if group.get("l2"):
            squares = torch.stack([p.float().square().sum() for p in group["params"]])
            total += group["l2"] * float(squares.sum())
    return total


def _begin_momentum(optimizer: Optimizer) -> None:
    """Give a fused SGD every buffer from the start, or where that differs, no fusing.

    torch's kernel fails where one parameter has its first gradient later than another
    (a block that stochastic depth leaves out), and a first step that a scaler skips
    leaves its buffers unwritten memory.  A buffer of zeros makes the same first step,
    but with dampening, which torch leaves out of it.
    """
    for group in optimizer.param_groups:
        if group["fused"] and group["momentum"]:
            if group["dampening"]:
                group["fused"] = False
                continue
            for p in group["params"]:
                optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)


def set_mode(optimizer: Optimizer, training: bool) -> None:
    """Switch a schedule-free optimizer between its training and evaluation weights.

    It trains one sequence of weights and is tested on an average of it (Defazio et al.
    2024, arXiv 2405.15682); others have no modes.
    """
    switch = getattr(optimizer, "train" if training else "eval", None)
    if callable(switch):
        switch()


@contextmanager
def averaged(optimizers: Iterable[Optimizer]) -> Iterator[None]:
    """The body sees the weights that are tested, which a checkpoint keeps."""
    modes = [o for o in optimizers if callable(getattr(o, "eval", None))]
    training = [o for o in modes if o.param_groups[0].get("train_mode", True)]
    for optimizer in training:
        set_mode(optimizer, training=False)
    yield
    for optimizer in training:
        set_mode(optimizer, training=True)


def check_donor(checkpoint: dict[str, Any], fresh: Optimizer) -> None:
    """Refuse another run's checkpoint whose optimizer is of another class.

    Args:
        fresh: the optimizer that is to take over its state.

    Raises:
        UserError: its class, its parameters or its state are other than `fresh`'s.
    """
    states = checkpoint.get("optimizer_states") or [None]
    own = type(fresh).__name__
    donor = checkpoint.get(OPTIMIZER, own)
    hint = "to start from its weights alone: ckpt_path=null init_from=…"
    if donor != own:
        raise UserError(f"ckpt_path: its optimizer is {donor}, not {own}; {hint}")
    groups = states[0]["param_groups"] if isinstance(states[0], dict) else []
    sizes = [len(group["params"]) for group in groups]
    expected = [len(group["params"]) for group in fresh.param_groups]
    # Of an earlier version, whose checkpoints do not name the class, its settings tell;
    # `initial_lr` is the schedule's.
    keys = {key for group in groups for key in group} - {"initial_lr"}
    foreign = keys - {key for group in fresh.param_groups for key in group}
    foreign = set() if OPTIMIZER in checkpoint else foreign
    if sizes != expected or foreign:
        why = (
            f"no {own} has {min(foreign)}"
            if foreign
            else f"groups of {sizes} parameters, not {expected}"
        )
        raise UserError(f"ckpt_path: another optimizer's state: {why}; {hint}")


def set_anew(optimizer: Optimizer, fresh: Optimizer) -> None:
    """Set the settings of every group to those of `fresh`; the state stays.

    A checkpoint's settings come with its state: those asked for would be forgotten.
    """
    for group, asked in zip(optimizer.param_groups, fresh.param_groups, strict=True):
        group |= {key: value for key, value in asked.items() if key != "params"}


def check_state(optimizer: Optimizer, fresh: Optimizer) -> None:
    """Refuse a loaded state whose tensors a fused step would read beyond their end.

    Such a step takes a parameter's number of values from each tensor, whatever it
    holds; a step that is not fused checks the shapes itself.

    Args:
        fresh: the same optimizer of a copy of the network; it takes a step.

    Raises:
        UserError: a tensor of another shape than this optimizer makes.
    """
    if not any(group.get("fused") for group in optimizer.param_groups):
        return
    loaded = [p for group in optimizer.param_groups for p in group["params"]]
    reference = [p for group in fresh.param_groups for p in group["params"]]
    for p in reference:
        p.grad = torch.zeros_like(p)
    fresh.step()
    for parameter, own in zip(loaded, reference, strict=True):
        for name, value in optimizer.state[parameter].items():
            expected = fresh.state[own].get(name)
            expected = own if expected is None else expected
            if isinstance(value, Tensor) and _layout(value) != _layout(expected):
                raise UserError(
                    f"optimizer: the checkpoint's {name} of a parameter has another "
                    f"shape than {type(optimizer).__name__} makes: expected "
                    f"{tuple(expected.shape)}, got {tuple(value.shape)}"
                )


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    """Return the properties of a tensor that a fused kernel takes for granted."""
    stored = tensor.untyped_storage().nbytes() >= tensor.nbytes
    return tensor.shape, tensor.is_floating_point(), tensor.layout, stored
