"""Test sets: each in its published layout, and each mistake of one in a sentence."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from resnet_se.data.sources import CIFAR10_CLASSES, CIFAR100_CLASSES
from resnet_se.data.test_sets.base import LabelledImages, TestSet, Trained
from resnet_se.data.test_sets.corrupted import Corrupted
from resnet_se.data.test_sets.own import Arrays, Pictures
from resnet_se.data.test_sets.published import (
    CIFAR10_1,
    CIFAR10C,
    CIFAR10H,
    CiFAIR10,
    CiFAIR100,
)
from resnet_se.utils.errors import UserError

N = 20
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (N, 32, 32, 3), dtype=np.uint8)
LABELS = np.arange(N) % 10
# A network's classes in another order: labels must be told by name.
REVERSED = tuple(reversed(CIFAR10_CLASSES))


def trained(classes: tuple[str, ...] = REVERSED) -> Trained:
    own = torch.from_numpy(IMAGES).permute(0, 3, 1, 2)
    names = [CIFAR10_CLASSES[i] for i in LABELS]
    labels = torch.tensor([classes.index(n) if n in classes else 0 for n in names])
    return Trained(classes, (32, 32), lambda: (own, labels))


def parts(
    test_set: TestSet, classes: tuple[str, ...] = REVERSED
) -> list[LabelledImages]:
    return list(test_set.load(trained(classes)))


def names_of(part: LabelledImages, classes: tuple[str, ...] = REVERSED) -> list[str]:
    return [classes[i] for i in part.labels]


def assert_is_ours(part: LabelledImages, classes: tuple[str, ...] = REVERSED) -> None:
    assert part.images.dtype == torch.uint8
    assert torch.equal(part.images, torch.from_numpy(IMAGES).permute(0, 3, 1, 2))
    assert names_of(part, classes) == [CIFAR10_CLASSES[i] for i in LABELS]


def save(folder: Path, **arrays: np.ndarray) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        np.save(folder / f"{name.replace('__', '.')}.npy", array, allow_pickle=True)
    return folder


def cifar10_1(folder: Path, images: np.ndarray, labels: np.ndarray) -> None:
    names = {"cifar10__1_v6_data": images, "cifar10__1_v6_labels": labels}
    save(folder, **names)


# --- layouts -----------------------------------------------------


def test_cifar10_1_of_either_version_beside_or_below_datasets(tmp_path):
    cifar10_1(tmp_path, IMAGES, LABELS.astype(np.int32))
    [part] = parts(CIFAR10_1(str(tmp_path)))
    assert_is_ours(part)
    for end, array in (("data", IMAGES[:5]), ("labels", LABELS[:5])):
        save(tmp_path / "datasets", **{f"cifar10__1_v4_{end}": array})
    [part] = parts(CIFAR10_1(str(tmp_path), version="v4"))
    assert len(part.images) == 5


def test_cifar10_c_has_five_severities_one_after_the_other(tmp_path):
    labels = np.tile(LABELS[:4], 5)
    folder = tmp_path / "CIFAR-10-C"
    save(folder, fog=IMAGES, snow=IMAGES[::-1], labels=labels)
    found = parts(CIFAR10C(str(tmp_path)))
    assert [(part.name, part.severity) for part in found] == [
        (name, severity) for name in ("fog", "snow") for severity in range(1, 6)
    ]
    for i, part in enumerate(found[:5]):
        wanted = torch.from_numpy(IMAGES[4 * i : 4 * i + 4]).permute(0, 3, 1, 2)
        assert torch.equal(part.images, wanted)
        assert names_of(part) == list(CIFAR10_CLASSES[:4])


def shares() -> np.ndarray:
    people = np.full((N, 10), 0.02)
    people[np.arange(N), LABELS] = 0.82
    return people


@pytest.mark.parametrize("root", [".", "data/cifar10h-probs.npy"])
def test_cifar10_h_follows_the_network_s_order_of_classes(tmp_path, root):
    np.save(save(tmp_path / "data") / "cifar10h-probs.npy", shares())
    [part] = parts(CIFAR10H(str(tmp_path / root)))
    assert_is_ours(part)
    assert torch.equal(part.people.argmax(dim=1), part.labels)
    assert part.people.sum(dim=1).allclose(torch.ones(N))


@pytest.mark.parametrize("hundred", [False, True])
@pytest.mark.parametrize("form", ["folder", "above", "zip"])
def test_cifair_is_read_as_released(tmp_path, hundred, form):
    pixels = IMAGES.transpose(0, 3, 1, 2).reshape(N, 3072)
    batch = {"data": pixels, "fine_labels" if hundred else "labels": LABELS.tolist()}
    name, file = ("ciFAIR-100", "test") if hundred else ("ciFAIR-10", "test_batch")
    folder = save(tmp_path / name)
    (folder / file).write_bytes(pickle.dumps(batch, protocol=2))
    root = {"folder": folder, "above": tmp_path, "zip": tmp_path / f"{name}.zip"}[form]
    if form == "zip":
        with zipfile.ZipFile(root, "w") as archive:
            archive.write(folder / file, f"{name}/{file}")
    classes = CIFAR100_CLASSES if hundred else REVERSED
    [part] = parts((CiFAIR100 if hundred else CiFAIR10)(str(root)), classes)
    assert torch.equal(part.images, torch.from_numpy(IMAGES).permute(0, 3, 1, 2))
    wanted = CIFAR100_CLASSES if hundred else CIFAR10_CLASSES
    assert names_of(part, classes) == [wanted[i] for i in LABELS]


def test_arrays_of_any_size_have_the_network_s_labels(tmp_path):
    images = RNG.integers(0, 256, (3, 20, 24, 3), dtype=np.uint8)
    save(tmp_path, images=images, labels=np.array([2, 0, 1], np.uint8))
    [part] = parts(Arrays(str(tmp_path)), ("a", "b", "c"))
    assert part.images.shape == (3, 3, 20, 24)
    assert part.labels.tolist() == [2, 0, 1]


def tree(folder: Path, *names: str) -> Path:
    for i, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(IMAGES[i]).save(path)
    return folder


def test_pictures_of_some_of_the_classes(tmp_path):
    tree(tmp_path, "cat/a.png", "ship/b.png", "ship/c.png")
    [part] = parts(Pictures(str(tmp_path)))
    assert names_of(part) == ["cat", "ship", "ship"]
    assert torch.equal(part.images[0], torch.from_numpy(IMAGES[0]).permute(2, 0, 1))


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train", "test"),
        ("Train", "VALID"),
        ("seg_train", "seg_test"),
        ("train", "dev"),
    ],
)
def test_pictures_of_a_tree_are_its_test_part(tmp_path, train, test):
    """Else the training images would be tested on, in silence."""
    tree(tmp_path, f"x/{train}/cat/a.png", f"x/{test}/dog/b.png", f"x/{test}/cat/c.png")
    [part] = parts(Pictures(str(tmp_path)))
    assert names_of(part) == ["cat", "dog"]


# --- mistakes ----------------------------------------------------


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def cifair_batch(folder: Path, batch: object) -> CiFAIR10:
    save(folder / "ciFAIR-10")
    (folder / "ciFAIR-10/test_batch").write_bytes(pickle.dumps(batch, protocol=2))
    return CiFAIR10(str(folder))


class Calls:
    """A pickle of it would make a folder where it is loaded by `pickle.load`."""

    def __reduce__(self) -> tuple[Callable, tuple[str]]:
        return Path.mkdir, (Path("made"),)


def bad_labels(labels: np.ndarray) -> Callable[[Path], TestSet]:
    def make(folder: Path) -> TestSet:
        cifar10_1(folder, IMAGES, labels)
        return CIFAR10_1(str(folder))

    return make


def bad_images(images: np.ndarray) -> Callable[[Path], TestSet]:
    def make(folder: Path) -> TestSet:
        cifar10_1(folder, images, LABELS)
        return CIFAR10_1(str(folder))

    return make


def cut_off(folder: Path) -> TestSet:
    cifar10_1(folder, IMAGES, LABELS)
    truncated(folder / "cifar10.1_v6_data.npy")
    return CIFAR10_1(str(folder))


def of_people(people: np.ndarray) -> Callable[[Path], TestSet]:
    def make(folder: Path) -> TestSet:
        np.save(folder / "cifar10h-probs.npy", people)
        return CIFAR10H(str(folder))

    return make


def uneven(folder: Path) -> TestSet:
    save(folder, fog=IMAGES[:18], labels=LABELS[:18])
    return CIFAR10C(str(folder))


def no_corruption(folder: Path) -> TestSet:
    return CIFAR10C(str(save(folder, labels=LABELS)))


def other_classes(folder: Path) -> TestSet:
    return Pictures(str(tree(folder, "cat/a.png", "sheep/b.png")))


def no_test_part(folder: Path) -> TestSet:
    return Pictures(str(tree(folder, "train/cat/a.png")))


def broken_picture(folder: Path) -> TestSet:
    (tree(folder, "cat/a.png") / "cat/b.png").write_bytes(b"\x89PNG\r\n")
    return Pictures(str(folder))


def pixels_of(dtype: type, width: int = 3072) -> np.ndarray:
    return np.zeros((N, width), dtype)


BAD = {
    "nothing there": (lambda f: CIFAR10_1(str(f / "no")), "nothing is there"),
    "another version": (lambda f: CIFAR10_1(str(f)), "cifar10.1_v6_data.npy"),
    "truncated": (cut_off, "no whole .npy file"),
    "objects": (bad_labels(np.array([{}] * N)), "no whole .npy file"),
    "floats": (bad_labels(LABELS / 1.0), "labels as integers"),
    "label outside": (bad_labels(LABELS + 1), "labels from 0 to 9 .* got 10"),
    "label below": (bad_labels(LABELS - 1), "labels from 0 to 9 .* got -1"),
    "too few labels": (bad_labels(LABELS[:-1]), "20 labels, one an image, .* got 19"),
    "labels of two axes": (bad_labels(LABELS[:, None]), "the shape \\(20, 1\\)"),
    "another shape": (bad_images(IMAGES[:, :28]), "the shape \\(20, 28, 32, 3\\)"),
    "another type": (bad_images(IMAGES / 255), "got float64"),
    "no image": (bad_images(IMAGES[:0]), "the shape \\(0, 32, 32, 3\\)"),
    "uneven severities": (uneven, "5 severities, as many of each, .* got 18"),
    "no corruption": (no_corruption, "<corruption>.npy beside .*, got none"),
    "sums": (of_people(shares() * 1.1), "sum to one .* got 1.1 in row 0, and 19 more"),
    "nan": (of_people(shares() * np.nan), "sum to one"),
    "counts": (of_people(np.ones((N, 10), int)), "shares of people .* got int64"),
    "rows": (of_people(shares()[:-1]), "20 test images .* got 19 rows"),
    "another order": (of_people(shares()[::-1].copy()), "official order"),
    "a call": (lambda f: cifair_batch(f, Calls()), "it names .*, no array"),
    "no labels": (lambda f: cifair_batch(f, {"data": pixels_of(np.uint8)}), "`labels`"),
    "no dict": (lambda f: cifair_batch(f, [1]), "a batch in .*, got list"),
    "batch's type": (
        lambda f: cifair_batch(f, {"data": pixels_of(float), "labels": [0] * N}),
        "uint8 \\(N, 3072\\) .* got float64",
    ),
    "batch's width": (
        lambda f: cifair_batch(f, {"data": pixels_of(np.uint8, 9), "labels": [0] * N}),
        "got uint8 \\(20, 9\\)",
    ),
    "unknown class": (other_classes, "no class 'sheep'; did you mean 'ship'"),
    "training alone": (no_test_part, "a test part .* got none"),
    "broken": (broken_picture, "pictures that can be read .*b.png"),
    "no picture": (lambda f: Pictures(str(f)), "no picture in"),
    "a misspelt corruption": (
        lambda f: Corrupted(["frog"]),
        "unknown 'frog'; did you mean 'fog'",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_is_one_sentence(tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    make, expected = BAD[case]
    with pytest.raises(UserError, match=expected) as caught:
        parts(make(tmp_path))
    assert str(caught.value).startswith("data")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "made").exists()


def test_an_unknown_class_of_the_network_is_named(tmp_path):
    cifar10_1(tmp_path, IMAGES, LABELS)
    with pytest.raises(UserError, match="knows no class 'airplane'"):
        parts(CIFAR10_1(str(tmp_path)), ("ant", "bee"))


# --- corrupted here ----------------------------------------------


def test_a_subset_has_every_class_and_the_images_of_the_whole():
    whole = parts(Corrupted(["gaussian_noise"]))
    some = parts(Corrupted(["gaussian_noise"], images=10))
    assert len(whole) == len(some) == 5
    assert sorted(some[0].labels.tolist()) == list(range(10))
    for one, all_ in zip(some, whole, strict=True):
        for image in one.images:
            assert any(torch.equal(image, other) for other in all_.images)


def test_constants_are_refused_for_another_size():
    images = torch.zeros(4, 3, 28, 28, dtype=torch.uint8)
    own = Trained(("a", "b"), (28, 28), lambda: (images, torch.tensor([0, 1, 0, 1])))
    with pytest.raises(UserError, match="images of \\(32, 32\\), got \\(28, 28\\)"):
        list(Corrupted().load(own))
