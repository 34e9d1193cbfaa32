"""What the gates of a trained SE network do: watched, taken apart, replaced; Grad-CAM.

* what gates say of classes, and what is left without it: Hu et al. 2018, arXiv
  1709.01507, §7
* Grad-CAM: Selvaraju et al. 2017, arXiv 1610.02391, §3

Axes: N images, B of a batch, C channels of a block, K classes.  A gate (N, C) is what
an SE block multiplies its channels with, a number in (0, 1) for each image.  Networks
are in eval mode; which images are of which class is for the caller to know.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnet_se.models.layers import SqueezeExcite
from resnet_se.models.resnet import ResNet
from resnet_se.utils.errors import UserError


def se_blocks(net: nn.Module) -> dict[str, SqueezeExcite]:
    """{name: SE block}, from the input to the output.

    Raises:
        UserError: there are none.
    """
    blocks = {n: m for n, m in net.named_modules() if isinstance(m, SqueezeExcite)}
    if not blocks:
        raise UserError("this network has no SE blocks, and so no gates to look at")
    return blocks


class Stage(NamedTuple):
    """One stage: the names of its SE blocks, and of its last block as a whole."""

    gates: list[str]
    last: str


def stages(net: nn.Module) -> list[Stage]:
    """The stages of a `ResNet`; of another network all of its SE blocks are one."""
    names = list(se_blocks(net))
    if not isinstance(net, ResNet):
        return [Stage(names, names[-1])]
    result, first = [], 0
    for depth in net.depths:
        own = {str(i) for i in range(first, first + depth)}
        first += depth
        gates = [name for name in names if name.split(".")[1] in own]
        result.append(Stage(gates, f"blocks.{first - 1}"))
    return result


# --- watching and replacing --------------------------------------


@torch.inference_mode()
def gate_values(net: nn.Module, batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """{name of an SE block: its gates (N, C), on the CPU}, in one pass.

    Args:
        batches: normalised images (B, 3, H, W) each, N in all.

    Raises:
        UserError: the network has no SE blocks.
    """
    seen: dict[str, list[Tensor]] = {name: [] for name in se_blocks(net)}
    hooks = [
        block.register_forward_pre_hook(
            lambda block, x, kept=seen[name]: kept.append(block.gate(x[0]).cpu())
        )
        for name, block in se_blocks(net).items()
    ]
    try:
        for images in batches:
            net(images)
    finally:
        for hook in hooks:
            hook.remove()
    # Outside of inference mode again: ordinary tensors.
    with torch.inference_mode(False):
        return {n: torch.cat(parts).float().clone() for n, parts in seen.items()}


@contextmanager
def set_gates(net: nn.Module, gates: Mapping[str, Tensor]) -> Iterator[None]:
    """Meanwhile the SE blocks of these names multiply by (C,) or (B, C) given here."""
    hooks = [
        net.get_submodule(name).register_forward_hook(
            lambda _, x, __, gate=gate: x[0] * gate[..., None, None]
        )
        for name, gate in gates.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.inference_mode()
def logits_with_gates(
    net: nn.Module, batches: Iterable[Tensor], gates: Mapping[str, Tensor]
) -> Tensor:
    """Logits (N, K), on the CPU, with these gates, (C,) or (N, C), in place of theirs.

    Args:
        batches: normalised images (B, 3, H, W) each, N in all.
    """
    parts: list[Tensor] = []
    done = 0
    for images in batches:
        rows = slice(done, done + len(images))
        here = {n: g[rows] if g.ndim == 2 else g for n, g in gates.items()}
        with set_gates(net, {n: g.to(images.device) for n, g in here.items()}):
            parts.append(net(images).float().cpu())
        done += len(images)
    with torch.inference_mode(False):
        return torch.cat(parts).clone()


def without_gates(net: nn.Module) -> nn.Module:
    """A copy whose SE blocks pass on what they get."""
    net = copy.deepcopy(net)
    for name in se_blocks(net):
        parent, _, child = name.rpartition(".")
        setattr(net.get_submodule(parent), child, nn.Identity())
    return net


# --- taken apart -------------------------------------------------


def class_means(values: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Gates (N, C) and labels (N,) → the mean of each class (K, C); unseen: of all."""
    members = F.one_hot(labels, num_classes).to(values.dtype)  # (N, K)
    counts = members.sum(0)[:, None]  # (K, 1)
    means = members.T @ values / counts.clamp_min(1)  # (K, C)
    return torch.where(counts > 0, means, values.mean(0))


class MomentShares(NamedTuple):
    """The second moment of gates, E[g²] over images and channels, in four parts.

    With m the mean of all, m_c of a channel and m_kc of a class and channel:

        E[g²] = m² + E[(m_c − m)²] + E[(m_kc − m_c)²] + E[(g − m_kc)²]

    In this order `scalar`, one number for the whole block; `per_channel`, a constant
    for each channel; `per_class`, common to a class; `residual`, which tells apart
    images of one class.  The four shares add up to 1.
    """

    scalar: float
    per_channel: float
    per_class: float
    residual: float

    @property
    def constant(self) -> float:
        """E[m_c²] / E[g²]: what of the gates does not depend on the image."""
        return self.scalar + self.per_channel

    @property
    def between_classes(self) -> float:
        """What of the variance over images, Σ_c Var(g_c), lies between classes."""
        varies = self.per_class + self.residual
        return self.per_class / varies if varies > 0 else float("nan")


def moment_shares(
    values: Iterable[Tensor], labels: Tensor, num_classes: int
) -> MomentShares:
    """Of the gates (N, C) of one or several blocks together, labels (N,).

    Population variances, as they are: with n images of each class, gates that know
    nothing of classes have (K − 1) / N of their variance between them.
    """
    parts = torch.zeros(4, dtype=torch.float64)
    for gates in values:
        g = gates.double()  # (N, C)
        of_channel = g.mean(0)  # (C,)
        of_class = class_means(g, labels, num_classes)[labels]  # (N, C)
        of_all = of_channel.mean()
        squares = [
            of_all**2,
            ((of_channel - of_all) ** 2).mean(),
            ((of_class - of_channel) ** 2).mean(),
            ((g - of_class) ** 2).mean(),
        ]
        parts += g.shape[1] * torch.stack(squares)
    return MomentShares(*(parts / parts.sum()).tolist())


# --- Grad-CAM ----------------------------------------------------


@torch.inference_mode(False)
@torch.enable_grad()
def grad_cam(net: nn.Module, images: Tensor, layer: str, target: Tensor) -> Tensor:
    """Where the evidence for a class lies: (B, H, W) of the images' size, in 0..1.

    A = the layer's output, w = the mean over places of d logit / d A: the map is
    relu(Σ_c w_c A_c), bilinear to the images' size, the largest value of each image 1;
    an image without any evidence has zeros.

    Args:
        images: normalised, (B, 3, H, W).
        layer: name of a module with outputs (B, C, h, w), such as a `Stage.last`.
        target: the class asked about, (B,).
    """
    kept: list[Tensor] = []

    def cut(_: nn.Module, __: tuple, output: Tensor) -> Tensor:
        # A leaf: parameters need no gradients, and what is before no graph.
        kept.append(output.detach().requires_grad_())
        return kept[-1].clone()  # what follows may work in place

    hook = net.get_submodule(layer).register_forward_hook(cut)
    try:
        logits = net(images.clone())  # (B, K); a tensor of inference mode has no graph
    finally:
        hook.remove()
    score = logits.gather(1, target.clone()[:, None]).sum()
    (gradient,) = torch.autograd.grad(score, kept[0])  # (B, C, h, w)
    weights = gradient.mean(dim=(2, 3), keepdim=True)  # (B, C, 1, 1)
    maps = F.relu((weights * kept[0].detach()).sum(1, keepdim=True))  # (B, 1, h, w)
    size = list(images.shape[-2:])
    maps = F.interpolate(maps, size, mode="bilinear", align_corners=False)[:, 0]
    return maps / maps.amax(dim=(1, 2), keepdim=True).clamp_min(1e-12)  # (B, H, W)
