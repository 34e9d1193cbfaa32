"""Muon: steps of convolutions whose directions all have about the same size.

Jordan et al. 2024, https://kellerjordan.github.io/posts/muon: the momentum of a matrix
U S Vᵀ is replaced by about U Vᵀ, by a Newton-Schulz iteration, which is matrix products
alone.  As in airbench's short trainings each filter bank is rescaled before its step.
What is no convolution's weight goes by SGD with Nesterov momentum, in the same object.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from resnet_se.models.layers import SqueezeExcite
from resnet_se.utils.errors import UserError
from resnet_se.utils.system import has_bf16

STEPS = 3
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of s, s³, s⁵: steep at 0, about 1 after that


def orthogonalized(matrix: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """About U Vᵀ of a matrix (M, N) = U S Vᵀ: singular values of 0.1 S/|S| up near 1.

    Args:
        matrix: (M, N); zeros stay zeros.
        dtype: of the products; bfloat16 where the hardware has it, by default.  The
            result has the matrix's own.
    """
    a, b, c = COEFFICIENTS
    if dtype is None:
        dtype = torch.bfloat16 if has_bf16(matrix.device) else torch.float32
    x = matrix.to(dtype)
    x = x / (x.norm() + 1e-7)  # no singular value over 1
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.T
    for _ in range(STEPS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if tall else x).to(matrix.dtype)


class Muon(Optimizer):
    """Muon for groups with `matrices`, SGD with Nesterov momentum for the others.

    A weight (out, …) of `matrices` is seen as (out, rest), rescaled to the norm √out,
    and moved by rate × `orthogonalized` momentum; it has no decay.

    Args:
        params: parameters or groups of them.
        lr: rate of groups that name none, >= 0.
        momentum: in [0, 1), of groups that name none.
        weight_decay: >= 0, L2, of groups that are no `matrices` and name none.
        matrices: whether groups that do not say are Muon's.

    Raises:
        ValueError: a range, as torch's own optimizers have it.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.24,
        momentum: float = 0.6,
        weight_decay: float = 0.0,
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
            _check_range("lr", group["lr"])
            _check_range("momentum", group["momentum"], below=1)
            _check_range("weight_decay", group["weight_decay"])
            if group["matrices"] and any(p.ndim < 2 for p in group["params"]):
                raise ValueError("params: a vector among the matrices")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            move = self._orthogonal_step if group["matrices"] else self._sgd_step
            for parameter in group["params"]:
                if parameter.grad is not None:
                    move(parameter, parameter.grad, group)
        return loss

    def _orthogonal_step(self, p: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        direction = orthogonalized(self._nesterov(p, grad, group).flatten(1))
        p.mul_(math.sqrt(len(p)) / p.norm().clamp(min=1e-12))
        p.add_(direction.reshape(p.shape), alpha=-group["lr"])

    def _sgd_step(self, p: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        if group["weight_decay"]:
            grad = grad.add(p, alpha=group["weight_decay"])
        p.add_(self._nesterov(p, grad, group), alpha=-group["lr"])

    def _nesterov(self, p: Tensor, grad: Tensor, group: dict[str, Any]) -> Tensor:
        """m ← momentum × m + grad; grad + momentum × m."""
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p)
        momentum = state["momentum_buffer"].mul_(group["momentum"]).add_(grad)
        return grad.add(momentum, alpha=group["momentum"])


def make_muon(
    net: nn.Module,
    *,
    lr: float = 0.24,
    momentum: float = 0.6,
    vector_momentum: float = 0.85,
    weight_decay: float = 0.0,
    bias_lr: float = 1.0,
    se_lr: float = 1.0,
    head_lr: float = 1.0,
) -> Muon:
    """Muon over `net`: its convolutions by Muon, each other kind at a rate of its own.

    Args:
        lr: rate of the convolutions' weights, > 0, which the others' are factors on.
        momentum: of the convolutions, in [0, 1).
        vector_momentum: of everything else, in [0, 1).
        weight_decay: L2 of everything else, >= 0; divided by the factor on the rate, so
            that all shrink alike.
        bias_lr: factor for biases of BatchNorm and of convolutions, > 0.
        se_lr: factor for the two layers of SE blocks, > 0.
        head_lr: factor for other linear layers, > 0.  Scales have the factor 1.

    Raises:
        UserError: a range, or a network without convolutions to train.
    """
    factors = {"bias_lr": bias_lr, "se_lr": se_lr, "head_lr": head_lr}
    for name, value in {"lr": lr, **factors}.items():
        if not 0 < value < math.inf:
            raise UserError(
                f"optimizer.{name}: expected a positive number, got {value!r}"
            )
    try:
        _check_range("momentum", momentum, below=1)
        _check_range("vector_momentum", vector_momentum, below=1)
        _check_range("weight_decay", weight_decay)
    except ValueError as error:
        raise UserError(f"optimizer.{error}") from None
    kinds = _kinds(net)
    matrices = kinds.pop("matrices")
    if not matrices:
        raise UserError(
            f"optimizer: Muon trains the weights of convolutions and "
            f"{type(net).__name__} has none to train; add optimizer=sgd"
        )
    groups: list[dict[str, Any]] = [
        {"params": matrices, "momentum": momentum, "matrices": True}
    ]
    for kind, parameters in kinds.items():
        factor = factors.get(kind, 1.0)
        decay = weight_decay / factor
        if parameters:
            groups.append(
                {"params": parameters, "lr": lr * factor, "weight_decay": decay}
            )
    return Muon(groups, lr=lr, momentum=vector_momentum, matrices=False)


def _check_range(name: str, value: float, below: float = math.inf) -> None:
    """Raises ValueError unless 0 <= value < below."""
    if not 0 <= value < below:
        raise ValueError(f"{name}: expected 0 <= {name} < {below:g}, got {value!r}")


def _kinds(net: nn.Module) -> dict[str, list[nn.Parameter]]:
    """`net`'s trainable parameters, each once: matrices and what has another rate."""
    kinds: dict[str, list[nn.Parameter]] = {
        "matrices": [],
        "bias_lr": [],
        "se_lr": [],
        "head_lr": [],
        "scales": [],
    }
    gates = {
        p
        for module in net.modules()
        if isinstance(module, SqueezeExcite)
        for p in module.parameters()
    }
    linear = {
        p
        for module in net.modules()
        if isinstance(module, nn.Linear)
        for p in module.parameters()
    }
    for name, parameter in net.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.ndim == 4:
            kind = "matrices"
        elif parameter in gates:
            kind = "se_lr"
        elif parameter in linear:
            kind = "head_lr"
        else:
            kind = "bias_lr" if name.rpartition(".")[2] == "bias" else "scales"
        kinds[kind].append(parameter)
    return kinds
