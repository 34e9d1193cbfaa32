"""Writes a trained network for another runtime, once it gives what the network gives.

    resnet-se export run=DIR format=onnx|torch|safetensors [out=PATH]

`fold=true` folds BatchNorm away, `gates=mean` the SE gates too, `int8=true` quantises.
Each step is compared with the network on real test images, and timed.  A file whose
logits differ by more than `tolerance` is not written; int8 and mean gates change the
function, and show what that costs in accuracy.
"""

from __future__ import annotations

import copy
import json
import os
import tempfile
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from resnet_se.analysis.cost import milliseconds
from resnet_se.config.build import quiet, run_data
from resnet_se.config.compose import run
from resnet_se.data.datamodule import ImageDataModule
from resnet_se.data.normalisation import normalise
from resnet_se.inference.pretrained import Pretrained, read
from resnet_se.models.fusion import fold_batchnorm, mean_gates, with_mean_gates
from resnet_se.utils.errors import UserError, nearest

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2", "safetensors": ".safetensors"}
GATES = ("free", "mean")
OLDEST_OPSET = 18  # of torch's exporter
CALIBRATION = 512  # validation images that set the scales of int8
BATCHES = (1, 128)  # that are timed

Forward = Callable[[Tensor], Tensor]  # images of `Exported.forward` → logits


class Row(NamedTuple):
    """One form of the network, on the same images as the others.

    `difference` is the largest of the logits to those of what it was made from.
    """

    name: str
    megabytes: float | None
    accuracy: float
    agreement: float
    difference: float
    milliseconds: tuple[float, ...]  # a batch, for each of BATCHES


class Exported(nn.Module):
    """What is written: images (B, 3, H, W), normalised or uint8 → logits (B, K)."""

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
        return self.net(images)


def export(cfg: DictConfig) -> list[Row]:
    """Writes the file; the rows of the printed table.

    Raises:
        UserError: no run there, an unknown or unfit option, a missing extra, another
            data set, or logits beyond the tolerance.
    """
    _check(cfg)
    model = read(cfg.run)
    if model.note:
        print(f"note: {model.note}")
    data = run_data(model.source, model.fingerprint)
    net, rows = _steps(cfg, model, data)
    written = Exported(net, model, cfg.preprocess)
    out = Path(cfg.out or f"{_name(model)}{SUFFIXES[cfg.format]}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".export-") as folder:
            file = Path(folder, out.name)
            _write(cfg, model, written, file)
            name, net_row = cfg.format, rows[-1]
            row = _row(cfg, data, name, _opened(cfg, model, file), file, net_row[1])
            most = cfg.tolerance * float(net_row[1].abs().max())
            if row[0].difference > most:
                raise UserError(
                    f"tolerance: the logits of {name} differ by "
                    f"{row[0].difference:.2g}, more than {most:.2g}; nothing is written"
                )
            rows.append(row)
            if cfg.int8:
                small = file.with_name(f"int8-{file.name}")
                _quantise(
                    file, small, _inputs(cfg, data, data.val_part[0])[:CALIBRATION]
                )
                forward = _opened(cfg, model, small)
                rows.append(_row(cfg, data, "onnx, int8", forward, small, row[1]))
                file = small
            file.chmod(0o644)  # safetensors' files are private
            os.replace(file, out)
    except OSError as error:
        raise UserError(f"out: cannot write {out}: {error.strerror}") from None
    table = [row for row, _ in rows]
    _print(cfg, out, table, len(_chosen(cfg, data)))
    return table


def _check(cfg: DictConfig) -> None:
    for key, choices in (("format", SUFFIXES), ("gates", GATES)):
        if cfg[key] not in choices:
            hint = nearest(str(cfg[key]), choices)
            raise UserError(f"{key}: unknown {cfg[key]!r}; {hint}")
    changed = cfg.fold or cfg.gates == "mean" or cfg.preprocess
    if cfg.format == "safetensors" and changed:
        raise UserError(
            "format=safetensors: holds the weights as they are, not with fold, gates "
            "or preprocess; format=onnx and format=torch do"
        )
    if cfg.int8 and cfg.format != "onnx":
        raise UserError(f"int8: only of format=onnx, got format={cfg.format}")
    if cfg.images < 1:
        raise UserError(f"images: expected at least 1, got {cfg.images}")
    if cfg.format == "onnx":
        for name in ("onnx", "onnxscript", "onnxruntime"):
            if find_spec(name) is None:
                raise UserError(
                    f"format=onnx: {name} is not installed; uv sync --extra onnx"
                )
        from onnx.defs import onnx_opset_version

        if not OLDEST_OPSET <= cfg.opset <= onnx_opset_version():
            raise UserError(
                f"opset: expected {OLDEST_OPSET}..{onnx_opset_version()}, got "
                f"{cfg.opset}"
            )


def _name(model: Pretrained) -> str:
    experiment = (model.record or {}).get("experiment", "network")
    return f"{experiment}-{model.source.resolve().name}"


# --- comparing ---------------------------------------------------


def _steps(
    cfg: DictConfig, model: Pretrained, data: ImageDataModule
) -> tuple[nn.Module, list[tuple[Row, Tensor]]]:
    """The network after each change that was asked for, the last, and their rows."""
    nets: list[tuple[str, nn.Module]] = [("network", model.net)]
    if cfg.fold or cfg.gates == "mean":
        nets.append(("BatchNorm folded", fold_batchnorm(model.net)))
    if cfg.gates == "mean":
        images = model.preprocess(data.val_part[0]).split(256)
        gates = mean_gates(model.net, images)
        nets.append(
            ("mean gates folded", fold_batchnorm(with_mean_gates(model.net, gates)))
        )
    rows: list[tuple[Row, Tensor]] = []
    for name, net in nets:
        forward = torch.inference_mode()(Exported(net, model, cfg.preprocess))
        reference = rows[-1][1] if rows else None
        rows.append(_row(cfg, data, name, forward, None, reference))
    return nets[-1][1], rows


def _chosen(cfg: DictConfig, data: ImageDataModule) -> Tensor:
    """Which test images are compared: as many as asked for, evenly spread, or all."""
    n = len(data.test_part[0])
    whole = cfg.int8 or cfg.gates == "mean"
    count = n if whole else min(n, cfg.images)
    return torch.arange(count) * n // count


def _inputs(cfg: DictConfig, data: ImageDataModule, images: Tensor) -> Tensor:
    return images if cfg.preprocess else normalise(images, data.mean, data.std)


def _row(
    cfg: DictConfig,
    data: ImageDataModule,
    name: str,
    forward: Forward,
    file: Path | None,
    reference: Tensor | None,
) -> tuple[Row, Tensor]:
    """Its row, and its logits (N, K) of the chosen test images."""
    chosen = _chosen(cfg, data)
    images, labels = (part[chosen] for part in data.test_part)
    parts = images.split(256)
    logits = torch.cat([forward(_inputs(cfg, data, part)) for part in parts])
    reference = logits if reference is None else reference
    predicted = logits.argmax(1)
    times = tuple(
        milliseconds([forward], _inputs(cfg, data, images[:1].expand(b, -1, -1, -1)))[0]
        for b in BATCHES
    )
    row = Row(
        name=name,
        megabytes=None if file is None else file.stat().st_size / 1e6,
        accuracy=float((predicted == labels).double().mean()),
        agreement=float((predicted == reference.argmax(1)).double().mean()),
        difference=float((logits - reference).abs().max()),
        milliseconds=times,
    )
    return row, logits


def _print(cfg: DictConfig, out: Path, rows: list[Row], images: int) -> None:
    table = Table(title=f"{cfg.run} → {out}")
    columns = ("", "MB", "accuracy", "agrees", "max |Δ logit|")
    for name in (*columns, *(f"ms, batch {b}" for b in BATCHES)):
        table.add_column(name, justify="right" if name else "left")
    for i, row in enumerate(rows):
        compared = (f"{row.agreement:.2%}", f"{row.difference:.1e}") if i else ("", "")
        table.add_row(
            row.name,
            "" if row.megabytes is None else f"{row.megabytes:.2f}",
            f"{row.accuracy:.2%}",
            *compared,
            *(f"{t:.2f}" for t in row.milliseconds),
        )
    console = Console()
    console.print(table)
    console.print(
        f"{images:,} test images, {torch.get_num_threads()} threads; a row is compared "
        "with the one above it",
        soft_wrap=True,
    )


# --- formats -----------------------------------------------------


def _write(cfg: DictConfig, model: Pretrained, net: Exported, file: Path) -> None:
    dtype = torch.uint8 if cfg.preprocess else torch.float32
    example = (torch.zeros(2, 3, *model.size, dtype=dtype),)
    batch = {"images": {0: torch.export.Dim("batch")}}
    if cfg.format == "safetensors":
        from safetensors.torch import save_file

        about = {
            "classes": json.dumps(model.classes),
            "size": json.dumps(model.size),
            "mean": json.dumps(model.mean.tolist()),
            "std": json.dumps(model.std.tolist()),
        }
        save_file(net.net.state_dict(), file, about)
        return
    with warnings.catch_warnings():  # of the exporters, about themselves
        warnings.simplefilter("ignore")
        program = torch.export.export(net, example, dynamic_shapes=batch)
        if cfg.format == "torch":
            torch.export.save(program, file)
            return
        torch.onnx.export(
            program,
            f=file,
            input_names=["images"],
            output_names=["logits"],
            opset_version=cfg.opset,
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def _opened(cfg: DictConfig, model: Pretrained, file: Path) -> Forward:
    """The written file as its user would run it."""
    if cfg.format == "onnx":
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
    if cfg.format == "torch":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.inference_mode()(torch.export.load(file).module())
    from safetensors.torch import load_file

    fresh = copy.deepcopy(model.net)
    for tensor in (*fresh.parameters(), *fresh.buffers()):
        tensor.data.zero_()
    fresh.load_state_dict(load_file(file))
    return torch.inference_mode()(Exported(fresh, model, False))


def _quantise(file: Path, small: Path, images: Tensor) -> None:
    """Static quantisation of weights by channel and activations, scales from images."""
    import logging

    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rest = iter(images.split(64))

        def get_next(self) -> dict[str, Any] | None:
            part = next(self.rest, None)
            return None if part is None else {"images": part.contiguous().numpy()}

    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)  # it advertises its pre-processing
    try:
        quantize_static(file, small, Reader(), per_channel=True)
    finally:
        logging.getLogger().setLevel(level)


def main() -> None:
    """Console entry: `resnet-se export …`."""
    quiet()
    run(export, "export")


if __name__ == "__main__":
    main()
