"""Optimizers over parameter groups, which are selected by the number of dimensions."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from resnet_se.utils.errors import UserError, nearest


def make_optimizer(
    net: nn.Module,
    cls: type[Optimizer],
    *,
    lr: float,
    weight_decay: float = 0.0,
    decay_norm_and_bias: bool = True,
    norm_bias_lr: float = 1.0,
    **options: Any,
) -> Optimizer:
    """`cls` over `net`'s parameters, optionally without decay on vectors.

    Args:
        lr: base learning rate, > 0.
        weight_decay: ≥ 0; for SGD and Adam the L2 penalty, for AdamW decoupled.
        decay_norm_and_bias: whether BatchNorm's parameters and biases (all of `ndim` 1)
            are decayed too.
        norm_bias_lr: factor on the rate of BatchNorm's biases, > 0; their decay is
            divided by it, so that they shrink as the others do (Jordan 2024, arXiv
            2404.00498, §3, where it is 64).
        options: further arguments of `cls`.

    Raises:
        UserError: a range, or an option that `cls` does not have.
    """
    if not 0 < lr < math.inf:
        raise UserError(f"optimizer.lr: expected a positive number, got {lr!r}")
    if not weight_decay >= 0:
        raise UserError(f"optimizer.weight_decay: expected >= 0, got {weight_decay}")
    if not 0 < norm_bias_lr < math.inf:
        raise UserError(
            f"optimizer.norm_bias_lr: expected a positive number, got {norm_bias_lr}"
        )
    known = inspect.signature(cls).parameters
    for name in options:
        if name not in known:
            raise UserError(
                f"optimizer.{name}: {cls.__name__} has no such argument; "
                f"{nearest(name, known)}"
            )
    norms = (m for m in net.modules() if isinstance(m, nn.BatchNorm2d))
    faster = {m.bias for m in norms if norm_bias_lr != 1}
    parameters = [p for p in net.parameters() if p.requires_grad and p not in faster]
    decay = weight_decay if decay_norm_and_bias else 0.0
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": decay},
    ]
    if faster:
        groups.append(
            {
                "params": [p for p in net.parameters() if p in faster],
                "weight_decay": decay / norm_bias_lr,
                "lr": lr * norm_bias_lr,
            }
        )
    try:
        return cls(groups, lr=lr, **options)  # type: ignore[call-arg]
    except (TypeError, ValueError) as error:
        raise UserError(f"optimizer: {cls.__name__}: {error}") from None


def check_state(optimizer: Optimizer, fresh: Optimizer) -> None:
    """Refuses a loaded state that a fused step would read beyond its end.

    Such a step takes a parameter's number of values from each tensor, whatever it
    holds; what is not fused looks for itself.

    Args:
        fresh: the same optimizer of a copy of the network; it takes a step.

    Raises:
        UserError: a tensor of another shape than this optimizer makes.
    """
    if not any(group.get("fused") for group in optimizer.param_groups):
        return
    theirs = [p for group in optimizer.param_groups for p in group["params"]]
    ours = [p for group in fresh.param_groups for p in group["params"]]
    for p in ours:
        p.grad = torch.zeros_like(p)
    fresh.step()
    for a, b in zip(theirs, ours, strict=True):
        for name, value in optimizer.state[a].items():
            expected = fresh.state[b].get(name)
            expected = b if expected is None else expected
            if isinstance(value, Tensor) and _layout(value) != _layout(expected):
                raise UserError(
                    f"optimizer: the checkpoint's {name} of a parameter has another "
                    f"shape than {type(optimizer).__name__} makes: expected "
                    f"{tuple(expected.shape)}, got {tuple(value.shape)}"
                )


def _layout(tensor: Tensor) -> tuple:
    """What a kernel takes for granted."""
    stored = tensor.untyped_storage().nbytes() >= tensor.nbytes
    return tensor.shape, tensor.is_floating_point(), tensor.layout, stored
