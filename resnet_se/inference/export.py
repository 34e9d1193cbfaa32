"""A trained network for another runtime: ONNX, torch.export, safetensors, Keras.

Each form of it (BatchNorm folded, mean gates, the file read back, 8-bit) is compared
with the one before on real test images, and timed.  A file whose logits differ by more
than a tolerance is not written; 8-bit and mean gates change the function, and their
rows show what that costs in accuracy.
"""

from __future__ import annotations

import copy
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from resnet_se.data.datamodule import ImageDataModule
from resnet_se.data.normalisation import normalise
from resnet_se.inference.onnx_file import label, quantise
from resnet_se.inference.pretrained import Pretrained
from resnet_se.models.fusion import fold_batchnorm, mean_gates, with_mean_gates
from resnet_se.models.se_gates import all_static
from resnet_se.runs import keras_file, keras_weights
from resnet_se.utils.errors import UserError, nearest
from resnet_se.utils.files import writing
from resnet_se.utils.system import milliseconds

SUFFIXES = {
    "onnx": ".onnx",
    "torch": ".pt2",
    "safetensors": ".safetensors",
    "keras": ".weights.h5",
}
GATES = ("free", "mean")
OLDEST_OPSET = 18  # of torch's exporter
CALIBRATION = 512  # validation images that set the scales of int8
BATCHES = (1, 128)  # that are timed

Forward = Callable[[Tensor], Tensor]  # images of `Exported.forward` → logits


class Options(NamedTuple):
    """The form of the exported file, and how it is compared (`conf/export.yaml`).

    Attributes:
        format: a key of `SUFFIXES`.
        preprocess: it takes uint8 images, and normalises them inside.
        fold: BatchNorm and static gates are folded into the convolutions.
        gates: `mean` sets each SE gate to its mean over validation images.
        int8: 8-bit weights and activations; ONNX alone.
        opset: of ONNX.
        images: of the test set, to compare on.
        tolerance: of the logits' differences, as a share of the largest logit.
    """

    format: str
    preprocess: bool
    fold: bool
    gates: str
    int8: bool
    opset: int
    images: int
    tolerance: float


class Row(NamedTuple):
    """One form of the network, on the same images as the others.

    `agreement` and `difference` (the largest of the logits') are to the form before.
    """

    name: str
    megabytes: float | None
    accuracy: float
    agreement: float
    difference: float
    milliseconds: tuple[float, ...]  # a batch, for each of BATCHES


class Exported(nn.Module):
    """The exported module: images (B, 3, H, W), normalised or uint8 → logits (B, K)."""

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, model: Pretrained, preprocess: bool):
        super().__init__()
        self.net = copy.deepcopy(net).to(memory_format=torch.contiguous_format)
        self.preprocess = preprocess
        self.register_buffer("mean", model.mean)
        self.register_buffer("std", model.std)
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        if self.preprocess:
            images = normalise(images, self.mean, self.std)
        logits: Tensor = self.net(images)
        return logits


def export_network(
    model: Pretrained, data: ImageDataModule, options: Options, out: Path
) -> list[Row]:
    """Write the file; return a row for each form of the network.

    Args:
        data: of the run, set up.

    Raises:
        UserError: logits beyond the tolerance, nothing to fold, or `out` cannot be
            written.
    """
    comparison = _Comparison(model, data, options)
    net = _transformed(model, data, options, comparison)
    exported = Exported(net, model, options.preprocess)
    name = options.format
    with (
        writing(out, folder=out.parent),
        tempfile.TemporaryDirectory(dir=out.parent, prefix=".export-") as folder,
    ):
        file = Path(folder, out.name)
        _write(model, exported, options, file)
        largest = float(comparison.logits[-1].abs().max())
        row = comparison.add(name, _open_exported(model, name, file), file)
        if row.difference > options.tolerance * largest:
            raise UserError(
                f"tolerance: the logits of {name} differ by {row.difference:.2g}, "
                f"more than {options.tolerance * largest:.2g}; nothing is written"
            )
        if options.int8:
            small = file.with_name(f"int8-{file.name}")
            quantise(file, small, comparison.inputs(data.val_part[0][:CALIBRATION]))
            file = small
            label(file, _about(model))
            comparison.add("onnx, int8", _open_exported(model, name, file), file)
        file.chmod(0o644)  # safetensors' files are private
        os.replace(file, out)
    return comparison.timed()


def check_options(options: Options) -> None:
    """Refuse an unknown choice, one that does not fit the format, a missing extra.

    Raises:
        UserError: naming the option.
    """
    for key, choices in (("format", SUFFIXES), ("gates", GATES)):
        value = getattr(options, key)
        if value not in choices:
            raise UserError(f"{key}: unknown {value!r}; {nearest(str(value), choices)}")
    changed = options.fold or options.gates == "mean" or options.preprocess
    if options.format in ("safetensors", "keras") and changed:
        raise UserError(
            f"format={options.format}: holds the weights as they are, not with fold, "
            "gates or preprocess; format=onnx and format=torch do"
        )
    if options.int8 and options.format != "onnx":
        raise UserError(f"int8: only of format=onnx, got format={options.format}")
    if options.images < 1:
        raise UserError(f"images: expected at least 1, got {options.images}")
    if options.format == "onnx":
        for name in ("onnx", "onnxscript", "onnxruntime"):
            if find_spec(name) is None:
                raise UserError(
                    f"format=onnx: {name} is not installed; uv sync --extra onnx"
                )
        from onnx.defs import onnx_opset_version

        newest = onnx_opset_version()
        if not OLDEST_OPSET <= options.opset <= newest:
            raise UserError(
                f"opset: expected {OLDEST_OPSET}..{newest}, got {options.opset}"
            )


def compared_images(data: ImageDataModule, options: Options) -> Tensor:
    """Return the indices of the test images compared, evenly spread, or of all."""
    n = len(data.test_part[0])
    all_of_them = options.int8 or options.gates == "mean"
    count = n if all_of_them else min(n, options.images)
    return torch.arange(count) * n // count


# --- comparing ---------------------------------------------------


class _Comparison:
    """The forms of a network so far: their rows, and their logits (N, K) each."""

    def __init__(self, model: Pretrained, data: ImageDataModule, options: Options):
        chosen = compared_images(data, options)
        self.images, self.labels = (part[chosen] for part in data.test_part)
        self.mean, self.std = model.mean, model.std
        self.preprocess = options.preprocess
        self.rows: list[Row] = []
        self.logits: list[Tensor] = []
        self.forwards: list[Forward] = []

    def inputs(self, images: Tensor) -> Tensor:
        """Return uint8 images (B, 3, H, W) as the exported network takes them."""
        return images if self.preprocess else normalise(images, self.mean, self.std)

    def add(self, name: str, forward: Forward, file: Path | None = None) -> Row:
        """Run another form; return its row, without times."""
        parts = [forward(self.inputs(part)) for part in self.images.split(256)]
        logits = torch.cat(parts)
        previous = self.logits[-1] if self.logits else logits
        predicted = logits.argmax(1)
        row = Row(
            name=name,
            megabytes=None if file is None else file.stat().st_size / 1e6,
            accuracy=float((predicted == self.labels).double().mean()),
            agreement=float((predicted == previous.argmax(1)).double().mean()),
            difference=float((logits - previous).abs().max()),
            milliseconds=(),
        )
        self.rows.append(row)
        self.logits.append(logits)
        self.forwards.append(forward)
        return row

    def timed(self) -> list[Row]:
        """Return all rows, with the times of interleaved runs on the same images."""
        times = [
            milliseconds(
                self.forwards, self.inputs(self.images[:1].expand(b, -1, -1, -1))
            )
            for b in BATCHES
        ]
        rows = zip(self.rows, zip(*times, strict=True), strict=True)
        return [row._replace(milliseconds=tuple(own)) for row, own in rows]


def where_int8_does_not_pay(rows: Sequence[Row]) -> str | None:
    """Return a sentence that names the batches at which int8 is not the faster one."""
    if not rows[-1].name.endswith("int8"):
        return None
    times = zip(BATCHES, rows[-2].milliseconds, rows[-1].milliseconds, strict=True)
    slower = [
        f"batch {batch}: {int8:.2f} ms, {whole:.2f} in float32"
        for batch, whole, int8 in times
        if int8 >= whole
    ]
    return f"int8 does not pay here at {'; '.join(slower)}" if slower else None


def _transformed(
    model: Pretrained, data: ImageDataModule, options: Options, comparison: _Comparison
) -> nn.Module:
    """Return the network after each change asked for, compared at every one."""

    def compare(name: str, net: nn.Module) -> None:
        layout = torch.channels_last  # as `load` has it
        forward = Exported(net, model, options.preprocess).to(memory_format=layout)

        @torch.inference_mode()
        def run(images: Tensor) -> Tensor:
            logits: Tensor = forward(images.contiguous(memory_format=layout))
            return logits

        comparison.add(name, run)

    net = model.net
    compare("network", net)
    if options.fold or options.gates == "mean":
        net = fold_batchnorm(model.net)
        static = ", static gates" if all_static(model.net) else ""
        compare(f"BatchNorm{static} folded", net)
    if options.gates == "mean":
        images = model.preprocess(data.val_part[0]).split(256)
        gates = mean_gates(model.net, images)
        net = fold_batchnorm(with_mean_gates(model.net, gates))
        compare("mean gates folded", net)
    return net


# --- formats -----------------------------------------------------


def _write(model: Pretrained, net: Exported, options: Options, file: Path) -> None:
    dtype = torch.uint8 if options.preprocess else torch.float32
    example = (torch.zeros(2, 3, *model.size, dtype=dtype),)
    batch = {"images": {0: torch.export.Dim("batch")}}
    if options.format == "keras":
        about = {key: json.loads(text) for key, text in _about(model).items()}
        keras_weights.write(file, net.net, about)
        return
    if options.format == "safetensors":
        from safetensors.torch import save_file

        save_file(net.net.state_dict(), file, _about(model))
        return
    with warnings.catch_warnings():  # of the exporters, about themselves
        warnings.simplefilter("ignore")
        program = torch.export.export(net, example, dynamic_shapes=batch)
        if options.format == "torch":
            torch.export.save(program, file)
            return
        torch.onnx.export(
            program,
            f=file,
            input_names=["images"],
            output_names=["logits"],
            opset_version=options.opset,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    label(file, _about(model))


def _about(model: Pretrained) -> dict[str, str]:
    return {
        "classes": json.dumps(model.classes),
        "size": json.dumps(model.size),
        "mean": json.dumps(model.mean.tolist()),
        "std": json.dumps(model.std.tolist()),
    }


def _open_exported(model: Pretrained, format: str, file: Path) -> Forward:
    """Return the written file as its user would run it."""
    if format == "onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors
        session = onnxruntime.InferenceSession(
            file.read_bytes(), options, providers=["CPUExecutionProvider"]
        )
        return lambda x: torch.from_numpy(
            session.run(None, {"images": x.contiguous().numpy()})[0]
        )
    if format == "torch":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.inference_mode()(torch.export.load(file).module())
    from safetensors.torch import load_file

    fresh = copy.deepcopy(model.net)
    for tensor in (*fresh.parameters(), *fresh.buffers()):
        tensor.data.zero_()
    if format == "keras":
        state = keras_weights.state_of(keras_file.read(file), fresh)
    else:
        state = load_file(file)
    fresh.load_state_dict(state)
    return torch.inference_mode()(Exported(fresh, model, False))
