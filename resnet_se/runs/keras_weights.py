"""Weights of Keras in a network of PyTorch, and the other way.

A file keeps layers by class and position, conv2d, conv2d_1, …, and kernels as
(h, w, in, out).  They are matched with a `ResNet` by the order of the graph and by
shape: 3×3 convolutions in the order of the blocks, 1×1 ones are the projections, each
BatchNorm is that of the convolution before it, and dense layers are squeeze and excite
of each block, then the head.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from resnet_se.runs.keras_file import ABOUT, KINDS, KerasFile, Layer
from resnet_se.utils.errors import UserError

KERAS_NAMES = {
    nn.Conv2d: "conv2d",
    nn.BatchNorm2d: "batch_normalization",
    nn.Linear: "dense",
}
# Axes by the number of them: (out, in, h, w) to (h, w, in, out), and back.
TO_KERAS = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}
FROM_KERAS = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}


def state_of(file: KerasFile, net: nn.Module) -> dict[str, Tensor]:
    """Return the state of `net` that a file's layers are.

    Raises:
        UserError: another number of layers, or a layer of another shape.
    """
    modules = list(net.named_modules())
    convs = [(n, m) for n, m in modules if isinstance(m, nn.Conv2d)]
    denses = [(n, m) for n, m in modules if isinstance(m, nn.Linear)]
    of_kind = {
        kind: [layer for layer in file.layers if layer.kind == kind]
        for kind in KINDS.values()
    }
    matches: dict[str, Layer] = {}
    for words, point in (("convolutions of 1×1", True), ("larger convolutions", False)):
        own = [(n, m) for n, m in convs if (m.kernel_size == (1, 1)) == point]
        found = [
            layer
            for layer in of_kind["convolution"]
            if (layer.arrays[0].shape[:2] == (1, 1)) == point
        ]
        matches |= _paired(file.path, words, own, found)
    matches |= _paired(file.path, "dense layers", denses, of_kind["dense"])
    norms = _norms_of_convolutions(modules)
    file_norms = of_kind["BatchNorm"]
    if len(norms) != len(file_norms):
        raise UserError(
            f"{file.path}: expected {len(norms)} BatchNorms, got {len(file_norms)}"
        )
    # Where no graph says it: BatchNorms lie in the order of their convolutions.
    after = {layer.after: layer for layer in file_norms if layer.after}
    if len(after) != len(file_norms):
        names = [layer.name for layer in of_kind["convolution"]]
        after = dict(zip(names, file_norms, strict=False))
    for name, conv in norms.items():
        layer = after.get(matches[conv].name)
        if layer is None:
            raise UserError(
                f"{file.path}: no BatchNorm follows {matches[conv].name} ({conv})"
            )
        matches[name] = layer
    state, by_name = net.state_dict(), dict(modules)
    for name, layer in matches.items():
        state |= _tensors(file.path, name, by_name[name], layer)
    return state


def write(path: Path, net: nn.Module, about: Mapping[str, Any] | None = None) -> None:
    """Write a `ResNet`'s weights as Keras 3's `save_weights` does (`.weights.h5`).

    They load into the same network built in Keras, to which the file does not say
    padding and epsilon (experiments/keras/network.py builds it).

    Args:
        about: classes, size, mean and std; with padding and epsilon they are written
            into an attribute, for `read` here.

    Raises:
        UserError: h5py is missing, or a layer is none that Keras's files have here.
    """
    try:
        import h5py
    except ImportError:
        raise UserError(
            "format=keras: h5py is not installed; uv sync --extra keras"
        ) from None
    counts: dict[str, int] = {}
    with h5py.File(path, "w") as file:
        if about is not None:
            file.attrs[ABOUT] = json.dumps({**about, **_settings(net)})
        for name, module in net.named_modules():
            tensors = [
                tensor
                for key, tensor in module.state_dict().items()
                if "." not in key and key != "num_batches_tracked"
            ]
            if not tensors:
                continue
            stem = next(
                (KERAS_NAMES[c] for c in KERAS_NAMES if isinstance(module, c)), ""
            )
            if not stem:
                raise UserError(
                    f"format=keras: {name} ({type(module).__name__}) has no counterpart"
                )
            number = counts[stem] = counts.get(stem, -1) + 1
            group = f"layers/{stem}_{number}" if number else f"layers/{stem}"
            for i, tensor in enumerate(tensors):
                values = tensor.float().cpu().numpy()
                values = values.transpose(TO_KERAS[values.ndim])
                file[f"{group}/vars/{i}"] = np.ascontiguousarray(values)


def _settings(net: nn.Module) -> dict[str, Any]:
    """Return the arguments of `ResNet` that weights do not show."""
    convs = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    # `same` pads by the size of the input, in `forward`.
    bare = any(max(m.kernel_size) > 1 and not any(m.padding) for m in convs)
    epsilons = [m.eps for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    return {"padding": "same" if bare else "symmetric", "bn_eps": epsilons[0]}


def _paired(
    path: Path, words: str, own: list[tuple[str, Any]], found: list[Layer]
) -> dict[str, Layer]:
    if len(own) != len(found):
        raise UserError(f"{path}: expected {len(own)} {words}, got {len(found)}")
    return {name: layer for (name, _), layer in zip(own, found, strict=True)}


def _norms_of_convolutions(modules: list[tuple[str, nn.Module]]) -> dict[str, str]:
    """Return the name of each BatchNorm with that of the convolution before it."""
    pairs, last = {}, ""
    for name, module in modules:
        if isinstance(module, nn.Conv2d):
            last = name
        elif isinstance(module, nn.BatchNorm2d):
            pairs[name] = last
    return pairs


def _tensors(
    path: Path, name: str, module: nn.Module, layer: Layer
) -> dict[str, Tensor]:
    """Return a module's tensors from a layer's arrays, checked before they are read."""
    expected = {
        key: tuple(tensor.shape)
        for key, tensor in module.state_dict().items()
        if key != "num_batches_tracked"  # of PyTorch's BatchNorm alone
    }
    if len(expected) != len(layer.arrays):
        raise UserError(
            f"{path}: {layer.name}: expected {len(expected)} arrays ({name}: "
            f"{', '.join(expected)}), got {len(layer.arrays)}"
        )
    state = {}
    # PyTorch's order as Keras's: weight, bias, running mean, running variance.
    for (key, shape), array in zip(expected.items(), layer.arrays, strict=True):
        moved = FROM_KERAS[len(array.shape)]
        got = tuple(array.shape[axis] for axis in moved)
        if got != shape:
            raise UserError(
                f"{path}: {layer.name}: expected {shape} for {name}.{key}, got {got}: "
                "a file of another architecture"
            )
        values = np.ascontiguousarray(np.transpose(array[()], moved))
        state[f"{name}.{key}"] = torch.from_numpy(values)
    return state
