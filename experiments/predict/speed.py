"""Classify as `predict` does, beside the plain torchvision loop; interleaved.

Images a second are written.

    python experiments/predict/speed.py run=DIR inputs=DIR [rounds=5] [out=PATH.json]

`inputs` is a folder of class folders, as `ImageFolder` wants it.  All read the same
files with the same network and write the same rows, the five most probable classes of
each: `predict` as it is; a `DataLoader` of `ImageFolder` in this process; the same with
a worker for each core.  Seconds are those from the first file to the last row.
"""

import csv
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from hydra import compose
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from resnet_se.commands.predict import predict
from resnet_se.config.hydra_versions import with_conf
from resnet_se.inference.pretrained import Pretrained, read
from resnet_se.utils import system

TOP, BATCH = 5, 256
WAYS = ("predict", "plain", "plain with workers")


def with_predict(run: str, inputs: str, out: Path) -> float:
    """Seconds of the command itself, its import and the reading of the run apart."""
    with with_conf():
        cfg = compose("predict")
    cfg.run, cfg.inputs, cfg.out, cfg.accelerator = run, inputs, str(out), "cpu"
    return predict(cfg).seconds


@torch.inference_mode()
def plain(model: Pretrained, inputs: str, out: Path, workers: int) -> float:
    """Seconds of the loop as one writes it."""
    steps = [
        v2.PILToTensor(),
        v2.Resize(model.size),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(model.mean.tolist(), model.std.tolist()),
    ]
    images = ImageFolder(inputs, v2.Compose(steps))
    start = time.perf_counter()
    with out.open("w", newline="") as file:
        rows = csv.writer(file)
        done = 0
        for x, _ in DataLoader(images, BATCH, num_workers=workers):
            values, order = model.net(x).softmax(1).topk(TOP)
            for chances, best in zip(values.tolist(), order.tolist(), strict=True):
                names = [model.classes[i] for i in best]
                pairs = zip(names, chances, strict=True)
                path = images.samples[done][0]
                rows.writerow([path, *(v for n, p in pairs for v in (n, f"{p:.6f}"))])
                done += 1
    return time.perf_counter() - start


def measure(run: str, inputs: str, rounds: int) -> dict:
    model = read(run)
    files = len(ImageFolder(inputs).samples)
    cores = system.usable_cores()
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "rows.csv")
        for turn in range(rounds + 1):
            taken = (
                with_predict(run, inputs, out),
                plain(model, inputs, out, 0),
                plain(model, inputs, out, cores),
            )
            for way, value in zip(WAYS, taken, strict=True):
                if turn:  # the first fills caches
                    seconds[way].append(value)
    first = statistics.median(seconds["plain"])
    return {
        **system.environment(),
        "hardware": system.hardware(torch.device("cpu"), "32-true"),
        "settings": {
            "experiment": (model.record or {}).get("experiment"),
            "pictures": files,
            "rounds": rounds,
            "threads": torch.get_num_threads(),
            "workers": cores,
        },
        "ways": {
            way: {
                "images_per_second": files / statistics.median(taken),
                "against_plain": first / statistics.median(taken),
                "seconds": taken,
            }
            for way, taken in seconds.items()
        },
    }


def main() -> None:
    told = dict(argument.split("=", 1) for argument in sys.argv[1:])
    result = measure(told["run"], told["inputs"], int(told.get("rounds", 5)))
    for way, row in result["ways"].items():
        rate, ratio = row["images_per_second"], row["against_plain"]
        print(f"{way:<20} {rate:>9,.0f} images/s  {ratio:.2f} of plain")
    if "out" in told:
        Path(told["out"]).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
