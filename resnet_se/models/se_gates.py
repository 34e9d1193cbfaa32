"""The channel gates of a trained network: values, replacement, moments; Grad-CAM.

* gates by class, and accuracy without them: Hu et al. 2018, arXiv 1709.01507, §7
* Grad-CAM: Selvaraju et al. 2017, arXiv 1610.02391, §3

Axes: N images, B of a batch, C channels of a block, K classes.  A gate (N, C) holds the
factors of the channels for each image, of an SE block or another kind of channel gate.
Networks are in eval mode.  The gates themselves, as layers, are in `attention`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnet_se.models.attention import ChannelGate, StaticExcite
from resnet_se.models.resnet import ResNet
from resnet_se.utils.errors import UserError


def se_blocks(net: nn.Module) -> dict[str, ChannelGate]:
    """Return {name: SE block, or another channel gate}, from the input to the output.

    Raises:
        UserError: there are none.
    """
    blocks = {n: m for n, m in net.named_modules() if isinstance(m, ChannelGate)}
    if not blocks:
        raise UserError("this network has no SE blocks, and so no gates to look at")
    return blocks


def all_static(net: nn.Module) -> bool:
    """Return True where every gate is a constant, and there are gates."""
    blocks = [m for m in net.modules() if isinstance(m, ChannelGate)]
    return bool(blocks) and all(isinstance(m, StaticExcite) for m in blocks)


class Stage(NamedTuple):
    """The names of a stage's SE blocks, and of its last block as a whole."""

    gates: list[str]
    last: str


def stages(net: nn.Module) -> list[Stage]:
    """Return the stages of a `ResNet`; in other networks all SE blocks are one."""
    names = list(se_blocks(net))
    if not isinstance(net, ResNet):
        return [Stage(names, names[-1])]
    result, end = [], 0
    for depth in net.depths:
        start, end = end, end + depth
        gates = [n for n in names if start <= int(n.split(".")[1]) < end]
        result.append(Stage(gates, f"blocks.{end - 1}"))
    return result


# --- values and replacement --------------------------------------


@torch.inference_mode()
def gate_values(net: nn.Module, batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """Return {name of an SE block: its gates (N, C), on the CPU}, by one pass.

    Args:
        batches: normalised images (B, 3, H, W) each, N in all.

    Raises:
        UserError: the network has no SE blocks.
    """
    blocks = se_blocks(net)
    parts: dict[str, list[Tensor]] = {name: [] for name in blocks}
    hooks = [
        block.register_forward_pre_hook(
            lambda block, x, part=parts[name]: part.append(block.gate(x[0]).cpu())
        )
        for name, block in blocks.items()
    ]
    try:
        for images in batches:
            net(images)
    finally:
        for hook in hooks:
            hook.remove()
    with torch.inference_mode(False):  # ordinary tensors
        return {n: torch.cat(part).float().clone() for n, part in parts.items()}


@contextmanager
def set_gates(net: nn.Module, gates: Mapping[str, Tensor]) -> Iterator[None]:
    """Have the SE blocks of these names multiply by gates (C,) or (B, C) meanwhile."""
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
    """Return logits (N, K), on the CPU, with other gates in some SE blocks.

    Args:
        batches: normalised images (B, 3, H, W) each, N in all.
        gates: {name of an SE block: (C,) or (N, C)}.
    """
    parts: list[Tensor] = []
    start = 0
    for images in batches:
        end = start + len(images)
        batch = {n: g[start:end] if g.ndim == 2 else g for n, g in gates.items()}
        with set_gates(net, {n: g.to(images.device) for n, g in batch.items()}):
            parts.append(net(images).float().cpu())
        start = end
    with torch.inference_mode(False):
        return torch.cat(parts).clone()


def with_modules(net: nn.Module, modules: Mapping[str, nn.Module]) -> nn.Module:
    """Return a copy with other modules under these names."""
    net = copy.deepcopy(net)
    for name, module in modules.items():
        net.set_submodule(name, module)
    return net


def without_gates(net: nn.Module) -> nn.Module:
    """Return a copy whose SE blocks are identities."""
    return with_modules(net, {name: nn.Identity() for name in se_blocks(net)})


# --- moments -----------------------------------------------------


def class_means(values: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Return the mean gate of each class (K, C); that of all where it has no images.

    Args:
        values: gates (N, C).
        labels: (N,), int64.
    """
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
        """E[m_c²] / E[g²], the share that does not depend on the image."""
        return self.scalar + self.per_channel

    def between_classes(self, images: int, classes: int) -> float:
        """Return the share of the variance over images, Σ_c Var(g_c), between classes.

        Means of few images differ by chance: that part is taken off (ε², Kelley 1935),
        so that the share does not depend on how many images were looked at.

        Args:
            images: N that the shares are of;  classes: K that have some.

        Returns:
            NaN where nothing varies, or no class has two images.
        """
        varying = self.per_class + self.residual
        # Below, the rounding of a mean in float64 is all that varies.
        if varying <= 1e-20 or images <= classes:
            return float("nan")
        chance = self.residual * (classes - 1) / (images - classes)
        return max(0.0, self.per_class - chance) / varying


def moment_shares(
    values: Iterable[Tensor], labels: Tensor, num_classes: int
) -> MomentShares:
    """Return the shares of one or several blocks' gates (N, C) together.

    By population variances, of which `between_classes` takes off what is chance.

    Args:
        labels: (N,), int64.
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
    """Return maps (B, H, W) in 0..1 of the evidence for a class.

    With the layer's output A and w = d logit / d A averaged over h and w, a map is
    relu(Σ_c w_c A_c), resized bilinearly and divided by its largest value; all zeros
    where no w_c A_c is positive.

    Args:
        images: normalised, (B, 3, H, W).
        layer: name of a module with outputs (B, C, h, w), such as a `Stage.last`.
        target: a class of each image (B,).
    """
    leaves: list[Tensor] = []

    def cut(_: nn.Module, __: tuple[Tensor], output: Tensor) -> Tensor:
        # A leaf: parameters need no gradients, and the layers before it no graph.
        leaves.append(output.detach().requires_grad_())
        return leaves[-1].clone()  # later layers may work in place

    hook = net.get_submodule(layer).register_forward_hook(cut)
    try:
        logits = net(images.clone())  # (B, K); inference mode's tensors have no graph
    finally:
        hook.remove()
    score = logits.gather(1, target.clone()[:, None]).sum()
    (gradient,) = torch.autograd.grad(score, leaves[0])  # (B, C, h, w)
    weights = gradient.mean(dim=(2, 3), keepdim=True)  # (B, C, 1, 1)
    maps = F.relu((weights * leaves[0].detach()).sum(1, keepdim=True))  # (B, 1, h, w)
    size = list(images.shape[-2:])
    maps = F.interpolate(maps, size, mode="bilinear", align_corners=False)[:, 0]
    return maps / maps.amax(dim=(1, 2), keepdim=True).clamp_min(1e-12)  # (B, H, W)
