"""Convolutions whose padding or gradient is not `nn.Conv2d`'s; weights are the same."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SMALL = 3  # pixels of a side, up to which it pays: experiments/benchmark, "Small maps"


class SameConv2d(nn.Conv2d):
    """A convolution padded as TensorFlow's `same` does, by the size of its input.

    H → ⌈H/stride⌉.  An odd number of padded rows has the greater half below: at stride
    2 on an even side a 3×3 kernel is centred on pixel 2i + 1, PyTorch's padding of one
    on 2i.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) → (B, C, ⌈H/stride⌉, ⌈W/stride⌉)."""
        pads: list[int] = []
        sides = zip(
            x.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True
        )
        for n, kernel, stride in sides:  # the last axis first, as F.pad counts
            rest = max(0, (-(-n // stride) - 1) * stride + kernel - n)
            pads += [rest // 2, rest - rest // 2]
        return F.conv2d(F.pad(x, pads), self.weight, self.bias, self.stride)


class SmallMapConv2d(nn.Conv2d):
    """A convolution that trains faster on a CPU where its maps are small.

    oneDNN takes longer for the gradient of 256 × 256 kernels on maps of 2×2 or 3×3
    than the products of matrices that it consists of.  The padding is
    k // 2 of an odd k, so that a map keeps its size at stride 1.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) → (B, C, ⌈H/stride⌉, ⌈W/stride⌉)."""
        if torch.compiler.is_compiling() or not self._is_faster(x):
            return super().forward(x)
        weight = self.weight
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
            x, weight = x.to(dtype), weight.to(dtype)
        return _SmallMapConvolution.apply(x, weight)

    def _is_faster(self, x: Tensor) -> bool:
        return (
            x.device.type == "cpu"
            and max(x.shape[2:]) <= SMALL
            and self.stride == (1, 1)
            and self.bias is None
            and self.weight.requires_grad
            and torch.is_grad_enabled()
        )


class _SmallMapConvolution(torch.autograd.Function):
    """Of odd square kernels k × k, padded by k // 2 at stride 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, padding=weight.shape[-1] // 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor]:
        [grad] = grads
        x, weight = ctx.saved_tensors
        of_x = None
        if ctx.needs_input_grad[0]:
            padding = [weight.shape[-1] // 2] * 2
            of_x = torch.ops.aten.convolution_backward(
                grad, x, weight, None, [1, 1], padding, [1, 1], False, [0, 0], 1,
                [True, False, False],
            )[0]  # fmt: skip
        return of_x, _weight_gradient(x, grad, weight.shape[-1])


def _weight_gradient(x: Tensor, grad: Tensor, kernel: int) -> Tensor:
    """(B, C_in, H, W), (B, C, H, W) → (C, C_in, k, k), channels last.

    The kernel's number (i, j) has met the pixels i − k // 2 below and j − k // 2 to the
    right of each of the output's that lie in the map.
    """
    channels, (height, width) = grad.shape[1], x.shape[2:]
    x, grad = x.permute(0, 2, 3, 1), grad.permute(0, 2, 3, 1)
    gradient = x.new_zeros(channels, kernel, kernel, x.shape[3])
    for i in range(kernel):
        rows, x_rows = _overlap(i - kernel // 2, height)
        for j in range(kernel):
            columns, x_columns = _overlap(j - kernel // 2, width)
            met = grad[:, rows, columns].flatten(0, 2), x[:, x_rows, x_columns]
            gradient[:, i, j] = met[0].T @ met[1].flatten(0, 2)
    return gradient.permute(0, 3, 1, 2)


def _overlap(shift: int, side: int) -> tuple[slice, slice]:
    """The places of 0 … side − 1 whose shifted ones are there too, and those."""
    start = min(max(0, -shift), side)
    stop = max(start, min(side, side - shift))
    return slice(start, stop), slice(start + shift, stop + shift)
