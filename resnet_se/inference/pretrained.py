"""A trained network in use: built, filled, with its preprocessing beside it.

    model = resnet_se.load("runs/quickstart/seed0-…")  # or a bundle, a folder or .zip
    model.predict("cat.jpg")

Of a run's configuration only `model` is built, and only what is a network.  A bundle
(`bundle`) may be untrusted: its weights are safetensors, its texts JSON, and
its network one of this package's unless `trust=True`.
"""

from __future__ import annotations

import inspect
import os
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose
from hydra.errors import InstantiationException
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2.functional import resize

from resnet_se.config import CONF
from resnet_se.config.compose import as_mapping  # and registers the resolvers of conf/
from resnet_se.config.hydra_versions import with_conf
from resnet_se.config.recipe import Recipe, load_recipe, with_present_targets
from resnet_se.config.targets import build_network, located, value_below
from resnet_se.data.normalisation import normalise
from resnet_se.inference.inputs import from_files, from_memory
from resnet_se.inference.predictions import Predictions
from resnet_se.models.tta import TTA
from resnet_se.runs import bundle, checkpoint
from resnet_se.runs.keras_file import is_keras
from resnet_se.runs.record import read_result
from resnet_se.utils.errors import UserError, nearest
from resnet_se.utils.validation import Count, check_value

SIZE = (32, 32)  # of CIFAR-10, where a run says nothing else

Input = str | Path | Image.Image | np.ndarray | Tensor
TTAChoice = bool | str | Mapping[str, Any] | TTA


class Pretrained(nn.Module):
    """A trained network in eval mode, with its preprocessing.

    Attributes:
        net: normalised images (B, 3, H, W) → logits (B, K).
        classes: the K names, in the order of the logits.
        size: height and width that it was trained on; others are resized to it.
        mean, std: of the training images' channels, in 0..1, (3,) each.
        config: the run's configuration.
        record: the run's `result.json`, or None where it had none yet.
        fingerprint: of the pixels it was trained on.
        source: the run directory or bundle.
        note: a warning for its user (an unfinished run), or None.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        net: nn.Module,
        content: bundle.Content,
        source: Path,
        note: str | None = None,
    ):
        super().__init__()
        self.net = net.to(memory_format=torch.channels_last)
        self.classes = content.classes
        self.size = content.size
        self.register_buffer("mean", content.mean, persistent=False)
        self.register_buffer("std", content.std, persistent=False)
        self.config = content.config
        self.record = content.record
        self.fingerprint = content.fingerprint
        self.source = source
        self.note = note
        self.eval().requires_grad_(False)

    @property
    def experiment(self) -> str:
        """The experiment's name, `network` where there is no record."""
        return str((self.record or {}).get("experiment", "network"))

    @property
    def default_name(self) -> str:
        """`quickstart-seed0-2bd93f94`: of files made from it that nobody named."""
        name = self.source.resolve().name.removesuffix(".zip")
        # The experiment is a text of the record, and no path.
        return re.sub(r"[^\w.,+=-]", "_", f"{self.experiment}-{name}").lstrip(".")

    def preprocess(self, images: Tensor) -> Tensor:
        """Normalise images (B, 3, H, W), uint8 or float in 0..1; resize to `size`."""
        if images.is_floating_point():
            images = images * 255
        if tuple(images.shape[-2:]) != self.size:
            images = resize(images, list(self.size), antialias=True)
        images = normalise(images, self.mean, self.std)
        return images.contiguous(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits (B, K) of images (B, 3, H, W), uint8 or float in 0..1."""
        logits: Tensor = self.net(self.preprocess(images))
        return logits.float()

    @torch.inference_mode()
    def probabilities(self, images: Tensor, tta: TTA | None = None) -> Tensor:
        """Compute probabilities (B, K), the mean over the views of `tta`.

        Raises:
            UserError: the network gives no finite numbers.
        """
        x = self.preprocess(images.to(self.mean.device))
        p = tta(self.net, x) if tta is not None else self.net(x).float().softmax(dim=1)
        if not p.isfinite().all():
            raise UserError(
                f"{self.source}: the network gives no finite numbers for these pictures"
            )
        return p

    def views(self, tta: TTAChoice) -> TTA | None:
        """Return the views of `tta`: true is the run's own, a text one of `conf/tta`.

        Raises:
            UserError: no such name, or the run has none of its own.
        """
        if tta is True:
            own = self.config.get("tta")
            if not (isinstance(own, Mapping) and own.get("views")):
                raise UserError("tta: the run has none of its own; name one: tta=flip")
            return TTA(own["views"])
        if isinstance(tta, str):
            files = {path.stem: path for path in (CONF / "tta").glob("*.yaml")}
            if tta not in files:
                raise UserError(f"tta: unknown {tta!r}; {nearest(tta, files)}")
            tta = as_mapping(OmegaConf.to_container(OmegaConf.load(files[tta])))
        if isinstance(tta, Mapping):
            return TTA(tta["views"]) if tta.get("views") else None
        if isinstance(tta, TTA) or not tta:
            return tta or None
        raise UserError(f"tta: expected true, a name of conf/tta or a TTA, got {tta!r}")

    def predict(
        self,
        inputs: Input | Iterable[Input],
        tta: TTAChoice = False,
        batch_size: int = 256,
    ) -> Predictions:
        """Return labels and probabilities of pictures, in their order.

        Args:
            inputs: one or several of: a path to a picture, a folder, a glob or an
                archive; a PIL image; a uint8 array (H, W), (H, W, C) or (N, H, W, C);
                a tensor (3, H, W) or (N, 3, H, W), uint8 or float in 0..1.  Any size.
            tta: true for the run's own views, a name of `conf/tta`, or a `TTA`.
            batch_size: images in memory at a time, >= 1.

        Raises:
            UserError: a picture that cannot be read, an array of another shape or
                range, nothing at a path.
        """
        check_value("batch_size", batch_size, Count)
        views = self.views(tta)
        names: list[str] = []
        rows: list[Tensor] = []
        items: Any = inputs  # a string and an array are iterable as well
        if isinstance(inputs, str | Path | Image.Image | np.ndarray | Tensor):
            items = [inputs]
        # A list or a generator of single images or files is batched as it comes.
        for of_files, group in groupby(
            items, lambda item: isinstance(item, str | Path)
        ):
            parts = from_files if of_files else from_memory
            for read, images in parts(group, self.size, batch_size):
                names += read or [f"image {len(names) + i}" for i in range(len(images))]
                rows.append(self.probabilities(images, views).cpu())
        if not rows:
            raise UserError("inputs: expected at least one picture, got none")
        # Outside of inference mode again: an ordinary tensor.
        return Predictions(tuple(names), self.classes, torch.cat(rows).clone())


# --- from a name -------------------------------------------------


def build(name: str, num_classes: int = 10, **arguments: Any) -> nn.Module:
    """Build a new network: normalised images (B, 3, H, W) → logits (B, K).

    Args:
        name: of `conf/model`, such as `se_resnet80`.
        num_classes: K, at least 2.
        arguments: of the network, in place of the preset's (`reduction=8`).

    Raises:
        UserError: no such name, an unknown argument or one out of its range.
    """
    return build_node(preset_node(name, arguments), num_classes)


def preset_node(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of a preset with these arguments, as `build`."""
    names = [path.stem for path in (CONF / "model").glob("*.yaml")]
    if name not in names:
        raise UserError(f"name: unknown {name!r}; {nearest(str(name), names)}")
    with with_conf():
        composed = compose("train", [f"model={name}"]).model
    node: Any = OmegaConf.to_container(composed, resolve=True)
    known = inspect.signature(located("model", node["_target_"])).parameters
    for key in arguments.keys() - known.keys():
        raise UserError(f"{name}: no argument {key!r}; {nearest(key, known)}")
    return node | dict(arguments)


def build_node(node: Any, num_classes: int) -> nn.Module:
    """Build the network of a `model` node."""
    try:
        return build_network(node, num_classes)
    except InstantiationException as error:
        raise UserError(f"model: {error.__cause__ or error}") from error


# --- from a run or a bundle --------------------------------------


def load(
    path: str | os.PathLike[str],
    trust: bool = False,
    model: str | Mapping[str, Any] | None = None,
) -> Pretrained:
    """Load the trained network of a run, a bundle (a folder or `.zip`) or a Keras file.

    A Keras file (`.keras`, `.weights.h5`, `.h5`; needs h5py) does not say how images
    were scaled: the network gets them in 0..1; for others set `mean` and `std`.

    Args:
        path: a run's has its best checkpoint so far; one of its `.ckpt` files, that.
        trust: also build networks of other packages that a bundle names.  They run
            code of those packages: only where you trust whoever made the bundle.
        model: of a Keras file, the network: a name of `conf/model` or a mapping of
            `ResNet`'s arguments.  Padding and BatchNorm's epsilon are the file's, or
            Keras's defaults where it has weights alone.

    Raises:
        UserError: neither is there, a checkpoint is missing, damaged or from another
            network, or a bundle is damaged or names what it may not.

    Warns:
        UserWarning: the run is not finished, or its best checkpoint is missing.
    """
    loaded = read(path, trust, model)
    if loaded.note:
        warnings.warn(loaded.note, stacklevel=2)
    return loaded


def read(
    path: str | os.PathLike[str],
    trust: bool = False,
    model: str | Mapping[str, Any] | None = None,
) -> Pretrained:
    """Load as `load` does, silently: the warning is the network's `note`."""
    source = Path(path).expanduser()
    if is_keras(source):
        from resnet_se.inference import keras_model

        return keras_model.read(source, model)
    if model is not None:
        raise UserError(f"model: {source} is no Keras file and has its own network")
    if bundle.is_bundle(source):
        content = bundle.read(source)
        content = replace(content, config=with_present_targets(content.config))
        own = content.config.get("model")
        if not trust:
            bundle.check_network(own, source)
        node = own if isinstance(own, dict) else {}
        note = None
    else:
        content, node, note = _read_run(source)
    net = build_node(node, len(content.classes))
    checkpoint.check_weights({"state_dict": content.weights}, source, net)
    net.load_state_dict(content.weights)
    return Pretrained(net, content, source, note)


def _read_run(source: Path) -> tuple[bundle.Content, Any, str | None]:
    given = source if source.suffix == ".ckpt" else None
    run_dir = source.parent.parent if given else source
    if not (run_dir / "config.yaml").is_file():
        raise UserError(
            f"run: expected a run directory or a bundle, got {source}"
            + ("" if source.exists() else ", which is not there")
        )
    recipe = load_recipe(run_dir)
    record = read_result(run_dir)
    status = record["status"] if record else "running"
    file, notes = given or run_dir / "checkpoints" / checkpoint.BEST, []
    if not given and not file.exists():
        file = file.with_name(checkpoint.LAST)
        if not file.exists():
            raise UserError(
                f"{run_dir}: the run is {status} and has saved no checkpoint yet"
            )
        notes.append("has no best checkpoint, this is its last")
    if status != "finished":
        notes.append(f"is {status}, not finished: this is what it has so far")
    saved = checkpoint.read(file)
    content = _content(saved, file, recipe, record)
    note = f"{run_dir}: the run {' and '.join(notes)}" if notes else None
    return content, recipe.get("model"), note


def _content(
    saved: dict[str, Any], file: Path, recipe: Recipe, record: dict[str, Any] | None
) -> bundle.Content:
    data = saved.get(checkpoint.DATA, {})
    prefix = "net."
    weights = {
        name.removeprefix(prefix): tensor
        for name, tensor in saved["state_dict"].items()
        if name.startswith(prefix)
    }
    if not weights or not {"classes", "mean", "std"} <= data.keys():
        raise UserError(
            f"{file}: a checkpoint from elsewhere: it holds no "
            f"{'classes' if weights else 'network of ours'}"
        )
    side = value_below(recipe.values, "data.source.size")
    size = data.get("size") or ([side, side] if side else SIZE)
    return bundle.Content(
        weights=weights,
        classes=tuple(data["classes"]),
        size=(int(size[0]), int(size[1])),
        mean=data["mean"].float(),
        std=data["std"].float(),
        fingerprint=str(data.get("fingerprint", "")),
        config=dict(recipe.values),
        record=record,
    )
