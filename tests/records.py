"""Records as `train` writes them, planted for the tests of the report."""

from __future__ import annotations

import hashlib
import json
from base64 import b64encode
from pathlib import Path
from typing import Any
from zlib import compress

import numpy as np

CPU = {"accelerator": "cpu", "device": "Chip", "cores": 4, "precision": "32-true"}
GPU = CPU | {"accelerator": "cuda", "device": "Card"}
IMAGES = 400


def pack(labels: np.ndarray) -> str:
    return b64encode(compress(labels.astype("<u2").tobytes(), 9)).decode()


def record(
    experiment: str,
    seed: int = 0,
    wrong: Any = (),
    wrong_tta: Any = None,
    *,
    images: int = IMAGES,
    **fields: Any,
) -> dict[str, Any]:
    """A finished run that errs on the images `wrong`; `fields` go over it."""
    labels = np.arange(images) % 4

    def predict(errors: Any) -> np.ndarray:
        predicted = labels.copy()
        predicted[list(errors)] += 1
        return predicted % 4

    plain, tta = predict(wrong), predict(wrong if wrong_tta is None else wrong_tta)
    accuracies = [float((p == labels).mean()) for p in (plain, tta)]
    result: dict[str, Any] = {
        "schema": 2,
        "status": "finished",
        "experiment": experiment,
        "seed": seed,
        "overrides": [f"experiment={experiment}", f"seed={seed}", "budget=short"],
        "setting": {"optimizer.lr": 0.1, "model.depths": [1, 1, 1]},
        "choices": {"model": "se_resnet8", "budget": "short", "optimizer": "sgd"},
        "against": [],
        "noise_family": None,
        "git": {"commit": "0123456789abcdef", "dirty": False},
        "versions": {"python": "3.11.7", "torch": "2.15.0"},
        "hardware": CPU,
        "data": {
            "name": "cifar10",
            "origin": "official batches",
            "fingerprint": "sha256:aaaaaaaaaaaaaaaa",
            "classes": ["ant", "bee", "cow", "<dog> | $&"],
            "train": 1500,
            "val": 500,
            "test": images,
            "batch_size": 64,
            "split_seed": 0,
            "fallback": None,
        },
        "model": {
            "trainable": 4_617_010,
            "non_trainable": 11_200,
            "total": 4_628_210,
            "macs": 728_600_000,
            "layers": 80,
        },
        "train": {
            "epochs": 5,
            "steps": 55,
            "seconds": 90.0,
            "images_per_second": 100.0,
            "peak_memory_mb": 1234.0,
            "stopped": "max_epochs",
        },
        "best_epoch": 1,
        "val": {"acc": 0.5, "loss": 1.0},
        "test": {
            "acc": accuracies[0],
            "acc_tta": accuracies[1],
            "images": images,
            "labels": pack(labels),
            "predicted": pack(plain),
            "predicted_tta": pack(tta),
        },
        "history": {
            "epoch": [0.0, 1.0],
            "train/acc": [0.3, 0.6],
            "val/acc": [0.25, accuracies[0]],
            "train/loss": [2.0, None],
            "val/loss": [2.1, 1.0 + seed / 100],
        },
    }
    for key, value in fields.items():
        merge = isinstance(value, dict) and key in result
        if key == "history" and merge:  # columns of other epochs than these go
            epochs = {len(column) for column in value.values()}
            result[key] = {k: v for k, v in result[key].items() if len(v) in epochs}
        result[key] = result[key] | value if merge else value
    told = [o for o in result["overrides"] if not o.startswith(("experiment", "seed"))]
    parts = [experiment, result["setting"], result["choices"], told]
    text = json.dumps(parts, sort_keys=True)
    result.setdefault("config_hash", hashlib.sha256(text.encode()).hexdigest()[:8])
    return result


def unfinished(experiment: str, seed: int, status: str, **fields: Any) -> dict:
    whole = record(experiment, seed, status=status, **fields)
    return {k: v for k, v in whole.items() if k not in ("test", "val", "train", "data")}


def swept(
    seed: int, wrong: Any = (), experiment: str = "mine", **factors: Any
) -> dict[str, Any]:
    """A job of a sweep over `optimizer__lr=…` and `model=…`."""
    values = {key.replace("__", "."): value for key, value in factors.items()}
    overrides = [f"experiment={experiment}", f"seed={seed}"]
    overrides += [f"{key}={value}" for key, value in values.items()]
    choices = {k: v for k, v in values.items() if "." not in k}
    setting = {k: v for k, v in values.items() if "." in k}
    # what follows from a choice differs with it
    setting["model.depths"] = str(choices.get("model"))
    plain = record(experiment)
    return record(
        experiment,
        seed,
        wrong,
        overrides=overrides,
        setting=plain["setting"] | setting,
        choices=plain["choices"] | choices,
    )


def write(folder: Path, *records: dict | str) -> list[Path]:
    """Files `folder/NN/result.json`."""
    paths = []
    for i, content in enumerate(records):
        path = folder / f"{i:03d}" / "result.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        text = content if isinstance(content, str) else json.dumps(content)
        path.write_text(text)
        paths.append(path)
    return paths
