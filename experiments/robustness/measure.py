"""Measures one trained network on all test sets that can be made without a download.

    python experiments/robustness/measure.py RUN FILES

RUN is a quickstart on the JPEG copy of CIFAR-10 (RESNET_SE_DATA), after

    resnet-se evaluate run=RUN data=cifar10_c_here data.source.images=1000 tta=none \
        'data.source.corruptions=[…all 18…]'
    resnet-se evaluate run=RUN data=arrays data.source.root=FILES/lossless
    resnet-se data run=RUN out=FILES/look

FILES holds `lossless/`, the first 1,017 test images of CIFAR-10 before compression, and
as published `CIFAR-10_human.pt` (CIFAR-10N), `cifar10h-probs.npy` (CIFAR-10H) and
`duplicates_cifar10.csv` (ciFAIR).  The class folders of the JPEG copy keep the official
order within each class, which joins them all.  Writes `robustness.json`.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest

from resnet_se.analysis.label_errors import held_out, likely_errors
from resnet_se.config.build import run_data
from resnet_se.config.recipe import load_recipe
from resnet_se.config.targets import build_target
from resnet_se.data.human_labels import read_human_labels
from resnet_se.inference.pretrained import load
from resnet_se.inference.robustness import of_people, outputs
from resnet_se.runs.record import read_record, unpack_labels
from resnet_se.utils.files import write_json

KINDS = ("aggre_label", "random_label1", "worse_label")


def share(hits: int, n: int) -> dict[str, Any]:
    """Return a share with Wilson's 95 % interval."""
    ends = binomtest(hits, n).proportion_ci(method="wilson")
    acc, low, high = (round(v, 6) for v in (hits / n, ends.low, ends.high))
    return {"images": n, "acc": acc, "acc_95": [low, high]}


def places(labels: np.ndarray) -> np.ndarray:
    """Return the place in class folders of 1,000 of test images in official order."""
    seen = [0] * 10
    found = []
    for label in labels.tolist():
        found.append(1000 * label + seen[label])
        seen[label] += 1
    return np.array(found)


def twins(look: dict[str, Any], correct: np.ndarray) -> dict[str, Any]:
    """Return accuracies of test images with a near duplicate in training or without."""
    twin = np.zeros(len(correct), bool)
    twin[look["duplicates"]["test_images_in_train"]] = True
    return {
        "counts": look["duplicates"]["counts"],
        "near": look["near"],
        "with": share(int(correct[twin].sum()), int(twin.sum())),
        "without": share(int(correct[~twin].sum()), int((~twin).sum())),
    }


def against_cifair(
    look: dict[str, Any], rows: list[dict[str, str]], at: np.ndarray, train: np.ndarray
) -> dict[str, Any]:
    """Compare our pairs with ciFAIR's, of the test images at `at`.

    Args:
        train: place in class folders of each training image in official order.
    """
    ours = {
        (second["index"], first["index"])
        for first, second, _ in look["duplicates"]["pairs"]
        if (first["part"], second["part"]) == ("train", "test")
    }
    listed = {
        (int(at[int(row["TestID"])]), int(train[int(row["TrainID"])])): row["Judgment"]
        for row in rows
        if int(row["TestID"]) < len(at)
    }
    same_shot = [pair for pair, kind in listed.items() if kind in "01"]
    first = set(at.tolist())
    return {
        "test_images": len(at),
        "listed": len(listed),
        "found": sum(pair in ours for pair in listed),
        "same_shot": len(same_shot),
        "found_same_shot": sum(pair in ours for pair in same_shot),
        "unlisted": sorted({i for i, _ in ours if i in first} - {i for i, _ in listed}),
    }


def errors_of_people(
    run: Path, human: dict[str, torch.Tensor], order: torch.Tensor
) -> dict[str, Any]:
    """Find label errors among people's labels of the validation part."""
    source = build_target("data.source", load_recipe(run)["data"]["source"]).load()
    labels = source.train_labels
    images = torch.cat([source.train_images, source.test_images])
    indices, p = held_out([run], images, torch.cat([labels, source.test_labels]))
    val = indices < len(labels)
    indices, p = indices[val], p[val]
    found: dict[str, Any] = {"images": len(indices)}
    for kind in KINDS:
        given = human[kind][order][indices]
        wrong = given != labels[indices]
        likely = likely_errors(given, p)
        hits = int(wrong[likely].sum())
        row = {"wrong": int(wrong.sum()), "likely": len(likely), "right": hits}
        found[kind] = row
    return found


def main(run: Path, files: Path) -> None:
    record = read_record(run / "result.json")
    test, labels = record["test"], unpack_labels(record["test"]["labels"])
    correct = unpack_labels(test["predicted"]) == labels
    with_tta = unpack_labels(test["predicted_tta"]) == labels
    at = places(np.load(files / "lossless/labels.npy"))
    human = read_human_labels(files / "CIFAR-10_human.pt")
    order = human["clean_label"].argsort(stable=True)
    look = json.loads((files / "look/summary.json").read_text())
    rows = list(csv.DictReader((files / "duplicates_cifar10.csv").open()))
    images, own = run_data(run).test_part
    people = torch.from_numpy(np.load(files / "cifar10h-probs.npy")[: len(at)])
    here, lossless = (
        json.loads((run / f"evaluations/{name}.json").read_text())
        for name in ("cifar10_c_here-1000", "arrays-lossless")
    )
    for packed in ("labels", "predicted", "predicted_tta"):
        lossless.pop(packed)
    logits = outputs(load(run), images[at], None).logits
    result = {
        "run": {
            key: record[key]
            for key in ("experiment", "seed", "config_hash", "versions", "hardware")
        },
        "data": {k: record["data"][k] for k in ("name", "origin", "fingerprint")},
        "seconds": record["train"]["seconds"],
        "test": share(int(correct.sum()), len(correct)),
        "test_tta": share(int(with_tta.sum()), len(with_tta)),
        "first_1017": share(int(correct[at].sum()), len(at)),
        "first_1017_tta": share(int(with_tta[at].sum()), len(at)),
        "lossless": lossless,
        "corrupted": here,
        "twins": twins(look, correct),
        "cifair": against_cifair(look, rows, at, np.argsort(order.numpy())),
        "people": of_people(logits, own[at], people),
        "label_errors": errors_of_people(run, human, order),
        "likely_errors_of_cifar10": len(look["label_errors"]["likely"]),
        "looked_at": look["label_errors"]["looked_at"],
    }
    write_json(Path(__file__).with_name("robustness.json"), result, indent=1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
