"""Muon: orthogonalised momentum for convolutions.

Jordan et al. 2024, https://kellerjordan.github.io/posts/muon: the momentum U S Vᵀ of a
matrix is replaced by about U Vᵀ, by a Newton-Schulz iteration of matrix products alone.
As in airbench's short trainings each filter bank is rescaled before its step.  Banks of
one shape, on a CPU small ones alone, are moved by one product
(github.com/pytorch/pytorch/pull/195566).  All other parameters take SGD with Nesterov
momentum, in the same object.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from resnet_se.models.attention import ChannelGate
from resnet_se.utils.errors import UserError
from resnet_se.utils.system import has_bf16
from resnet_se.utils.validation import (
    NonNegative,
    Positive,
    check_value,
    hints_of,
    validated,
)

Momentum = Annotated[float, Field(ge=0, lt=1)]

STEPS = 3
CACHED = 2**16  # numbers; on a CPU two banks of 64 × 576 gain, two of 128 × 1,152 lose
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of s, s³, s⁵: steep at 0, about 1 after that


def orthogonalized(matrices: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return about U Vᵀ (K, M, N) of K matrices U S Vᵀ: singular values near 1.

    Those of at least a tenth of the norm come near 1; zeros stay zeros.

    Args:
        matrices: (K, M, N), of any dtype, which the result has too.
        dtype: of the products; by default bfloat16 where the hardware has it.
    """
    a, b, c = COEFFICIENTS
    if dtype is None:
        dtype = torch.bfloat16 if has_bf16(matrices.device) else torch.float32
    x = matrices.to(dtype)
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)  # no singular value over 1
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    powers = x.new_empty(len(x), x.shape[1], x.shape[1])
    for _ in range(STEPS):
        # In bfloat16 on a CPU a third of the time of `x @ x.mT`; `beta=0` ignores it.
        gram = torch.baddbmm(powers, x, x.mT, beta=0)
        powers = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, powers, x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


def _pays_together(matrix: Tensor) -> bool:
    """One product for many saves time, but where one alone fills the cache."""
    return matrix.device.type != "cpu" or matrix.numel() < CACHED


def _as_matrix(weight: Tensor) -> Tensor:
    """Return a view (out, rest) of a weight (out, …), in the order of its memory.

    Orthogonalisation takes any order of the columns.
    """
    if weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last):
        weight = weight.permute(0, 2, 3, 1)
    return weight.flatten(1)


class Muon(Optimizer):
    """Muon for groups with `matrices`, SGD with Nesterov momentum for the others.

    A weight (out, …) of `matrices` is seen as (out, rest), rescaled to the norm √out,
    and moved by rate × `orthogonalized` momentum; it has no decay.

    Args:
        params: parameters or groups of them, which may set each of the others.
        lr: learning rate.
        momentum: in [0, 1).
        weight_decay: L2, of groups that are no `matrices`.
        matrices: groups are Muon's.

    Raises:
        UserError: a value out of its range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: NonNegative = 0.24,
        momentum: Momentum = 0.6,
        weight_decay: NonNegative = 0.0,
        matrices: bool = True,
    ):
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "matrices": matrices,
        }
        super().__init__(params, defaults)
        for group in self.param_groups:
            for name in defaults:
                check_value(name, group[name], hints_of(Muon)[name])
            if group["matrices"] and any(p.ndim < 2 for p in group["params"]):
                raise UserError("params: a vector among the matrices")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step every parameter that has a gradient; return the closure's loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if weights and group["matrices"]:
                self._orthogonal_step(weights, group)
            elif weights:
                self._sgd_step(weights, group)
        return loss

    def _orthogonal_step(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        by_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
        for weight, moved in zip(weights, self._nesterov(weights, group), strict=True):
            pair = _as_matrix(weight), _as_matrix(moved)
            by_shape.setdefault(pair[0].shape, []).append(pair)
        for (out, _), pairs in by_shape.items():
            matrices, momenta = zip(*pairs, strict=True)
            together = len(momenta) if _pays_together(momenta[0]) else 1
            directions = [
                direction
                for start in range(0, len(momenta), together)
                for direction in orthogonalized(
                    torch.stack(momenta[start : start + together])
                )
            ]
            for p, norm in zip(matrices, torch._foreach_norm(matrices), strict=True):
                p.mul_(math.sqrt(out) / norm.clamp(min=1e-12))
            torch._foreach_add_(matrices, directions, alpha=-group["lr"])

    def _sgd_step(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        moved = self._nesterov(weights, group)
        torch._foreach_add_(weights, moved, alpha=-group["lr"])

    def _nesterov(
        self, weights: list[Tensor], group: dict[str, Any]
    ) -> tuple[Tensor, ...]:
        """Return grad + momentum × m, after m ← momentum × m + grad, decay in grad."""
        grads: Any = [p.grad for p in weights]
        if group["weight_decay"] and not group["matrices"]:
            grads = torch._foreach_add(grads, weights, alpha=group["weight_decay"])
        for p in weights:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        momenta = [self.state[p]["momentum_buffer"] for p in weights]
        torch._foreach_mul_(momenta, group["momentum"])
        torch._foreach_add_(momenta, grads)
        return torch._foreach_add(grads, momenta, alpha=group["momentum"])


@validated
def make_muon(
    net: nn.Module,
    *,
    lr: Positive = 0.24,
    momentum: Momentum = 0.6,
    vector_momentum: Momentum = 0.85,
    weight_decay: NonNegative = 0.0,
    bias_lr: Positive = 1.0,
    se_lr: Positive = 1.0,
    head_lr: Positive = 1.0,
) -> Muon:
    """Return Muon over `net`: each kind of parameter at a rate of its own.

    Args:
        lr: rate of the convolutions' weights and of scales.
        momentum: of the convolutions' weights.
        vector_momentum: of everything else.
        weight_decay: L2 of everything else; divided by the factor on the rate, so that
            all shrink alike.
        bias_lr: factor on the rate for biases of BatchNorm and of convolutions.
        se_lr: factor for all that channel gates learn.
        head_lr: factor for other linear layers.

    Raises:
        UserError: a value out of its range, or a network without convolutions to train.
    """
    matrices, biases, gates, heads, scales = _kinds(net)
    if not matrices:
        raise UserError(
            f"optimizer: Muon trains the weights of convolutions and "
            f"{type(net).__name__} has none to train; add optimizer=sgd"
        )
    groups: list[dict[str, Any]] = [
        {"params": matrices, "momentum": momentum, "matrices": True}
    ]
    factors = ((biases, bias_lr), (gates, se_lr), (heads, head_lr), (scales, 1.0))
    groups += (
        {"params": kind, "lr": lr * factor, "weight_decay": weight_decay / factor}
        for kind, factor in factors
        if kind
    )
    return Muon(groups, lr=lr, momentum=vector_momentum, matrices=False)


def _kinds(net: nn.Module) -> tuple[list[nn.Parameter], ...]:
    """Return the trainable matrices, biases, SE gates, linear layers and scales."""

    def inside(kind: type[nn.Module]) -> set[nn.Parameter]:
        found = (m for m in net.modules() if isinstance(m, kind))
        return {p for module in found for p in module.parameters()}

    gates, linear = inside(ChannelGate), inside(nn.Linear)
    kinds: tuple[list[nn.Parameter], ...] = ([], [], [], [], [])
    for name, parameter in net.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.ndim == 4:
            kind = 0
        elif parameter in gates:
            kind = 2
        elif parameter in linear:
            kind = 3
        else:
            kind = 1 if name.rpartition(".")[2] == "bias" else 4
        kinds[kind].append(parameter)
    return kinds
