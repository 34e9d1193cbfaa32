"""The gate study of a trained SE network: watched, taken apart, replaced, timed.

Watches every gate over the test set, takes its variance apart (classes, images), tests
with other gates in its place (their mean, their class's mean, another image's, 1), in
all stages and in one at a time, computes Grad-CAM maps and times a forward pass with
and without SE blocks.  Hu et al. 2018, arXiv 1709.01507, §6 and §7, ask the like of
theirs.  The record's fields: `gate_figures`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from resnet_se.analysis.canvas import save
from resnet_se.analysis.gate_figures import (
    ablations,
    channels,
    maps,
    overview,
    with_accuracy,
)
from resnet_se.analysis.report.significance import images_only, mcnemar_exact
from resnet_se.data.datamodule import ImageDataModule
from resnet_se.inference.pretrained import Pretrained
from resnet_se.models import se_gates
from resnet_se.runs.record import round_significant
from resnet_se.utils.errors import UserError
from resnet_se.utils.files import write_json, writing
from resnet_se.utils.random_streams import stream
from resnet_se.utils.system import milliseconds

BATCH = 250  # images at a time
BATCHES = (1, 128)  # that are timed
MAPS = 4  # most confident right and wrong images, each, that maps are drawn of

Values = dict[str, Tensor]  # {SE block: (C,), (K, C) or (N, C)}


class GateStudy(NamedTuple):
    """The study of one run: its entry in the JSON, and what the pictures need."""

    entry: dict[str, Any]
    classes: tuple[str, ...]
    channels: dict[str, np.ndarray]  # {stage: mean gates of its last SE block (K, C)}
    maps: dict[str, Any]  # arguments of `gate_figures.maps`


@dataclass(frozen=True, eq=False)  # `==` of tensors has no single truth value
class Subset:
    """Images of a run's data; iterates over preprocessed batches on the device."""

    model: Pretrained
    images: Tensor  # uint8 (N, 3, H, W)
    labels: Tensor  # (N,)

    def __iter__(self) -> Iterator[Tensor]:
        for images in self.images.split(BATCH):
            yield self.model.preprocess(images.to(self.model.mean.device))


def study_gates(
    model: Pretrained,
    data: ImageDataModule,
    console: Console,
    images: int | None = None,
    mapped: Sequence[int] | None = None,
) -> GateStudy:
    """Return the study of one network.

    Args:
        data: of its run, set up.
        console: shows what is being done.
        images: how many of the test set, evenly spread; None for all.
        mapped: the test images that maps are computed of; None for the most confident
            right and wrong ones.

    Raises:
        UserError: no SE blocks, or an image that the test set does not have.
    """
    n, k = len(data.test_part[0]), len(model.classes)
    if mapped is not None and (not mapped or max(mapped) >= n):
        raise UserError(f"maps: expected test images, 0..{n - 1}, got {list(mapped)}")
    count = min(n, images or n)
    chosen = torch.arange(count) * n // count
    test = Subset(model, *(part[chosen] for part in data.test_part))
    val = Subset(model, *data.val_part)
    with console.status("watching the gates"):
        values = se_gates.gate_values(model.net, test)
        val_values = se_gates.gate_values(model.net, val)
    unchanged = se_gates.logits_with_gates(model.net, test, {})
    stages = se_gates.stages(model.net)
    entry = {
        **_identity(model),
        "static": se_gates.all_static(model.net),
        "data": {
            "fingerprint": model.fingerprint,
            "images": len(test.images),
            "means_over": len(val.images),
        },
        **_statistics(values, stages, test.labels, model.classes),
        **_accuracies(test, values, val_values, val.labels, unchanged, console),
        "latency": _latency(model),
    }
    last = {
        f"stage {i + 1}": se_gates.class_means(values[s.gates[-1]], test.labels, k)
        for i, s in enumerate(stages)
    }
    if mapped is None:
        index = chosen[most_confident(unchanged, test.labels)]
    else:
        index = torch.tensor(mapped)
    return GateStudy(
        entry,
        model.classes,
        {stage: means.numpy() for stage, means in last.items()},
        _maps(model, data, index),
    )


def _identity(model: Pretrained) -> dict[str, Any]:
    record = model.record or {}
    name, seed = record.get("experiment", "run"), record.get("seed")
    digest = record.get("config_hash")
    settings = model.config.get("model", {})
    about = [
        f"{word} {settings[key]}"
        for key, word in (
            ("attention", "attention"),
            ("reduction", "r ="),
            ("se_position", "SE"),
        )
        if settings.get(key) is not None
    ]
    return {
        "experiment": name,
        "seed": seed,
        "config_hash": digest,
        "label": ", ".join([f"{name} seed{seed}-{digest}", *about]),
        "note": model.note,
    }


def _statistics(
    values: Values,
    stages: list[se_gates.Stage],
    labels: Tensor,
    classes: tuple[str, ...],
) -> dict[str, Any]:
    """Return mean, deviation and shares of each block, each stage, and of all."""

    present = len(labels.unique())

    def of(names: list[str]) -> dict[str, Any]:
        moments = se_gates.moment_shares(
            [values[n] for n in names], labels, len(classes)
        )
        keys = ("number", "channels", "classes", "images")
        shares = dict(zip(keys, moments, strict=True))
        shares |= {
            "constant": moments.constant,
            "between_classes": moments.between_classes(len(labels), present),
        }
        together = torch.cat([values[n] for n in names], dim=1).double()  # (N, ΣC)
        return {
            "channels": together.shape[1],
            "mean": _rounded(together.mean()),
            "std": _rounded(together.std(correction=0)),
            "std_images": _std_images(together),
            "shares": {
                key: None if math.isnan(share) else _rounded(share)
                for key, share in shares.items()
            },
        }

    def by_class(gate: Tensor) -> dict[str, Any]:
        rows = {name: gate[labels == i].double() for i, name in enumerate(classes)}
        return {
            name: {"mean": _rounded(row.mean()), "std_images": _std_images(row)}
            for name, row in rows.items()
            if len(row)
        }

    where = {name: i + 1 for i, stage in enumerate(stages) for name in stage.gates}
    blocks = [
        {"name": n, "stage": where[n], **of([n]), "classes": by_class(values[n])}
        for n in values
    ]
    by_stage = [{"stage": i + 1, **of(s.gates)} for i, s in enumerate(stages)]
    return {"blocks": blocks, "stages": by_stage, "all": of(list(values))}


def _rounded(value: Tensor | float) -> float | None:
    return round_significant(float(value))


def _std_images(gates: Tensor) -> float | None:
    """Return the root mean square over channels of the deviation over images."""
    return _rounded(gates.var(0, correction=0).mean().sqrt())


def _accuracies(
    test: Subset,
    values: Values,
    val_values: Values,
    val_labels: Tensor,
    unchanged: Tensor,
    console: Console,
) -> dict[str, Any]:
    """Return accuracies as it is and with other gates, in all stages and in each.

    Args:
        unchanged: the network's logits (N, K) of the test images.
    """
    net, classes = test.model.net, len(test.model.classes)
    right = unchanged.argmax(1) == test.labels  # (N,)
    other = torch.randperm(len(right), generator=stream("shuffled gates"))
    overall = {name: v.mean(0) for name, v in val_values.items()}
    means = {
        name: se_gates.class_means(v, val_labels, classes)
        for name, v in val_values.items()
    }
    kinds = {  # what a block's gates are set to, (C,) or (N, C)
        "mean": lambda name: overall[name],
        "class mean": lambda name: means[name][test.labels],
        "shuffled": lambda name: values[name][other],
        "one": lambda name: torch.ones_like(overall[name]),
    }
    stages = se_gates.stages(net)
    places = {f"stage {i + 1}": stage.gates for i, stage in enumerate(stages)}
    if len(stages) == 1:
        places = {}
    rows = []
    for kind, gate in kinds.items():
        for where, names in {"all": list(values), **places}.items():
            with console.status(f"testing with gates set to {kind}, {where}"):
                gates = {name: gate(name) for name in names}
                logits = se_gates.logits_with_gates(net, test, gates)
            now_right = logits.argmax(1) == test.labels
            difference = (now_right.int() - right.int()).numpy()
            _, interval = images_only(difference)
            rows.append(
                {
                    "gates": kind,
                    "where": where,
                    **_accuracy(now_right),
                    "difference": _rounded(difference.mean()),
                    "difference_interval": [_rounded(v) for v in interval],
                    "p": _rounded(mcnemar_exact(difference)),
                }
            )
    return {"accuracy": _accuracy(right), "ablations": rows}


def _accuracy(right: Tensor) -> dict[str, Any]:
    """Return the accuracy and its interval for new images (Wilson 1927)."""
    from scipy import stats

    test = stats.binomtest(int(right.sum()), len(right))
    interval = test.proportion_ci(method="wilson")
    return {
        "acc": _rounded(right.double().mean()),
        "interval": [_rounded(interval.low), _rounded(interval.high)],
    }


def _latency(model: Pretrained) -> dict[str, Any]:
    """Return milliseconds of a forward pass with and without SE, interleaved."""
    nets = [model.net, se_gates.without_gates(model.net)]
    device = model.mean.device
    times = {}
    with torch.inference_mode():
        for n in BATCHES:
            images = torch.zeros(n, 3, *model.size, device=device)
            with_se, without_se = map(_rounded, milliseconds(nets, images))
            times[str(n)] = {"with": with_se, "without": without_se}
    return {
        "device": device.type,
        "threads": torch.get_num_threads(),
        "milliseconds": times,
    }


def most_confident(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the images with the most probable predictions, right ones first."""
    confidence, predicted = logits.softmax(1).max(1)
    order = confidence.argsort(descending=True)
    right = predicted[order] == labels[order]
    return torch.cat([order[right][:MAPS], order[~right][:MAPS]])


def _maps(model: Pretrained, data: ImageDataModule, index: Tensor) -> dict[str, Any]:
    """Return Grad-CAM of the predictions, at the last block of each stage."""
    images, labels = (part[index] for part in data.test_part)
    x = model.preprocess(images.to(model.mean.device))
    with torch.inference_mode():
        predicted = model.net(x).argmax(1)
    layers = [stage.last for stage in se_gates.stages(model.net)]
    evidence = [
        se_gates.grad_cam(model.net, x, layer, predicted).cpu() for layer in layers
    ]
    pairs = zip(index.tolist(), labels.tolist(), predicted.tolist(), strict=True)
    names = model.classes
    return {
        "images": images.permute(0, 2, 3, 1).numpy(),  # (n, H, W, 3)
        "titles": [
            f"{i}: {names[p]}" + ("" if p == y else f"\nnot {names[y]}")
            for i, y, p in pairs
        ],
        "stages": torch.stack(evidence).numpy(),  # (S, n, H, W)
    }


# --- files -------------------------------------------------------


def write_entries(out: Path, studies: Sequence[GateStudy]) -> None:
    """Write `inspect.json`; raises UserError where `out` cannot be written."""
    entries = [study.entry for study in studies]
    with writing(out):
        write_json(out / "inspect.json", {"schema": 1, "runs": entries}, indent=1)


def write_pictures(out: Path, studies: Sequence[GateStudy]) -> None:
    """Write the PNG files; raises UserError where `out` cannot be written."""
    entries = [study.entry for study in studies]
    by_channel = [(with_accuracy(s.entry), s.classes, s.channels) for s in studies]
    pictures = {
        "gates": overview(entries),
        "ablations": ablations(entries),
        "channels": channels(by_channel),
    }
    for i, study in enumerate(studies):
        name = "maps" if len(studies) == 1 else f"maps-{i + 1}"
        pictures[name] = maps(with_accuracy(study.entry), **study.maps)
    for name, figure in pictures.items():
        with writing(out):
            save(figure, out / f"{name}.png")
