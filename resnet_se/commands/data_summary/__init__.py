"""Looks at images and labels before anything is trained on them.

    resnet-se data PATH                            # a folder of yours, or an archive
    resnet-se data data=cifar10 [run=RUN] [out=DIR]

Counts by class, size, mean and deviation; duplicates within and between the training
and the test part, exact and near, and those whose labels differ; with `run` likely
label errors, by predictions of runs for images they were not trained on.  All of it,
and pictures, lie in `out`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import Tensor

from resnet_se.analysis.duplicates import Pair, find_pairs
from resnet_se.analysis.label_errors import held_out, likely_errors
from resnet_se.commands.data_summary.output import print_summary
from resnet_se.config.targets import build_target, check_targets
from resnet_se.data.image_set import ImageSet
from resnet_se.data.normalisation import channel_statistics
from resnet_se.runs.record import round_significant
from resnet_se.utils.files import check_folder, write_json, writing

SHOWN = 24  # pictures of a sheet


class Images:
    """All images of a set, part after part, training first, and their labels."""

    def __init__(self, images: ImageSet):
        self.set = images
        tensors = images.tensors
        self.parts = [p for p in ("train", "val", "test") if f"{p}_images" in tensors]
        pixels, labels = (
            [tensors[f"{part}_{kind}"] for part in self.parts]
            for kind in ("images", "labels")
        )
        self.pixels, self.labels = torch.cat(pixels), torch.cat(labels)
        ends = torch.tensor([len(part) for part in labels]).cumsum(0).tolist()
        self.begin = dict(zip(self.parts, [0, *ends], strict=False))

    def part(self, index: int) -> str:
        """Return the part that an image is in."""
        return [name for name in self.parts if self.begin[name] <= index][-1]

    def name(self, index: int) -> dict[str, Any]:
        """Return the part, the place in it and the label of an image."""
        part, label = self.part(index), self.set.classes[int(self.labels[index])]
        return {"part": part, "index": index - self.begin[part], "label": label}


def summarise(cfg: DictConfig) -> dict[str, Any]:
    """Write `summary.json` and pictures into `out`; return the summary.

    Raises:
        UserError: as the source's `load`; runs of other data; no cleanlab.
    """
    values: Any = OmegaConf.to_container(cfg.data, resolve=True)
    check_targets({"source": values["source"]}, "data")
    out = Path(cfg.out)
    check_folder(out)
    images = Images(build_target("data.source", values["source"]).load())
    errors = _label_errors(cfg.run, images)
    pairs = find_pairs(images.pixels, cfg.near)
    summary = {
        **_counts(images.set),
        "near": cfg.near,
        "duplicates": _duplicates(images, pairs),
    }
    if errors is not None:
        summary["label_errors"] = errors
    with writing(out):
        write_json(out / "summary.json", summary)
        _draw(images, pairs, errors, out)
    print_summary(summary, out)
    return summary


def _counts(images: ImageSet) -> dict[str, Any]:
    k, found = len(images.classes), {}
    for part in Images(images).parts:
        pixels: Tensor = images.tensors[f"{part}_images"]
        labels: Tensor = images.tensors[f"{part}_labels"]
        mean, std = channel_statistics(pixels) if len(pixels) else ((), ())
        by_class = labels.bincount(minlength=k).tolist()
        found[part] = {
            "images": len(pixels),
            "by_class": dict(zip(images.classes, by_class, strict=True)),
            "mean": [round_significant(float(v)) for v in mean],
            "std": [round_significant(float(v)) for v in std],
        }
    size = list(images.train_images.shape[2:])
    identity = {"name": images.name, "origin": images.origin, "size": size}
    return {**identity, "fingerprint": images.fingerprint, "parts": found}


def _duplicates(images: Images, pairs: list[Pair]) -> dict[str, Any]:
    """Return the number of pairs within and between the parts, and the pairs."""
    places = {
        (one, other): f"within {one}" if one == other else f"{one} and {other}"
        for i, one in enumerate(images.parts)
        for other in images.parts[i:]
    }
    counts = {p: {"exact": 0, "near": 0, "other_label": 0} for p in places.values()}
    tested = set()
    for pair in pairs:
        between = images.part(pair.first), images.part(pair.second)
        row = counts[places[between]]
        row["exact" if pair.exact else "near"] += 1
        first, second = images.labels[[pair.first, pair.second]]
        row["other_label"] += int(first != second)
        if between == ("train", "test"):
            tested.add(pair.second - images.begin["test"])
    return {
        "counts": counts,
        "test_images_in_train": sorted(tested),
        "pairs": [
            [
                images.name(p.first),
                images.name(p.second),
                round_significant(p.similarity),
            ]
            for p in pairs
        ],
    }


def _label_errors(run: Any, images: Images) -> dict[str, Any] | None:
    if run is None:
        return None
    runs = [Path(path) for path in (run if isinstance(run, ListConfig) else [run])]
    indices, p = held_out(runs, images.pixels, images.labels)
    labels = images.labels[indices]
    errors = likely_errors(labels, p)
    return {
        "looked_at": len(indices),
        "likely": [
            {
                **images.name(int(indices[i])),
                "predicted": images.set.classes[int(p[i].argmax())],
                "probability_of_label": round_significant(float(p[i, labels[i]])),
            }
            for i in errors
        ],
    }


# --- pictures ----------------------------------------------------


def _draw(
    images: Images, pairs: list[Pair], errors: dict[str, Any] | None, out: Path
) -> None:
    from resnet_se.analysis.run_figures import contact_sheet

    classes = images.set.classes
    some = [
        int(i)
        for k in range(min(len(classes), SHOWN))
        for i in (images.labels == k).nonzero().flatten()[:8]
    ]
    titles = [classes[int(images.labels[i])] for i in some]
    contact_sheet(images.pixels[some], titles, out / "classes.png")
    shown = [i for p in pairs[-SHOWN // 2 :] for i in (p.first, p.second)]
    if shown:  # the least alike, for the eye to judge
        names = [images.name(i) for i in shown]
        titles = [f"{n['part']} {n['index']}\n{n['label']}" for n in names]
        contact_sheet(images.pixels[shown], titles, out / "duplicates.png")
    likely = (errors or {}).get("likely", [])[:SHOWN]
    if likely:
        at = [e["index"] + images.begin[e["part"]] for e in likely]
        titles = [f"{e['label']}?\n{e['predicted']}" for e in likely]
        contact_sheet(images.pixels[at], titles, out / "label_errors.png")
