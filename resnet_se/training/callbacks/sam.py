"""Sharpness-aware minimisation: the gradient where the loss near the weights is worst.

* SAM: Foret et al. 2021, arXiv 2010.01412;  ASAM: Kwon et al. 2021, arXiv 2102.11600
* every k-th step alone: Liu et al. 2022, arXiv 2203.02714, without their reuse between

For any optimizer: a hook gives its `step` a closure of two forward and backward passes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.optim import Optimizer

from resnet_se.utils.errors import UserError
from resnet_se.utils.validation import Count, Positive, validated

ETA = 0.01  # Kwon et al.'s, added to |w|


@torch.no_grad()
def perturbation(weights: Sequence[Tensor], rho: float, adaptive: bool) -> list[Tensor]:
    """Return ε = ρ g / ‖g‖, or ρ T² g / ‖T g‖, T = |w| + η, of weights w, gradients g.

    Args:
        weights: of any shapes, with `grad`; the norm is over all of them together.
        rho: ρ > 0.
        adaptive: the second form (ASAM), which scales with the weights.
    """
    steps: Any = [p.grad for p in weights]
    scales = [p.abs() + ETA for p in weights] if adaptive else []
    if adaptive:
        steps = torch._foreach_mul(steps, scales)
    norm = torch.stack(torch._foreach_norm(steps)).norm()
    steps = torch._foreach_mul(steps, rho / (norm + 1e-12))
    return list(torch._foreach_mul(steps, scales) if adaptive else steps)


class SAM(L.Callback):
    """Step by the gradient at w + ε (`perturbation`) instead of that at w.

    The second pass sees the batch, the mixing and the dropout of the first; BatchNorm's
    statistics and the training figures are of the first.  On several devices ε is that
    of the mean gradient.

    Args:
        rho: ρ, the radius: about 0.05, for ASAM 0.5.
        adaptive: ASAM.
        every: only each k-th step, beginning with the first; the others are plain.

    Raises:
        UserError: a value out of its range.
    """

    @validated
    def __init__(self, rho: Positive = 0.05, adaptive: bool = False, every: Count = 1):
        self.rho = rho
        self.adaptive = adaptive
        self.every = every

    def check_trainer(self, accumulate: int, precision: str) -> None:
        """Raise UserError where a step is not one batch that can be repeated."""
        if accumulate > 1:
            raise UserError(
                "trainer.accumulate_grad_batches: expected 1 with SAM, whose second "
                "pass would see the last of the batches alone, got "
                f"{accumulate}; make data.batch_size larger"
            )
        if precision == "16-mixed":
            raise UserError(
                "trainer.precision: SAM needs gradients that are not scaled, got "
                "16-mixed; bf16-mixed and 32-true work"
            )

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.buffers = [b for b in module.buffers() if b.is_floating_point()]

        def twice(optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
            if trainer.global_step % self.every:
                return None
            closure = kwargs["closure"]  # Lightning's
            return args, kwargs | {"closure": lambda: self._both(optimizer, closure)}

        self.hook = trainer.optimizers[0].register_step_pre_hook(twice)

    def _both(self, optimizer: Optimizer, closure: Callable[[], Any]) -> Any:
        """Leave the weights unchanged, with the gradients at w + ε."""
        loss = closure()
        groups = optimizer.param_groups
        weights = [p for g in groups for p in g["params"] if p.grad is not None]
        moved = weights + self.buffers
        with torch.no_grad():
            before = [t.clone() for t in moved]
            epsilon = perturbation(weights, self.rho, self.adaptive)
            torch._foreach_add_(weights, epsilon)
        closure()
        with torch.no_grad():
            torch._foreach_copy_(moved, before)
        return loss

    def on_train_end(self, *_: Any) -> None:
        self.hook.remove()
