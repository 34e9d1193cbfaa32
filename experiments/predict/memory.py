"""Classify images in memory and files, given one by one and as a whole; interleaved.

Processor time is measured, and written.

    python experiments/predict/memory.py run=DIR inputs=DIR [rounds=7] [out=PATH.json]

`inputs` is a folder of pictures.  One tensor of all images is what a list or generator
of tensors, arrays and PIL images is held against; the folder what a list of its paths.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

from resnet_se.data.decode import decode
from resnet_se.inference.pretrained import Pretrained, read
from resnet_se.utils import system


def ways_of(model: Pretrained, folder: Path) -> dict[str, tuple[str, Callable]]:
    """Return {way: (what it is held against, a call)}."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    images = torch.stack([torch.tensor(decode(f, model.size).pixels) for f in files])
    arrays = [image.permute(1, 2, 0).contiguous().numpy() for image in images]
    pictures = [Image.fromarray(array) for array in arrays]
    return {
        "tensor": ("tensor", lambda: model.predict(images)),
        "list of tensors": ("tensor", lambda: model.predict(list(images))),
        "generator of tensors": ("tensor", lambda: model.predict(iter(images))),
        "list of arrays": ("tensor", lambda: model.predict(arrays)),
        "list of PIL images": ("tensor", lambda: model.predict(pictures)),
        "folder": ("folder", lambda: model.predict(folder)),
        "list of paths": ("folder", lambda: model.predict(files)),
    }


def measure(run: str, inputs: str, rounds: int) -> dict:
    model = read(run)
    ways = ways_of(model, Path(inputs))
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(rounds + 1):
        for way, (_, call) in ways.items():
            start = time.process_time()
            pictures = len(call().names)
            if turn:  # the first fills caches
                seconds[way].append(time.process_time() - start)
    middle = {way: statistics.median(values) for way, values in seconds.items()}
    return {
        **system.environment(),
        "hardware": system.hardware(torch.device("cpu"), "32-true"),
        "settings": {
            "macs": (model.record or {})["model"]["macs"],
            "pictures": pictures,
            "rounds": rounds,
            "threads": torch.get_num_threads(),
        },
        "ways": {
            way: {
                "against": other,
                "speed": middle[other] / middle[way],
                "seconds": seconds[way],
            }
            for way, (other, _) in ways.items()
        },
    }


def main() -> None:
    told = dict(argument.split("=", 1) for argument in sys.argv[1:])
    result = measure(told["run"], told["inputs"], int(told.get("rounds", 7)))
    for way, row in result["ways"].items():
        print(f"{way:<22} {row['speed']:.3f} of the {row['against']}'s speed")
    if "out" in told:
        Path(told["out"]).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
