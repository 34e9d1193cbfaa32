"""A network that Keras trained: a preset or arguments of ours, and a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from resnet_se.inference.pretrained import SIZE, Pretrained, build_node, preset_node
from resnet_se.runs import bundle, keras_file
from resnet_se.runs.keras_weights import state_of
from resnet_se.utils.errors import UserError

# Keras's defaults, where a file of weights alone does not say.
DEFAULTS = {"padding": "same", "bn_eps": 1e-3, "bn_momentum": 0.01}
RESTATED = {"padding": "symmetric", "bn_eps": 1e-5, "bn_momentum": 0.1}
RESNET = "resnet_se.models.resnet.ResNet"


def read(source: Path, model: str | Mapping[str, Any] | None) -> Pretrained:
    """Return the network of a Keras file, as `load` says.

    Raises:
        UserError: `model` is missing, or the file is not of that network.
    """
    if model is None:
        raise UserError(
            f"{source}: a Keras file; add model=…, a preset's name such as se_resnet20 "
            "or a mapping of ResNet's arguments"
        )
    file = keras_file.read(source)
    settings = DEFAULTS | file.settings
    if isinstance(model, str):
        node = preset_node(model, settings)
    else:
        node = {"_target_": RESNET, **settings, **model}
    about = file.about or {
        "classes": tuple(str(k) for k in range(file.num_classes)),
        "size": SIZE,
        "mean": torch.zeros(3),
        "std": torch.ones(3),
        "fingerprint": "",
    }
    net = build_node(node, file.num_classes)
    net.load_state_dict(state_of(file, net))
    content = bundle.Content(
        weights=net.state_dict(), config={"model": node}, record=None, **about
    )
    return Pretrained(net, content, source)


def without_defaults(node: Mapping[str, Any]) -> dict[str, Any]:
    """Return a composed `model` node without what presets restate and a file says.

    A value other than `ResNet`'s default has been typed, and stays.
    """
    return {k: v for k, v in node.items() if k not in RESTATED or v != RESTATED[k]}
