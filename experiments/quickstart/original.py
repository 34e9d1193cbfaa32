"""A trained network on original CIFAR-10 images, beside the JPEG copy's figure.

    python experiments/quickstart/original.py --run RUN --images cifar10.npz --out PATH

The file holds `test_images` (N, 32, 32, 3) uint8 and `test_labels` (N,) in CIFAR-10's
order of classes.  They are looked at once, after all choices.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from scipy.stats import binomtest

import resnet_se
from resnet_se.utils.system import environment


def accuracy(right: np.ndarray) -> dict[str, object]:
    """Share of `right` (N,), and its exact 95 % interval over images."""
    interval = binomtest(int(right.sum()), len(right)).proportion_ci()
    bounds = [round(interval.low, 4), round(interval.high, 4)]
    return {"acc": round(float(right.mean()), 4), "interval": bounds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", required=True, help="a run directory or a bundle")
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    told = parser.parse_args()
    model = resnet_se.load(told.run)
    with np.load(told.images) as file:
        images, labels = file["test_images"], file["test_labels"]
    names = np.array(model.classes)[labels]
    found = {}
    for way, tta in (("plain", False), ("tta", True)):
        predicted = model.predict(images, tta=tta)
        found[way] = accuracy(np.array([p.label for p in predicted]) == names)
    record = {
        "run": Path(model.source).name,
        "images": len(labels),
        **found,
        "jpeg_copy": {key: model.record["test"][key] for key in ("acc", "acc_tta")},
        **environment(),
    }
    told.out.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
