"""Layers that Keras saved, in a `.keras`, `.weights.h5` or legacy `.h5` file.

https://keras.io/guides/serialization_and_saving.  Read by h5py (an extra), without
Keras and without executing anything: of a model's configuration only the classes of
layers, their inputs and a few numbers are looked at.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from resnet_se.utils.errors import UserError
from resnet_se.utils.files import read_regular

MOST = 4 << 30  # bytes of a file, and of the weights inside `.keras`
ZIP, HDF5 = b"PK\x03\x04", b"\x89HDF\r\n\x1a\n"
SUFFIXES = (".keras", ".h5", ".hdf5")
# An attribute of files that `keras_weights` writes: JSON; Keras passes it over.
ABOUT = "resnet_se"
KINDS = {"conv2d": "convolution", "dense": "dense", "batch_normalization": "BatchNorm"}
# Layers without weights that a ResNet has, or does without in inference.
SILENT = {
    "InputLayer", "Activation", "ReLU", "Softmax", "Add", "Multiply", "Reshape",
    "GlobalAveragePooling2D", "GlobalMaxPooling2D", "MaxPooling2D", "Dropout",
    "SpatialDropout2D", "ZeroPadding2D", "Flatten",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Layer:
    """A layer with weights: its name in the file, its kind and its arrays in order.

    `after`: name of the convolution whose output it normalises, where that is known.
    """

    name: str
    kind: str
    arrays: list[Any]  # of h5py, read once their shapes are those expected
    after: str | None = None


@dataclass(frozen=True, eq=False)
class KerasFile:
    """The layers of a file, and what its configuration says, if it has one.

    `settings` are arguments of `ResNet`: padding, bn_eps; empty for weights alone.
    `about` is the preprocessing, which files written here say (`ABOUT`), or None.
    """

    path: Path
    layers: list[Layer]
    settings: dict[str, Any]
    about: dict[str, Any] | None = None

    @property
    def num_classes(self) -> int:
        """Number of logits K: outputs of the last dense layer."""
        dense = [layer for layer in self.layers if layer.kind == "dense"]
        if not dense:
            raise UserError(f"{self.path}: a Keras file without a dense layer")
        return int(dense[-1].arrays[0].shape[-1])


def is_keras(path: Path) -> bool:
    """Return True for a file with one of Keras's suffixes."""
    return path.suffix.lower() in SUFFIXES


# --- reading -----------------------------------------------------


def read(path: Path) -> KerasFile:
    """Return the layers of a Keras file.

    Raises:
        UserError: h5py is missing, the file is damaged or none of Keras, it holds a
            layer that a `ResNet` has not, or weights that are not float32.
    """
    try:
        import h5py
    except ImportError:
        raise UserError(
            f"{path}: a Keras file; reading it needs h5py: pip install "
            "'resnet-se[keras]'"
        ) from None
    try:
        content = read_regular(path, MOST)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    config = None
    if path.suffix.lower() == ".keras":
        config, content = _unpacked(path, content)
    if not content.startswith(HDF5):
        raise UserError(f"{path}: a Keras file is expected to hold HDF5; it does not")
    try:
        file = h5py.File(io.BytesIO(content), "r")
        root = file.get("model_weights", file)
        text = file.attrs.get("model_config")
        config = config if text is None else json.loads(text)
        groups = list(
            _legacy_groups(root) if "layer_names" in root.attrs else _groups(root)
        )
        datasets = {name: _datasets(group) for name, group in groups}
    except UserError:
        raise
    except Exception as error:  # h5py raises any of OSError, KeyError, RuntimeError
        raise UserError(f"{path}: a damaged Keras file: {_line(error)}") from None
    graph = None if config is None else _Graph(path, config)
    legacy = "layer_names" in root.attrs
    layers = [
        _layer(path, name, arrays, legacy, graph)
        for name, arrays in datasets.items()
        if arrays
    ]
    if not layers:
        raise UserError(f"{path}: a Keras file without weights of layers")
    if ABOUT in file.attrs:
        return KerasFile(path, layers, *_about(path, file.attrs[ABOUT]))
    return KerasFile(path, layers, graph.settings if graph else {})


def _about(path: Path, text: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings and the preprocessing of a file written here."""
    from resnet_se.runs.bundle import preprocessing

    try:
        about = json.loads(text)
        settings = {"padding": about["padding"], "bn_eps": about["bn_eps"]}
        return settings, preprocessing({**about, "fingerprint": ""})
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: {ABOUT}: {_line(error)}") from None


def _line(error: Exception) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0]


def _unpacked(path: Path, content: bytes) -> tuple[dict[str, Any], bytes]:
    if not content.startswith(ZIP):
        raise UserError(f"{path}: a .keras file is a zip archive; this is none")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            size = archive.getinfo("model.weights.h5").file_size
            if size > MOST:
                raise UserError(f"{path}: expected at most {MOST} bytes, got {size}")
            config = json.loads(archive.read("config.json"))
            return config, archive.read("model.weights.h5")
    except KeyError as error:
        raise UserError(f"{path}: a zip, but no Keras file: {error.args[0]}") from None
    except (zipfile.BadZipFile, ValueError, EOFError, RuntimeError) as error:
        raise UserError(f"{path}: a damaged Keras file: {_line(error)}") from None


def _groups(root: Any) -> Iterator[tuple[str, Any]]:
    """Groups of Keras 3's layout, each class in the order of its numbers."""
    names = ("layers", "_layer_checkpoint_dependencies")  # the second: Keras 2's .keras
    layers = next((root[name] for name in names if name in root), None)
    if layers is None:
        raise UserError(f"{root.file.filename}: no layers")

    def place(name: str) -> tuple[str, int]:
        stem, number = re.fullmatch(r"(.*?)(?:_(\d+))?", name).groups()  # type: ignore[union-attr]
        return stem, int(number or 0)

    for name in sorted(layers, key=place):
        yield name, layers[name]


def _legacy_groups(root: Any) -> Iterator[tuple[str, Any]]:
    for name in root.attrs["layer_names"]:
        text = name.decode() if isinstance(name, bytes) else str(name)
        yield text, root[text]


def _datasets(group: Any) -> list[Any]:
    """Arrays of a layer in Keras's order; links out of the file are not followed."""
    import h5py

    arrays: list[Any] = []

    def visit(name: str, item: Any) -> None:  # hard links alone
        if isinstance(item, h5py.Dataset):
            if item.is_virtual or item.external:
                raise UserError(f"{name}: kept outside of the file")
            arrays.append(item)

    group.visititems(visit)
    order = {"kernel": 0, "gamma": 0, "bias": 1, "beta": 1, "moving_mean": 2}
    leaf = [item.name.rpartition("/")[2].partition(":")[0] for item in arrays]
    ranks = [int(n) if n.isdigit() else order.get(n, 3) for n in leaf]
    return [
        item for _, item in sorted(zip(ranks, arrays, strict=True), key=lambda p: p[0])
    ]


def _layer(
    path: Path, name: str, arrays: list[Any], legacy: bool, graph: _Graph | None
) -> Layer:
    shapes = [array.shape for array in arrays]
    ranks = tuple(len(shape) for shape in shapes)
    by_rank = {
        (4,): "conv2d", (4, 1): "conv2d", (2,): "dense", (2, 1): "dense",
        (1, 1, 1, 1): "batch_normalization",
    }  # fmt: skip
    kind = by_rank.get(ranks)
    stem = re.sub(r"_\d+$", "", name)
    if kind is None or (not legacy and stem != kind):
        raise UserError(
            f"{path}: the layer {name} with weights {shapes} has no counterpart in a "
            f"ResNet of this package; expected {', '.join(KINDS)}"
        )
    for array in arrays:
        if array.dtype != np.float32:
            raise UserError(
                f"{path}: {name}: expected float32 weights, got {array.dtype}; save "
                "the model in float32"
            )
    norm = kind == "batch_normalization"
    after = graph.convolution_of(name, legacy) if graph and norm else None
    return Layer(name, KINDS[kind], arrays, after)


# --- the graph ---------------------------------------------------


class _Graph:
    """Layers of a model's configuration: classes, inputs, numbers; nothing is built."""

    def __init__(self, path: Path, config: dict[str, Any]):
        try:
            entries = config["config"]["layers"]
            self.classes = {self._name(e): str(e["class_name"]) for e in entries}
            self.settings = self._settings(entries)
            self.inputs = self._inputs(entries)
        except (KeyError, TypeError, AttributeError, IndexError):
            raise UserError(
                f"{path}: the model's configuration is not that of Keras's layers"
            ) from None
        for name, kind in self.classes.items():
            if kind not in SILENT and _snake(kind) not in KINDS:
                raise UserError(
                    f"{path}: the layer {name} ({kind}) has no counterpart in a ResNet "
                    "of this package"
                )
        # By class and number, as files of Keras 3 name them.
        counts: dict[str, int] = {}
        self.by_position: dict[str, str] = {}
        self.positions: dict[str, str] = {}
        for name, kind in self.classes.items():
            stem = _snake(kind)
            number = counts[stem] = counts.get(stem, -1) + 1
            position = f"{stem}_{number}" if number else stem
            self.by_position[position], self.positions[name] = name, position

    @staticmethod
    def _name(entry: dict[str, Any]) -> str:
        return str(entry["config"].get("name") or entry["name"])

    def _inputs(self, entries: list[dict[str, Any]]) -> dict[str, str | None]:
        """Return each layer's first input; of a Sequential the layer before it."""
        previous, result = None, {}
        for entry in entries:
            name = self._name(entry)
            if "inbound_nodes" in entry:
                result[name] = _first_history(entry["inbound_nodes"])
            else:
                result[name], previous = previous, name
        return result

    @staticmethod
    def _settings(
        entries: list[dict[str, Any]],
    ) -> dict[str, Any]:
        """Return the arguments of `ResNet` that a configuration determines."""
        by_class: dict[str, list[dict[str, Any]]] = {"Conv2D": []}
        for entry in entries:
            by_class.setdefault(entry["class_name"], []).append(entry["config"])
        strided = [
            config["padding"]
            for config in by_class["Conv2D"]
            if max(config["strides"]) > 1 and max(config["kernel_size"]) > 1
        ]
        settings: dict[str, Any] = {}
        if strided:
            settings["padding"] = "same" if "same" in strided else "symmetric"
        for config in by_class.get("BatchNormalization", [])[:1]:
            settings["bn_eps"] = float(config["epsilon"])
        return settings

    def convolution_of(self, name: str, legacy: bool) -> str | None:
        """Return the file's name of the convolution before a BatchNorm, if any."""
        at: str | None = name if legacy else self.by_position.get(name)
        for _ in range(len(self.inputs)):
            at = self.inputs.get(at) if at else None
            if at is None:
                return None
            if self.classes[at] == "Conv2D":
                return at if legacy else self.positions[at]
        return None


def _snake(name: str) -> str:
    """Return `batch_normalization` of `BatchNormalization`, `conv2d` of `Conv2D`."""
    words = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", words).lower()


def _first_history(node: Any) -> str | None:
    """Return the layer of the first tensor in a layer's `inbound_nodes`."""
    if isinstance(node, dict):
        if "keras_history" in node:
            return str(node["keras_history"][0])
        node = list(node.values())
    if isinstance(node, list):
        if len(node) >= 3 and isinstance(node[0], str) and isinstance(node[1], int):
            return node[0]  # Keras 2: [name, node, tensor, …]
        for child in node:
            if (found := _first_history(child)) is not None:
                return found
    return None
