"""What the gates of trained SE networks do, and what is lost without them.

    resnet-se inspect run=DIR[,DIR…] [out=DIR] [images=1000] [maps=[3,17]]

Watches every gate over the test set, takes its variance apart (classes, images), tests
with other gates in its place (their mean, their class's mean, another image's, 1), in
all stages and in one at a time, draws Grad-CAM maps and takes the time of a forward
pass with and without SE blocks.  Hu et al. 2018, arXiv 1709.01507, §6 and §7, ask the
like of theirs.  Writes inspect.json (fields: `report.gates`) and pictures; the report
of a run has a section from `RUN/inspect/inspect.json`.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig, ListConfig
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from resnet_se.analysis.cost import milliseconds
from resnet_se.analysis.report.gates import (
    ablation_rows,
    ablations,
    channels,
    latency_text,
    maps,
    overview,
    share_rows,
)
from resnet_se.analysis.report.significance import images_only, mcnemar_exact
from resnet_se.config.build import quiet, run_data
from resnet_se.config.compose import run
from resnet_se.data.datamodule import ImageDataModule
from resnet_se.inference.pretrained import Pretrained, read
from resnet_se.models import se_gates
from resnet_se.runs.record import short
from resnet_se.utils.errors import UserError
from resnet_se.utils.files import atomic_file
from resnet_se.utils.random_streams import stream
from resnet_se.utils.system import accelerator

BATCH = 250  # images at a time
BATCHES = (1, 128)  # that are timed
MAPS = 4  # surest right and surest wrong images, each, that maps are drawn of

Values = dict[str, Tensor]  # {SE block: (C,), (K, C) or (N, C)}


class Study(NamedTuple):
    """What was found of one run: the entry of the JSON, and what pictures need."""

    entry: dict[str, Any]
    classes: tuple[str, ...]
    channels: dict[str, Tensor]  # {stage: mean gates of its last SE block (K, C)}
    maps: dict[str, Any]  # arguments of `report.gates.maps`


def inspect(cfg: DictConfig) -> list[Study]:
    """Looks at each run, writes the files, prints what was found.

    Raises:
        UserError: as `load`; no SE blocks, other data, or nowhere to write.
    """
    sources = list(cfg.run) if isinstance(cfg.run, ListConfig) else [cfg.run]
    console = Console(highlight=False)
    models = []
    for source in sources:  # all of them, before anything takes long
        models.append(read(source))
        try:
            se_gates.se_blocks(models[-1].net)
        except UserError as error:
            raise UserError(f"{source}: {error}") from None
        if models[-1].note:
            console.print(f"note: {models[-1].note}", soft_wrap=True)
    out = Path(cfg.out or ("inspect" if len(sources) > 1 else f"{sources[0]}/inspect"))
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"out: cannot write {out}: {error.strerror}") from None
    studies = []
    for model in models:
        studies.append(_study(cfg, model, console))
        _print(studies[-1].entry, console)
    _write_pictures(out, studies)
    _write_entries(out, studies)
    if cfg.out is None and len(sources) > 1:  # the report of each looks there
        for model, study in zip(models, studies, strict=True):
            _write_entries(model.source / "inspect", [study])
    console.print(f"{out}: inspect.json and pictures", soft_wrap=True)
    return studies


# --- one run -----------------------------------------------------


@dataclass(frozen=True, eq=False)  # `==` of tensors has no single truth value
class Part:
    """Images of a run's data, in batches on the device, as the network takes them."""

    model: Pretrained
    images: Tensor  # uint8 (N, 3, H, W)
    labels: Tensor  # (N,)

    def __iter__(self) -> Iterator[Tensor]:
        for images in self.images.split(BATCH):
            yield self.model.preprocess(images.to(self.model.mean.device))


def _study(cfg: DictConfig, model: Pretrained, console: Console) -> Study:
    data = run_data(model.source, model.fingerprint)
    asked = _asked_for(cfg, data)
    model.to(accelerator(cfg.accelerator))
    test = Part(model, *(part[_chosen(cfg, data)] for part in data.test_part))
    val = Part(model, *data.val_part)
    k = len(model.classes)
    with console.status("watching the gates"):
        values = se_gates.gate_values(model.net, test)
        seen = se_gates.gate_values(model.net, val)
        means = {
            name: se_gates.class_means(v, val.labels, k) for name, v in seen.items()
        }
        overall = {name: v.mean(0) for name, v in seen.items()}
    plain = se_gates.logits_with_gates(model.net, test, {})
    stages = se_gates.stages(model.net)
    entry = {
        **_identity(model),
        "data": {
            "fingerprint": model.fingerprint,
            "images": len(test.images),
            "means_over": len(val.images),
        },
        **_described(values, stages, test.labels, model.classes),
        **_accuracies(model, test, values, overall, means, plain, console),
        "latency": _latency(model),
    }
    last = {
        f"stage {i + 1}": se_gates.class_means(values[s.gates[-1]], test.labels, k)
        for i, s in enumerate(stages)
    }
    if asked is None:
        asked = _chosen(cfg, data)[_surest(plain, test.labels)]
    return Study(entry, model.classes, last, _maps(model, data, asked))


def _chosen(cfg: DictConfig, data: ImageDataModule) -> Tensor:
    """Which test images: as many as asked for, evenly spread, or all."""
    n = len(data.test_part[0])
    count = min(n, cfg.images or n)
    return torch.arange(count) * n // count


def _identity(model: Pretrained) -> dict[str, Any]:
    record = model.record or {}
    name, seed = record.get("experiment", "run"), record.get("seed")
    digest = record.get("config_hash")
    settings = model.config.get("model", {})
    about = [
        f"{word} {settings[key]}"
        for key, word in (("reduction", "r ="), ("se_position", "SE"))
        if settings.get(key) is not None
    ]
    return {
        "experiment": name,
        "seed": seed,
        "config_hash": digest,
        "label": ", ".join([f"{name} seed{seed}-{digest}", *about]),
        "note": model.note,
    }


def _described(
    values: Values,
    stages: list[se_gates.Stage],
    labels: Tensor,
    classes: tuple[str, ...],
) -> dict[str, Any]:
    """Mean, deviation and shares of each block, each stage, and all together."""

    def of(names: list[str]) -> dict[str, Any]:
        found = se_gates.moment_shares([values[n] for n in names], labels, len(classes))
        parts = dict(
            zip(("number", "channels", "classes", "images"), found, strict=True)
        )
        parts |= {"constant": found.constant, "between_classes": found.between_classes}
        together = torch.cat([values[n] for n in names], dim=1).double()  # (N, ΣC)
        return {
            "channels": together.shape[1],
            "mean": short(together.mean()),
            "std": short(together.std(correction=0)),
            "std_images": short(together.var(0, correction=0).mean().sqrt()),
            "shares": {
                k: None if math.isnan(v) else short(v) for k, v in parts.items()
            },
        }

    def by_class(gate: Tensor) -> dict[str, Any]:
        rows = {name: gate[labels == i].double() for i, name in enumerate(classes)}
        return {
            name: {
                "mean": short(row.mean()),
                "std_images": short(row.var(0, correction=0).mean().sqrt()),
            }
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


def _accuracies(
    model: Pretrained,
    test: Part,
    values: Values,
    overall: Values,
    means: Values,
    plain: Tensor,
    console: Console,
) -> dict[str, Any]:
    """Accuracy as it is and with other gates, everywhere and in one stage at a time."""
    right = plain.argmax(1) == test.labels  # (N,)
    other = torch.randperm(len(right), generator=stream("shuffled gates"))
    kinds = {  # what a block's gates are set to, (C,) or (N, C)
        "mean": lambda name: overall[name],
        "class mean": lambda name: means[name][test.labels],
        "shuffled": lambda name: values[name][other],
        "one": lambda name: torch.ones_like(overall[name]),
    }
    stages = se_gates.stages(model.net)
    places = {f"stage {i + 1}": stage.gates for i, stage in enumerate(stages)}
    if len(stages) == 1:
        places = {}
    rows = []
    for kind, gate in kinds.items():
        for where, names in {"all": list(values), **places}.items():
            with console.status(f"testing with gates set to {kind}, {where}"):
                found = se_gates.logits_with_gates(
                    model.net, test, {n: gate(n) for n in names}
                )
            now_right = found.argmax(1) == test.labels
            difference = (now_right.int() - right.int()).numpy()
            _, interval = images_only(difference)
            rows.append(
                {
                    "gates": kind,
                    "where": where,
                    **_accuracy(now_right),
                    "difference": short(difference.mean()),
                    "difference_interval": [short(v) for v in interval],
                    "p": short(mcnemar_exact(difference)),
                }
            )
    return {"accuracy": _accuracy(right), "ablations": rows}


def _accuracy(right: Tensor) -> dict[str, Any]:
    """And its interval for new images (Wilson 1927)."""
    from scipy import stats

    found = stats.binomtest(int(right.sum()), len(right)).proportion_ci(method="wilson")
    return {
        "acc": short(right.double().mean()),
        "interval": [short(found.low), short(found.high)],
    }


def _latency(model: Pretrained) -> dict[str, Any]:
    """Milliseconds of a forward pass, with the SE blocks and without, in turns."""
    nets = [model.net, se_gates.without_gates(model.net)]
    device = model.mean.device
    times = {}
    with torch.inference_mode():
        for n in BATCHES:
            images = torch.zeros(n, 3, *model.size, device=device)
            found = milliseconds(nets, images)
            times[str(n)] = dict(
                zip(("with", "without"), map(short, found), strict=True)
            )
    return {
        "device": device.type,
        "threads": torch.get_num_threads(),
        "milliseconds": times,
    }


def _asked_for(cfg: DictConfig, data: ImageDataModule) -> Tensor | None:
    """Which test images maps are asked of, if any.

    Raises:
        UserError: an image that the test set does not have.
    """
    if cfg.maps is None:
        return None
    n, asked = len(data.test_part[0]), list(cfg.maps)
    if not asked or max(asked) >= n:
        raise UserError(f"maps: expected test images, 0..{n - 1}, got {asked}")
    return torch.tensor(asked)


def _surest(logits: Tensor, labels: Tensor) -> Tensor:
    """Images with the most probable predictions: right ones, then wrong ones."""
    sure, predicted = logits.softmax(1).max(1)
    order = sure.argsort(descending=True)
    right = predicted[order] == labels[order]
    return torch.cat([order[right][:MAPS], order[~right][:MAPS]])


def _maps(model: Pretrained, data: ImageDataModule, index: Tensor) -> dict[str, Any]:
    """Grad-CAM of what was predicted, at the last block of each stage."""
    images, labels = (part[index] for part in data.test_part)
    x = model.preprocess(images.to(model.mean.device))
    with torch.inference_mode():
        predicted = model.net(x).argmax(1)
    layers = [stage.last for stage in se_gates.stages(model.net)]
    found = [
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
        "stages": torch.stack(found).numpy(),  # (S, n, H, W)
    }


# --- output ------------------------------------------------------


def _print(entry: dict[str, Any], console: Console) -> None:
    plain = entry["accuracy"]
    low, high = (100 * v for v in plain["interval"])
    console.print(
        f"{entry['label']}: {100 * plain['acc']:.2f} % [{low:.2f}, {high:.2f}] of "
        f"{entry['data']['images']:,} test images",
        soft_wrap=True,
    )
    for rows in (share_rows(entry), ablation_rows(entry)):
        table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
        for i, column in enumerate(rows[0]):
            table.add_column(column, justify="right" if i else "left")
        for row in rows:
            table.add_row(*row.values())
        console.print(table)
    console.print(latency_text(entry), soft_wrap=True)


def _write_entries(out: Path, studies: list[Study]) -> None:
    entries = [study.entry for study in studies]
    try:
        with atomic_file(out / "inspect.json") as file:
            text = json.dumps({"schema": 1, "runs": entries}, indent=1)
            file.write(text.encode() + b"\n")
    except OSError as error:
        raise UserError(f"out: cannot write {out}: {error.strerror}") from None


def _write_pictures(out: Path, studies: list[Study]) -> None:
    import matplotlib.pyplot as plt

    entries = [study.entry for study in studies]
    by_channel = [(s.entry["label"], s.classes, s.channels) for s in studies]
    pictures = {
        "gates": overview(entries),
        "ablations": ablations(entries),
        "channels": channels(by_channel),
    }
    for i, study in enumerate(studies):
        name = "maps" if len(studies) == 1 else f"maps-{i + 1}"
        pictures[name] = maps(study.entry["label"], **study.maps)
    for name, figure in pictures.items():
        try:
            figure.savefig(out / f"{name}.png", dpi=120)
        except OSError as error:
            raise UserError(f"out: cannot write {out}: {error.strerror}") from None
        plt.close(figure)


def main() -> None:
    """Console entry: `resnet-se inspect …`."""
    quiet()
    # To Hydra a,b is a sweep.
    sys.argv = [
        f"run=[{a[4:]}]" if a.startswith("run=") and "," in a and "[" not in a else a
        for a in sys.argv
    ]
    run(inspect, "inspect")


if __name__ == "__main__":
    main()
