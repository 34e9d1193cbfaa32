"""The wrappings of CIFAR-10 and the layouts of folders: read, timed, compared.

    python experiments/data/wrappings.py [OUT.json]

Makes each wrapping of the images under RESNET_SE_DATA in a temporary folder, reads it
in a process of its own with an empty cache, then again from the cache, and writes what
was typed, what the header says, seconds, the key that the run's hash holds, a digest of
the split, and the process's peak memory.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.datasets import CIFAR10 as Official

from resnet_se.data.augmentation.pipeline import Augmentation
from resnet_se.data.datamodule import ImageDataModule
from resnet_se.data.sources import CIFAR10, CIFAR10_CLASSES
from resnet_se.data.wrappings.image_folder import ImageFolder

BATCH = 10_000
Parts = list[tuple[np.ndarray, np.ndarray]]


def write_python(root: Path, parts: Parts) -> None:
    folder = root / Official.base_folder
    folder.mkdir(parents=True)
    (x, y), (test_x, test_y) = parts
    cuts = [slice(i * BATCH, (i + 1) * BATCH) for i in range(5)]
    batches = {f"data_batch_{i}": (x[c], y[c]) for i, c in enumerate(cuts, 1)}
    for name, (images, labels) in {**batches, "test_batch": (test_x, test_y)}.items():
        content = {"data": images.reshape(-1, 3072), "labels": labels.tolist()}
        (folder / name).write_bytes(pickle.dumps(content))
    meta = {"label_names": list(CIFAR10_CLASSES)}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta))


def write_binary(root: Path, parts: Parts) -> None:
    folder = root / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    files = [f"data_batch_{i}.bin" for i in range(1, 6)], ["test_batch.bin"]
    for names, (x, y) in zip(files, parts, strict=True):
        rows = np.concatenate([y[:, None].astype(np.uint8), x.reshape(len(y), -1)], 1)
        for i, name in enumerate(names):
            (folder / name).write_bytes(rows[i * BATCH : (i + 1) * BATCH].tobytes())


def write_png(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image.transpose(1, 2, 0)).save(path, compress_level=1)


def write_tree(root: Path, parts: Parts) -> None:
    for part, (x, y) in zip(("train", "test"), parts, strict=True):
        for i, (image, label) in enumerate(zip(x, y, strict=True)):
            name = f"{i * 7919 % 60_000:05}.png"
            write_png(root / "cifar10" / part / CIFAR10_CLASSES[label] / name, image)


def write_kaggle(root: Path, parts: Parts) -> None:
    """Kaggle's form: from the tree's files, hard links under numbers."""
    root.mkdir()
    (root / "train").mkdir()
    (root / "test").mkdir()
    tree = root.parent / "fastai/cifar10/train"
    with (root / "trainLabels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["id", "label"])
        for i, path in enumerate(sorted(tree.rglob("*.png")), 1):
            os.link(path, root / f"train/{i}.png")
            table.writerow([i, path.parent.name])


def write_csv(root: Path, parts: Parts) -> None:
    """All 60,000 in one folder, fastai's form of labels."""
    root.mkdir()
    tree = root.parent / "fastai/cifar10"
    with (root / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["name", "label"])
        for i, path in enumerate(sorted(tree.rglob("*.png"))):
            os.link(path, root / f"{i}.png")
            table.writerow([f"{i}.png", path.parent.name])


def write_parquet(root: Path, parts: Parts) -> None:
    import io

    import pyarrow as pa
    from pyarrow import parquet

    folder = root / "plain_text"
    folder.mkdir(parents=True)
    for part, (x, y) in zip(("train", "test"), parts, strict=True):
        images = []
        for image in x:
            file = io.BytesIO()
            Image.fromarray(image.transpose(1, 2, 0)).save(file, "png")
            images.append({"bytes": file.getvalue(), "path": None})
        table = pa.table({"img": images, "label": y})
        parquet.write_table(table, folder / f"{part}-00000-of-00001.parquet")


def write_parts(root: Path, parts: Parts) -> None:
    """The tree under other names of its parts, with files that are no pictures."""
    shutil.copytree(root.parent / "fastai/cifar10", root, copy_function=os.link)
    (root / "train").rename(root / "seg_train")
    (root / "test").rename(root / "Testing")
    (root / "seg_train/cat/Thumbs.db").write_text("no picture")


def write_mixed(root: Path, parts: Parts) -> None:
    """The binary version with the training images in another order."""
    (x, y), test = parts
    order = np.random.default_rng(0).permutation(len(y))
    write_binary(root, [(x[order], y[order]), test])


def write_archive(root: Path, parts: Parts) -> None:
    root.mkdir()
    with tarfile.open(root / "cifar-10-binary.tar.gz", "w:gz", compresslevel=1) as tar:
        tar.add(root.parent / "binary/cifar-10-batches-bin", "cifar-10-batches-bin")


WRAPPINGS = {
    "python": (write_python, "data=cifar10"),
    "binary": (write_binary, "data=cifar10"),
    "binary archive": (write_archive, "data=cifar10"),
    "binary mixed": (write_mixed, "data=cifar10"),
    "parquet": (write_parquet, "data=cifar10"),
    "fastai": (write_tree, "data=cifar10"),
    "kaggle": (write_kaggle, "data=cifar10"),
    "csv": (write_csv, "data=image_folder data.source.labels=labels.csv"),
    "parts": (write_parts, "data=image_folder"),
}


def trust_batches(folder: Path) -> None:
    """Put the md5 of batches that are not the official ones in torchvision."""

    def md5(name: str) -> list[str]:
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    Official.train_list = [md5(f"data_batch_{i}") for i in range(1, 6)]
    Official.test_list = [md5("test_batch")]
    Official.meta = {**Official.meta, "md5": md5("batches.meta")[1]}


def peak_memory() -> int:
    """Return the most kB that this process has held; getrusage's has the parent's."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def measure(root: Path, typed: str) -> dict[str, Any]:
    """Return what reading this wrapping gives; called in a process of its own."""
    if (folder := root / Official.base_folder).is_dir():
        trust_batches(folder)
    labels = "labels.csv" if "labels" in typed else None
    source = (
        ImageFolder(str(root), labels=labels)
        if "image_folder" in typed
        else CIFAR10(str(root), download=False)
    )
    torch.set_num_threads(1)
    start = time.perf_counter()
    key = source.key()
    data = ImageDataModule(source, Augmentation())
    data.setup()
    seconds = time.perf_counter() - start
    digest = hashlib.sha256()
    for part in (data.train_part, data.val_part, data.test_part):
        for tensor in part:
            digest.update(tensor.contiguous().numpy())
    return {
        "typed": typed,
        "said": data.images.origin,
        "order": data.images.order,
        "sizes": [len(p[1]) for p in (data.train_part, data.val_part, data.test_part)],
        "key": key,
        "split": digest.hexdigest()[:16],
        "seconds": round(seconds, 1),
        "peak_mb": peak_memory() >> 10,
    }


def in_process(root: Path, typed: str, cache: Path) -> dict[str, Any]:
    environment = {**os.environ, "RESNET_SE_CACHE": str(cache)}
    command = [sys.executable, __file__, "--measure", str(root), typed]
    done = subprocess.run(
        command, env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Return the Markdown table of the page beside this script."""
    lines = [
        "| wrapping | typed | said | order | key | split | s | s, cached | MB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        cells = (
            *(name, f"`{row['typed']}`", row["said"], row["order"]),
            *(f"`{row['key']}`", f"`{row['split']}`"),
            *(row["seconds"], row["seconds_cached"], f"{row['peak_mb']:,}"),
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> None:
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(Path(sys.argv[2]), sys.argv[3])))
        return
    out = Path(sys.argv[1] if sys.argv[1:] else Path(__file__).with_suffix(".json"))
    archive = Path(os.environ["RESNET_SE_DATA"])
    images = CIFAR10(str(archive), download=False).load()
    tensors = [tensor.numpy() for tensor in images.tensors.values()]
    parts = [(tensors[0], tensors[1]), (tensors[2], tensors[3])]
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder, "cache")
        shelf = archive, "data=cifar10", cache / "archive"
        rows["archive"] = in_process(*shelf)
        rows["archive"]["seconds_cached"] = in_process(*shelf)["seconds"]
        for name, (write, typed) in WRAPPINGS.items():
            root = Path(folder, name.replace(" ", "-"))
            write(root, parts)
            row = in_process(root, typed, cache / name)
            again = in_process(root, typed, cache / name)
            assert (again["key"], again["split"]) == (row["key"], row["split"])
            row["seconds_cached"] = again["seconds"]
            rows[name] = row
            print(json.dumps({name: row}, indent=1), flush=True)
    out.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
