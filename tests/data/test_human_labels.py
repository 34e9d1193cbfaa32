"""Labels of people and wrong labels: exact shares, a clean test, nothing executed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from resnet_se.data.augmentation.pipeline import Augmentation
from resnet_se.data.datamodule import ImageDataModule
from resnet_se.data.human_labels import (
    CIFAR10N,
    FILE,
    noisy_labels,
    read_human_labels,
)
from resnet_se.data.image_set import ImageSet
from resnet_se.data.sources import CIFAR10, CIFAR10_CLASSES
from resnet_se.data.synthetic import Synthetic
from resnet_se.runs.record import pack_labels
from resnet_se.training.module import Classifier
from resnet_se.utils.errors import UserError

LABELS = torch.arange(1000) % 10


@pytest.mark.parametrize("share", [0.1, 0.4])
def test_the_share_of_every_class_is_exact_and_the_seed_fixes_it(share):
    noisy = noisy_labels(LABELS, share, "symmetric", 0, 10)
    for label in range(10):
        wrong = noisy[label::10] != label
        assert int(wrong.sum()) == round(100 * share)
    assert torch.equal(noisy, noisy_labels(LABELS, share, "symmetric", 0, 10))
    assert not torch.equal(noisy, noisy_labels(LABELS, share, "symmetric", 1, 10))


def test_symmetric_noise_takes_every_other_class_and_pairs_the_next():
    many = torch.arange(20_000) % 10
    noisy = noisy_labels(many, 0.9, "symmetric", 0, 10)[::10]  # of class 0
    counts = noisy.bincount(minlength=10)
    assert counts[0] == 200
    assert (counts[1:] - 200).abs().max() < 4 * 200**0.5
    pairs = noisy_labels(LABELS, 0.3, "pairs", 0, 10)
    wrong = pairs != LABELS
    assert int(wrong.sum()) == 300
    assert torch.equal(pairs[wrong], (LABELS[wrong] + 1) % 10)
    few = torch.zeros(10, dtype=torch.int64)  # a part without the other classes
    assert noisy_labels(few, 0.5, "pairs", 0, 10).sum() == 5


def test_noise_changes_neither_split_nor_pixels_nor_test():
    clean, noisy = (
        ImageDataModule(Synthetic(300, 60), Augmentation(), label_noise=share)
        for share in (0.0, 0.2)
    )
    clean.setup()
    noisy.setup()
    for part in ("train_part", "val_part", "test_part"):
        assert torch.equal(getattr(clean, part)[0], getattr(noisy, part)[0])
    labels = [torch.cat([d.train_part[1], d.val_part[1]]) for d in (clean, noisy)]
    assert int((labels[0] != labels[1]).sum()) == 60
    assert torch.equal(clean.test_part[1], noisy.test_part[1])


# --- CIFAR-10N ---------------------------------------------------

CLEAN = np.array([3, 1, 0, 2, 9, 8, 7, 6, 5, 4] * 3)


def human(folder: Path, **arrays: object) -> Path:
    labels = {"clean_label": CLEAN, "worse_label": (CLEAN + np.arange(30) // 10) % 10}
    torch.save(labels | arrays, folder / FILE)
    return folder / FILE


def images(labels: np.ndarray) -> ImageSet:
    x = torch.zeros(len(labels), 3, 32, 32, dtype=torch.uint8)
    x[:, 0, 0, 0] = torch.from_numpy(labels)
    y = torch.from_numpy(labels)
    return ImageSet("cifar10", "official CIFAR-10", CIFAR10_CLASSES, x, y, x, y)


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(CIFAR10, "load", lambda self: images(CLEAN))
    monkeypatch.setattr(CIFAR10, "as_files", lambda self: ("cifar10-x", self.load))
    return monkeypatch


def test_people_s_labels_stand_beside_the_same_images(given, tmp_path):
    human(tmp_path)
    loaded = CIFAR10N(str(tmp_path)).load()
    assert torch.equal(loaded.train_images, images(CLEAN).train_images)
    wanted = torch.from_numpy((CLEAN + np.arange(30) // 10) % 10)
    assert torch.equal(loaded.train_labels, wanted)
    assert torch.equal(loaded.test_labels, images(CLEAN).test_labels)
    assert loaded.name == "cifar10n"


def test_class_folders_get_the_labels_of_the_official_order(given, tmp_path):
    order = CLEAN.argsort(kind="stable")
    given.setattr(CIFAR10, "load", lambda self: images(CLEAN[order]))
    human(tmp_path)
    loaded = CIFAR10N(str(tmp_path)).load()
    wanted = ((CLEAN + np.arange(30) // 10) % 10)[order]
    assert torch.equal(loaded.train_labels, torch.from_numpy(wanted))
    assert "official order within each class" in loaded.origin


def test_the_key_tells_kinds_and_files_apart(given, tmp_path):
    human(tmp_path)
    keys = {CIFAR10N(str(tmp_path)).key()}
    keys.add(CIFAR10N(str(tmp_path), kind="aggre_label").key())
    human(tmp_path, worse_label=CLEAN)
    keys.add(CIFAR10N(str(tmp_path), labels=str(tmp_path / FILE)).key())
    assert len(keys) == 3


class Calls:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.mkdir, (Path("made"),)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"worse_label": CLEAN + 5}, "integers 0 to 9"),
        ({"worse_label": CLEAN / 2}, "`worse_label`, float64"),
        ({"worse_label": CLEAN[:-1]}, "\\(29,\\)"),
        ({"worse_label": Calls()}, "holds more than arrays"),
        ({"clean_label": CLEAN[::-1].copy(), "worse_label": CLEAN}, None),
    ],
)
def test_a_mistake_is_one_sentence(given, tmp_path, monkeypatch, arrays, message):
    monkeypatch.chdir(tmp_path)
    human(tmp_path, **arrays)
    with pytest.raises(UserError, match=message or "those of others") as caught:
        CIFAR10N(str(tmp_path)).load()
    assert str(caught.value).startswith("data.source.labels: expected")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "made").exists()


def test_a_damaged_or_missing_file_is_named(given, tmp_path):
    with pytest.raises(UserError, match=f"{FILE} in .*, got no such file"):
        CIFAR10N(str(tmp_path)).key()
    path = human(tmp_path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match="labels of CIFAR-10N in"):
        read_human_labels(path)


# --- a run on wrong labels ---------------------------------------


@pytest.mark.slow
def test_a_run_says_its_noise_and_goes_on_with_the_same_wrong_labels(
    train, run_dirs, tmp_path, monkeypatch
):
    noise = ("data.label_noise=0.2", "data.label_noise_kind=pairs")
    assert train("runs_dir=whole", *noise) == 0
    seen, begin, due = [], Classifier.on_train_batch_start, [KeyboardInterrupt]

    def stopped(module, batch, batch_idx):
        if batch_idx == 0:
            seen.append(module.trainer.datamodule.train_part[1].clone())
        if (module.current_epoch, batch_idx) == (1, 1) and due:
            raise due.pop()
        begin(module, batch, batch_idx)

    monkeypatch.setattr(Classifier, "on_train_batch_start", stopped)
    assert train(*noise) == 130
    assert train(*noise) == 0
    ((run_dir, record),) = run_dirs().items()
    (whole,) = tmp_path.glob("whole/*/*")
    assert run_dir.name == whole.name
    assert len(seen) >= 3  # before the stop and after it
    assert all(torch.equal(labels, seen[0]) for labels in seen)
    assert record["setting"]["data.label_noise"] == 0.2
    assert record["data"]["origin"].endswith(
        ", 0.2 of the labels to train and validate on made wrong (pairs)"
    )
    other = json.loads((whole / "result.json").read_text())
    for part in ("val", "test"):
        assert record[part]["loss"] == pytest.approx(other[part]["loss"], rel=1e-4)
    clean = Synthetic(240, 60).load()  # the test part is as it was
    assert record["test"]["labels"] == pack_labels(clean.test_labels)
