"""Laws of the sources: equal pixels however stored, honest keys, clear errors."""

import hashlib
import io
import os
import pickle
import shutil
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.datasets import CIFAR10 as Official
from torchvision.datasets import CIFAR100 as OfficialFine

from resnet_se.data import download, image_set
from resnet_se.data.augmentation.pipeline import Augmentation
from resnet_se.data.datamodule import ImageDataModule
from resnet_se.data.image_set import DataNotFound, ImageSet
from resnet_se.data.inference_inputs import batches, find_pictures
from resnet_se.data.sources import (
    CIFAR10,
    CIFAR10_CLASSES,
    CIFAR100,
    CIFAR100_CLASSES,
    ImageFolder,
)
from resnet_se.data.synthetic import Synthetic
from resnet_se.data.wrappings import image_folder
from resnet_se.utils.errors import UserError
from resnet_se.utils.system import cache_folder

REAL_DATA, REAL_CACHE = map(os.environ.get, ("RESNET_SE_DATA", "RESNET_SE_CACHE"))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("RESNET_SE_CACHE", str(folder))
    return folder


def make_tree(root, classes=("ant", "bee"), per_class=3, size=8, seed=0):
    """Lossless images below `root`: {(split, class, name): (H, W, 3) pixels}."""
    rng, pixels = np.random.default_rng(seed), {}
    for split in ("train", "test"):
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for i in range(per_class):
                image = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
                Image.fromarray(image).save(root / split / name / f"{i}.png")
                pixels[split, name, f"{i}.png"] = image
    return pixels


def make_tar(archive, root, mode="w", under=""):
    with tarfile.open(archive, mode) as file:
        # Against the sorted order, which the images must not depend on.
        for path in sorted(root.rglob("*"), reverse=True):
            name = f"{under}{path.relative_to(root).as_posix()}"
            file.add(path, arcname=name, recursive=False)
    return archive


def make_zip(archive, root, under=""):
    with zipfile.ZipFile(archive, "w") as file:
        for path in root.rglob("*"):
            if path.is_file():
                file.write(path, f"{under}{path.relative_to(root).as_posix()}")
    return archive


def load(root, **options):
    return ImageFolder(str(root), **options).load()


def message_of(call):
    with pytest.raises(UserError) as caught:
        call()
    return str(caught.value)


# ------------------------------------------------------------------- the contract


def tiny_set(**changes):
    images, labels = (
        torch.zeros(4, 3, 2, 2, dtype=torch.uint8),
        torch.tensor([0, 1] * 2),
    )
    return replace(
        ImageSet("n", "o", ("a", "b"), images, labels, images[:2], labels[:2]),
        **changes,
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"classes": ("a",)}, ["classes", "('a',)"]),
        ({"classes": ("a", "a")}, ["classes", "different"]),
        ({"classes": ("a", "b", "c")}, ["train_labels", "none of 'c'"]),
        ({"train_images": torch.zeros(4, 3, 2, 2)}, ["train_images", "torch.float32"]),
        (
            {"train_images": torch.zeros(4, 2, 2, 3, dtype=torch.uint8)},
            ["train_images", "(4, 2, 2, 3)"],
        ),
        (
            {"test_images": torch.zeros(2, 3, 2, 5, dtype=torch.uint8)},
            ["test_images", "(2, 3, 2, 5)"],
        ),
        ({"train_labels": torch.tensor([0, 1])}, ["train_labels", "(4,)", "(2,)"]),
        ({"test_labels": torch.tensor([0, 1]).int()}, ["test_labels", "int32"]),
        ({"train_labels": torch.tensor([0, 1, 2, 0])}, ["train_labels", "got 2"]),
        ({"test_labels": torch.tensor([0, -1])}, ["test_labels", "got -1"]),
    ],
)
def test_image_set_names_what_does_not_fit(changes, words):
    message = message_of(lambda: tiny_set(**changes))
    assert all(word in message for word in words), message


def test_fingerprint_is_of_pixels_labels_and_classes_alone():
    base = tiny_set().fingerprint
    assert base == tiny_set(name="other", origin="elsewhere").fingerprint
    assert len(base) == len("sha256:") + 16
    one_pixel = tiny_set().test_images.clone()
    one_pixel[1, 2, 1, 1] = 1
    others = [
        tiny_set(test_images=one_pixel),
        tiny_set(classes=("a", "c")),
        tiny_set(train_labels=torch.tensor([0, 1, 1, 0])),
        # the same bytes in another shape
        tiny_set(
            train_images=torch.zeros(4, 3, 1, 4, dtype=torch.uint8),
            test_images=torch.zeros(2, 3, 1, 4, dtype=torch.uint8),
        ),
    ]
    assert len({base, *(other.fingerprint for other in others)}) == 5


# ------------------------------------------------------------ folder and archives


def test_pixels_labels_and_order_are_those_of_the_files(tmp_path):
    pixels = make_tree(tmp_path / "tree", ("bee", "ant", "cow"))
    images = load(tmp_path / "tree")
    assert images.name == "image_folder"
    assert images.classes == ("ant", "bee", "cow")
    assert images.origin == "tree: PNG files"
    for split in ("train", "test"):
        keys = sorted(key for key in pixels if key[0] == split)
        expected = np.stack([pixels[key] for key in keys]).transpose(0, 3, 1, 2)
        assert np.array_equal(getattr(images, f"{split}_images").numpy(), expected)
        labels = [images.classes.index(name) for _, name, _ in keys]
        assert getattr(images, f"{split}_labels").tolist() == labels


def test_folder_and_archives_agree_under_a_common_folder_or_not(tmp_path):
    tree = tmp_path / "tree"
    make_tree(tree / "pets", ("ant", "ant-2", "bee"))  # "ant-2/" sorts before "ant/"
    inside = tree / "pets"
    copies = [
        tree,
        inside,
        make_tar(tmp_path / "a.tar", inside),
        make_tar(tmp_path / "b.tar.xz", inside, "w:xz"),
        make_tar(tmp_path / "c.tar.gz", inside, "w:gz"),
        make_tar(tmp_path / "d.tgz", inside, "w:gz", under="./pets/"),
        make_zip(tmp_path / "e.zip", inside),
        make_zip(tmp_path / "F.ZIP", inside, under="pets/"),
    ]
    first = load(tree)
    for copy in copies:
        images = load(copy)
        assert torch.equal(images.train_images, first.train_images), copy
        assert torch.equal(images.test_labels, first.test_labels), copy
        assert images.fingerprint == first.fingerprint, copy


def test_hidden_files_and_files_beside_the_classes_are_left_out(tmp_path):
    tree = tmp_path / "tree"
    make_tree(tree)
    expected = load(tree).fingerprint
    for name in ("train/ant/.DS_Store", "README.md", "train/labels.csv", ".git/config"):
        (tree / name).parent.mkdir(exist_ok=True)
        (tree / name).write_text("not an image")
    (tree / "__MACOSX/train/ant").mkdir(parents=True)
    (tree / "__MACOSX/train/ant/._0.png").write_text("not an image")
    archives = [make_tar(tmp_path / "a.tar", tree), make_zip(tmp_path / "a.zip", tree)]
    for copy in (tree, *archives):
        assert load(copy).fingerprint == expected


def test_every_kind_of_pixel_becomes_rgb(tmp_path):
    make_tree(tmp_path / "t", per_class=2)
    grey = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    for i, mode in enumerate(("L", "1", "P", "CMYK", "RGBA", "LA")):
        ending = "tif" if mode == "CMYK" else "png"
        grey.convert(mode).save(tmp_path / f"t/train/ant/1{i}.{ending}")
    grey.save(tmp_path / "t/train/ant/20.jpg", quality=100)
    images = load(tmp_path / "t")
    assert images.train_images.shape == (11, 3, 8, 8)
    assert images.origin == "t: JPEG/PNG/TIFF files"
    expected = torch.arange(64, dtype=torch.uint8).view(8, 8).expand(3, 8, 8)
    assert torch.equal(images.train_images[2], expected)  # "L"
    assert (images.train_images[8].int() - expected.int()).abs().max() <= 4  # JPEG


def test_training_sees_what_predict_sees(tmp_path):
    """The same pixels of every kind of image, through either path."""
    folder = tmp_path / "t/train/ant"
    make_tree(tmp_path / "t", per_class=3)
    rng = np.random.default_rng(1)
    colour = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    grey = rng.integers(0, 1 << 16, (8, 8)).astype(np.uint16)
    grey[0, 0] = 257 * 9
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    clear.paste((0, 0, 255, 128), (0, 0, 4, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    for path in folder.iterdir():
        path.unlink()
    colour.save(folder / "0.jpg", exif=exif, quality=95)
    colour.convert("CMYK").save(folder / "1.jpg", quality=95)
    colour.quantize(16).save(folder / "2.png")
    colour.quantize(16).save(folder / "3.png", transparency=0)
    Image.fromarray(grey).save(folder / "4.png")
    clear.save(folder / "5.png")
    Image.fromarray(grey // 256 > 127).save(folder / "6.png")
    images = load(tmp_path / "t").train_images[:7]
    with find_pictures([folder]) as pictures:
        (batch,) = batches(pictures, (8, 8), 7)
    assert [picture.path.name for picture in batch.pictures] == [
        *("0.jpg", "1.jpg", "2.png", "3.png", "4.png", "5.png", "6.png")
    ]
    assert np.array_equal(images.numpy(), batch.pixels)
    flat = np.asarray(Image.open(folder / "0.jpg").convert("RGB"))
    turned = np.rot90(flat, -1).transpose(2, 0, 1)
    assert np.array_equal(images[0].numpy(), turned)
    assert (images[4, :, 0, 0] == 9).all()  # 16 bits as 8
    assert (images[5, :, :, 4:] == 255).all()  # transparent on white
    assert (images[5, :, 0, 0] == torch.tensor([127, 127, 255])).all()
    assert set(images[6].unique().tolist()) == {0, 255}


def test_size_resizes_with_antialiasing(tmp_path):
    make_tree(tmp_path / "t", size=16)
    # One-pixel stripes: antialiasing gives grey, plain bilinear sampling need not.
    stripes = np.zeros((64, 48, 3), np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(tmp_path / "t/train/ant/0.png")
    images = load(tmp_path / "t", size=4)
    assert images.train_images.shape == (6, 3, 4, 4)
    assert (images.train_images[0].float() - 127.5).abs().max() < 10
    full = load(tmp_path / "t", size=16)
    original = np.asarray(Image.open(tmp_path / "t/train/ant/1.png"))
    assert np.array_equal(full.train_images[1].permute(1, 2, 0).numpy(), original)


def test_large_images_decode_in_threads_in_the_same_order(tmp_path):
    pixels = make_tree(tmp_path / "t", ("ant", "bee"), per_class=300, size=8)
    wide = load(tmp_path / "t", size=8)
    big = np.zeros((200, 200, 3), np.uint8)
    Image.fromarray(big).save(tmp_path / "t/train/ant/0.png")  # first: chooses threads
    threaded = load(tmp_path / "t", size=8)
    assert torch.equal(threaded.train_images[1:], wide.train_images[1:])
    assert threaded.train_images[0].max() == 0
    assert len(pixels) == 1200


# ------------------------------------------------------------------------- layouts


def move_up(tree):
    for path in list((tree / "train").iterdir()):
        path.rename(tree / path.name)
    (tree / "train").rmdir()


@pytest.mark.parametrize("test_name", ["val", "valid", "validation"])
def test_a_validation_folder_is_tested_on(tmp_path, test_name):
    make_tree(tmp_path / "t")
    expected = load(tmp_path / "t")
    (tmp_path / "t/test").rename(tmp_path / "t" / test_name)
    images = load(tmp_path / "t")
    assert images.fingerprint == expected.fingerprint
    assert images.origin == f"t: PNG files, tested on {test_name}/"


@pytest.mark.parametrize("fraction", [0.1, 0.25])
def test_without_a_test_part_a_stratified_one_is_cut(tmp_path, fraction):
    pixels = make_tree(tmp_path / "t", ("ant", "bee", "cow"), per_class=12)
    shutil.rmtree(tmp_path / "t/test")
    images = load(tmp_path / "t", test_fraction=fraction)
    assert images.origin == f"t: PNG files, {fraction:.0%} cut off to test"
    n = max(1, round(12 * fraction))
    assert torch.bincount(images.test_labels).tolist() == [n] * 3
    assert torch.bincount(images.train_labels).tolist() == [12 - n] * 3
    # every image once, with its own label
    both = torch.cat([images.train_images, images.test_images]).permute(0, 2, 3, 1)
    labels = torch.cat([images.train_labels, images.test_labels]).tolist()
    found = {(x.numpy().tobytes(), k) for x, k in zip(both, labels, strict=True)}
    expected = {
        (image.tobytes(), images.classes.index(name))
        for (split, name, _), image in pixels.items()
        if split == "train"
    }
    assert found == expected
    # class folders alone, and an archive of them: the same images, cut alike
    move_up(tmp_path / "t")
    archive = make_zip(tmp_path / "t.zip", tmp_path / "t", under="pets/")
    for other in (tmp_path / "t", archive):
        again = load(other, test_fraction=fraction)
        assert again.fingerprint == images.fingerprint


def test_the_cut_is_in_the_key(tmp_path):
    make_tree(tmp_path / "t")
    folder = str(tmp_path / "t")
    keys = {ImageFolder(folder, test_fraction=f).key() for f in (0.1, 0.2, None)}
    assert len(keys) == 3


def test_without_a_fraction_the_test_part_must_be_there(tmp_path):
    make_tree(tmp_path / "t")
    shutil.rmtree(tmp_path / "t/test")
    message = message_of(lambda: load(tmp_path / "t", test_fraction=None))
    assert "expected test/<class>/ folders" in message


@pytest.mark.parametrize("cut", [False, True])
def test_a_class_of_one_image_is_one_sentence(tmp_path, cut):
    make_tree(tmp_path / "t", per_class=4)
    for i in range(3 - cut):
        (tmp_path / f"t/train/bee/{i}.png").unlink()
    if cut:
        shutil.rmtree(tmp_path / "t/test")
    message = message_of(lambda: load(tmp_path / "t"))
    assert "expected 2 or more images of each class" in message
    assert f"got {1 + cut} in train/bee" in message
    assert ("data.source.test_fraction" in message) == cut
    assert "\n" not in message


def test_several_broken_files_are_named_at_once(tmp_path):
    make_tree(tmp_path / "t", per_class=4)
    for i in range(4):
        (tmp_path / f"t/train/ant/{i}.png").write_text("no image")
        (tmp_path / f"t/test/bee/{i}.png").write_text("no image")
    message = message_of(lambda: load(tmp_path / "t"))
    assert all(f"train/ant/{i}.png (cannot identify" in message for i in range(4))
    assert "test/bee/0.png" in message
    assert " and 3 more; data.source.skip_broken=true" in message


# ------------------------------------------------------------------ keys and cache


def test_the_data_are_located_without_decoding(tmp_path, monkeypatch):
    make_tree(tmp_path / "t")
    source, fallback = ImageFolder(str(tmp_path / "t")), Synthetic(20, 20)
    key = source.key()
    monkeypatch.setattr(ImageFolder, "load", None)
    monkeypatch.setattr(Synthetic, "load", None)
    data = ImageDataModule(source, Augmentation(), fallback=fallback)
    assert (data.locate(), data.fell_back) == (key, None)
    shutil.rmtree(tmp_path / "t")
    assert data.locate() == fallback.key()
    assert "nothing is there" in data.fell_back
    assert data.source is fallback
    with pytest.raises(DataNotFound, match=r"data\.source\.root: .* nothing is there"):
        ImageDataModule(source, Augmentation()).locate()


def test_key_follows_content_and_size_but_not_place_or_time(tmp_path):
    tree = tmp_path / "tree"
    make_tree(tree)
    key = ImageFolder(str(tree)).key()
    copy = shutil.copytree(tree, tmp_path / "copy/under")
    for path in copy.rglob("*"):
        os.utime(path, ns=(1, 1))
    assert ImageFolder(str(copy)).key() == ImageFolder(str(copy.parent)).key() == key
    (tree / "notes.txt").write_text("beside train and test")
    assert ImageFolder(str(tree)).key() == key
    assert ImageFolder(str(tree), size=8).key() != key

    file = tree / "train/ant/0.png"
    before, data = file.stat(), file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    changed = ImageFolder(str(tree)).key()  # same size, same time
    file.write_bytes(data)
    assert ImageFolder(str(tree)).key() == key
    file.rename(tree / "train/ant/9.png")
    assert len({key, changed, ImageFolder(str(tree)).key()}) == 3


def test_key_of_an_archive_follows_its_bytes(tmp_path):
    make_tree(tmp_path / "tree")
    one = make_tar(tmp_path / "one.tar", tmp_path / "tree")
    two = shutil.copy(one, tmp_path / "two.tar")
    assert ImageFolder(str(one)).key() == ImageFolder(str(two)).key()
    key = ImageFolder(str(one)).key()
    one.write_bytes(one.read_bytes() + bytes(512))
    assert ImageFolder(str(one)).key() != key


def test_second_load_comes_from_the_cache(tmp_path, monkeypatch, cache):
    make_tree(tmp_path / "tree")
    archive = make_tar(tmp_path / "a.tar.xz", tmp_path / "tree", "w:xz")
    first = load(archive)
    assert [path.suffix for path in cache.iterdir()] == [".npz"]
    moved = archive.rename(tmp_path / "b.tar.xz")

    def fail(*_):
        raise AssertionError("decoded again")

    monkeypatch.setattr(image_folder, "decode_files", fail)
    second = load(moved)
    assert second.fingerprint == first.fingerprint
    assert (second.classes, second.name) == (first.classes, first.name)
    assert (first.origin, second.origin) == (
        "a.tar.xz: PNG files",
        "b.tar.xz: PNG files",
    )
    with pytest.raises(AssertionError, match="decoded again"):
        load(moved, size=4)


def test_what_another_decoder_made_is_decoded_again(tmp_path, monkeypatch):
    make_tree(tmp_path / "tree")
    made = []
    decode = image_folder.decode_files
    monkeypatch.setattr(
        image_folder, "decode_files", lambda *a: made.append(1) or decode(*a)
    )
    for name in ("a", "a", "b", "a"):
        monkeypatch.setattr(image_set, "decoder", lambda name=name: name)
        load(tmp_path / "tree")
    assert len(made) == 3


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "rubbish"])
def test_a_damaged_cache_file_is_built_again(tmp_path, cache, caplog, damage):
    make_tree(tmp_path / "tree")
    first = load(tmp_path / "tree")
    (path,) = cache.iterdir()
    data = path.read_bytes()
    at = data.index(first.train_images.numpy().tobytes()[:64])
    path.write_bytes(
        {
            "flip": data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :],
            "cut": data[: len(data) // 2],
            "empty": b"",
            "rubbish": b"rubbish" * 100,
        }[damage]
    )
    assert load(tmp_path / "tree").fingerprint == first.fingerprint
    assert "damaged" in caplog.text
    assert str(path) in caplog.text
    caplog.clear()
    assert load(tmp_path / "tree").fingerprint == first.fingerprint
    assert not caplog.text


def test_an_unusable_cache_folder_only_warns(tmp_path, cache, caplog):
    make_tree(tmp_path / "tree")
    cache.write_text("a file where the folder should be")
    assert len(load(tmp_path / "tree").train_images) == 6
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert "not cached" in caplog.text


def test_a_full_disk_only_warns_and_leaves_nothing(
    tmp_path, cache, caplog, monkeypatch
):
    make_tree(tmp_path / "tree")

    def full(file, **_):
        file.write(b"some")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    assert len(load(tmp_path / "tree").train_images) == 6
    assert "No space left" in caplog.text
    assert list(cache.iterdir()) == []


def test_cache_folder_follows_the_environment(tmp_path, monkeypatch, cache):
    assert cache_folder() == cache
    monkeypatch.delenv("RESNET_SE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "resnet-se"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache/resnet-se"


# -------------------------------------------------------------------------- errors


def broken_tree(change):
    def make(tmp_path):
        make_tree(tmp_path / "t", ("ant", "bee", "cow"))
        change(tmp_path / "t")
        return tmp_path / "t"

    return make


def broken_archive(name, change):
    def make(tmp_path):
        make_tree(tmp_path / "t", size=32)
        archive = tmp_path / name
        if name.endswith(".zip"):
            make_zip(archive, tmp_path / "t")
        else:
            make_tar(
                archive, tmp_path / "t", {"r": "w", "z": "w:gz"}.get(name[-1], "w:xz")
            )
        archive.write_bytes(change(archive.read_bytes()))
        return archive

    return make


def flip_middle(data):
    at = len(data) // 2
    return (
        data[:at] + bytes(byte ^ 0xFF for byte in data[at : at + 64]) + data[at + 64 :]
    )


def cut_between_members(data):
    """A tar that ends where its third header would begin: no end mark."""
    with tarfile.open(fileobj=io.BytesIO(data)) as file:
        return data[: file.getmembers()[2].offset]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda tmp: tmp / "none", ["root", "none", "nothing is there"]),
        (lambda tmp: tmp / "none.tar", ["root", "none.tar", "nothing is there"]),
        (broken_archive("a.rar", bytes), ["root", "a.rar", ".tar.xz", ".zip"]),
        (
            broken_archive("a.tar.xz", lambda d: d[: len(d) // 2]),
            ["a.tar.xz", "truncated"],
        ),
        (
            broken_archive("a.tar.gz", lambda d: d[: len(d) // 2]),
            ["a.tar.gz", "truncated"],
        ),
        (broken_archive("a.tar", lambda d: d[: len(d) // 2]), ["a.tar", "truncated"]),
        (broken_archive("a.tar", cut_between_members), ["a.tar", "end of data"]),
        (broken_archive("a.zip", lambda d: d[: len(d) // 2]), ["a.zip", "truncated"]),
        (broken_archive("a.zip", flip_middle), ["a.zip", "damaged"]),
        (broken_archive("a.tar.xz", flip_middle), ["a.tar.xz", "damaged"]),
        (broken_archive("a.tar.gz", flip_middle), ["a.tar.gz", "damaged"]),
        (broken_archive("a.tar", lambda d: b""), ["a.tar", "damaged"]),
        (
            broken_tree(lambda t: (t / "test/bee/1.png").write_text("no image")),
            ["test/bee/1.png", "PIL"],
        ),
        (
            broken_tree(
                lambda t: (t / "train/ant/2.png").write_bytes(
                    (t / "train/ant/2.png").read_bytes()[:-60]
                )
            ),
            ["train/ant/2.png", "PIL"],
        ),
        (
            broken_tree(
                lambda t: Image.fromarray(np.zeros((8, 8), np.float32)).save(
                    t / "train/ant/1.tif"
                )
            ),
            ["train/ant/1.tif", "floating-point pixels"],
        ),
        (
            broken_tree(lambda t: Image.new("RGB", (9, 7)).save(t / "train/bee/1.png")),
            ["size", "train/bee/1.png", "(3, 7, 9)", "train/ant/0.png", "(3, 8, 8)"],
        ),
        (
            broken_tree(lambda t: (t / "test/cow").rename(t / "test/cwo")),
            ["test/cwo", "no train/cwo", "did you mean 'cow'?"],
        ),
        (
            broken_tree(lambda t: shutil.rmtree(t / "train/ant")),
            ["test/ant", "no train/ant", "valid choices: bee, cow"],
        ),
        (
            broken_tree(lambda t: [p.unlink() for p in (t / "test/cow").iterdir()]),
            ["test/cow empty"],
        ),
        (
            broken_tree(lambda t: (t / "train").rename(t / "trian")),
            ["train/<class>/", "only test, trian"],
        ),
        (
            broken_tree(lambda t: [shutil.rmtree(t / s) for s in ("train", "test")]),
            ["train/<class>/", "only nothing"],
        ),
        (
            broken_tree(
                lambda t: [
                    shutil.rmtree(t / s / c)
                    for s in ("train", "test")
                    for c in ("ant", "bee")
                ]
            ),
            ["2 or more classes", "cow"],
        ),
    ],
)
def test_errors_name_the_file_and_what_was_expected(tmp_path, make, words):
    root = make(tmp_path)
    message = message_of(lambda: load(root))
    assert message.startswith(("data.source.root: expected", "data.source.size: exp"))
    assert all(word in message for word in [str(root), *words]), message


def test_errors_of_an_archive_name_the_path_inside(tmp_path):
    make_tree(tmp_path / "t")
    (tmp_path / "t/train/bee/0.png").write_text("no image")
    archive = make_zip(tmp_path / "a.zip", tmp_path / "t")
    message = message_of(lambda: load(archive))
    assert f"in {archive}, got train/bee/0.png (cannot identify" in message


@pytest.mark.parametrize("size", [0, 5000, 1.5, "32"])
def test_size_is_checked_when_the_source_is_made(size):
    message = message_of(lambda: ImageFolder("anywhere", size=size))
    assert "size: expected an integer 1..4096" in message
    assert repr(size) in message


# ------------------------------------------------------------------------- CIFAR-10


@pytest.fixture
def official(tmp_path, monkeypatch):
    """A tiny CIFAR-10 in the official format, with its md5 sums put in torchvision."""
    folder = tmp_path / "official" / Official.base_folder
    folder.mkdir(parents=True)
    rng, pixels = np.random.default_rng(0), []

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    def batch(name, labels):
        rows = rng.integers(0, 256, (len(labels), 3072), dtype=np.uint8)
        pixels.append(rows.reshape(-1, 3, 32, 32))
        return [name, write(name, {"data": rows, "labels": labels})]

    train = [
        batch("data_batch_1", [9, 1, 2, 3, 4]),
        batch("data_batch_2", [5, 6, 7, 8, 0]),
    ]
    test = [batch("test_batch", [3, 8, 8, 0])]
    md5 = write("batches.meta", {"label_names": list(CIFAR10_CLASSES)})
    monkeypatch.setattr(Official, "train_list", train)
    monkeypatch.setattr(Official, "test_list", test)
    monkeypatch.setattr(Official, "meta", {**Official.meta, "md5": md5})
    make_tar(
        folder.parent / Official.filename,
        folder,
        "w:gz",
        under=f"{Official.base_folder}/",
    )
    return folder.parent, np.concatenate(pixels)


def cifar10(root, **options):
    return CIFAR10(str(root), **{"download": False, **options})


def test_official_batches_and_archive_give_the_same_pixels(official, cache):
    root, pixels = official
    unpacked = cifar10(root).load()
    assert unpacked.name == "cifar10"
    assert unpacked.origin == "official CIFAR-10"
    assert unpacked.classes == CIFAR10_CLASSES
    assert np.array_equal(unpacked.train_images.numpy(), pixels[:10])
    assert np.array_equal(unpacked.test_images.numpy(), pixels[10:])
    assert unpacked.train_labels.tolist() == [9, 1, 2, 3, 4, 5, 6, 7, 8, 0]
    assert unpacked.test_labels.tolist() == [3, 8, 8, 0]
    assert not cache.exists()
    assert (
        cifar10(root / Official.base_folder).load().fingerprint == unpacked.fingerprint
    )

    shutil.rmtree(root / Official.base_folder)
    for source in (cifar10(root), cifar10(root / Official.filename)):
        assert source.load().fingerprint == unpacked.fingerprint
    # Nothing was unpacked beside the archive, which may lie in a read-only folder.
    assert [path.name for path in root.iterdir()] == [Official.filename]


def test_cifar100_has_its_fine_labels(tmp_path, monkeypatch):
    folder = tmp_path / OfficialFine.base_folder
    folder.mkdir()
    rng, rows = np.random.default_rng(0), {}

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    for name, n in (("train", 100), ("test", 3)):
        rows[name] = rng.integers(0, 256, (n, 3072), dtype=np.uint8)
        content = {
            "data": rows[name],
            "fine_labels": list(range(n))[::-1],
            "coarse_labels": [0] * n,
        }
        monkeypatch.setattr(
            OfficialFine, f"{name}_list", [[name, write(name, content)]]
        )
    md5 = write("meta", {"fine_label_names": list(CIFAR100_CLASSES)})
    monkeypatch.setattr(OfficialFine, "meta", {**OfficialFine.meta, "md5": md5})
    source = CIFAR100(str(tmp_path), download=False)
    images = source.load()
    assert (images.name, images.origin) == ("cifar100", "official CIFAR-100")
    assert images.classes == CIFAR100_CLASSES
    assert images.train_labels.tolist() == list(range(100))[::-1]
    assert images.test_labels.tolist() == [2, 1, 0]
    pixels = rows["train"].reshape(-1, 3, 32, 32)
    assert np.array_equal(images.train_images.numpy(), pixels)
    make_tar(
        tmp_path / OfficialFine.filename, folder, "w:gz", f"{OfficialFine.base_folder}/"
    )
    shutil.rmtree(folder)
    assert source.load().fingerprint == images.fingerprint
    assert source.key() == f"cifar100-{OfficialFine.tgz_md5[:16]}"
    assert cifar10(tmp_path).find() is None
    with pytest.raises(DataNotFound, match=r"CIFAR-100 .*cifar-100-python\.tar\.gz"):
        CIFAR100(str(tmp_path / "none"), download=False).key()


def test_cifar100_has_a_hundred_sorted_classes():
    assert len(set(CIFAR100_CLASSES)) == 100
    assert list(CIFAR100_CLASSES) == sorted(CIFAR100_CLASSES)


def test_damaged_official_files_are_named(official):
    root, _ = official
    (root / Official.base_folder / "test_batch").write_bytes(b"damaged")
    assert str(root / Official.base_folder) in message_of(cifar10(root).load)
    shutil.rmtree(root / Official.base_folder)
    archive = root / Official.filename
    archive.write_bytes(archive.read_bytes()[:5000])
    assert str(archive) in message_of(cifar10(root).load)


def test_search_order_is_official_then_tree_then_archive(official, tmp_path):
    root, _ = official
    make_tree(tmp_path / "images", CIFAR10_CLASSES, 1, 32)
    make_tar(root / "my-cifar10-copy.tar.xz", tmp_path / "images", "w:xz")
    make_zip(root / "cifar100.zip", tmp_path / "images")  # another data set
    shutil.copytree(tmp_path / "images", root / "CIFAR-10-images")
    shutil.copytree(tmp_path / "images", root, dirs_exist_ok=True)
    expected = [
        Official.base_folder,
        Official.filename,
        "",  # the root itself
        "CIFAR-10-images",
        "my-cifar10-copy.tar.xz",
    ]
    for name in expected:
        assert cifar10(root).find() == root / name
        if name == "":
            shutil.rmtree(root / "train")
        elif (root / name).is_dir():
            shutil.rmtree(root / name)
        else:
            (root / name).unlink()
    assert cifar10(root).find() is None


def test_tree_and_archive_give_the_same_cifar10(tmp_path):
    make_tree(tmp_path / "t", CIFAR10_CLASSES, 2, 32)
    (tmp_path / "data").mkdir()
    archive = make_tar(tmp_path / "data/cifar10-png.tar.xz", tmp_path / "t", "w:xz")
    tree, packed, direct = (
        cifar10(tmp_path / "t"),
        cifar10(archive.parent),
        cifar10(archive),
    )
    assert tree.load().fingerprint == packed.load().fingerprint
    assert packed.load().name == "cifar10"
    assert packed.load().origin == "cifar10-png.tar.xz: PNG files"
    assert packed.key() == direct.key()
    assert packed.key() == tree.key()  # of the pixels, not of the files


def test_two_copies_that_fit_equally_are_an_error(tmp_path):
    for name in ("cifar10-a.tar", "cifar-10-b.zip"):
        (tmp_path / name).touch()
    message = message_of(cifar10(tmp_path).find)
    assert "cifar-10-b.zip, cifar10-a.tar" in message
    assert "RESNET_SE_DATA" in message


def test_other_classes_or_sizes_are_not_taken_for_cifar10(tmp_path):
    make_tree(tmp_path / "a", (*CIFAR10_CLASSES[:9], "lorry"), 2, 32)
    message = message_of(cifar10(tmp_path / "a").load)
    assert "ship, truck" in message
    assert "ship, lorry" not in message  # sorted: lorry comes after horse
    assert "horse, lorry" in message
    make_tree(tmp_path / "b", CIFAR10_CLASSES, 2, 16)
    assert "got (16, 16)" in message_of(cifar10(tmp_path / "b").load)


def test_key_downloads_what_it_names_and_decodes_nothing(
    official, tmp_path, monkeypatch
):
    root, _ = official
    content = (root / Official.filename).read_bytes()
    serve(monkeypatch, content)
    monkeypatch.setattr(Official, "tgz_md5", hashlib.md5(content).hexdigest())
    monkeypatch.setattr(CIFAR10, "load", None)
    absent = CIFAR10(str(tmp_path / "empty"))
    assert absent.key() == cifar10(root).key()
    assert absent.find() == tmp_path / "empty" / Official.filename
    shutil.rmtree(root / Official.base_folder)
    assert absent.key() == cifar10(root).key()


@pytest.mark.parametrize("call", ["key", "load"])
def test_without_download_absent_data_say_how_to_get_them(tmp_path, call):
    with pytest.raises(DataNotFound) as caught:
        getattr(cifar10(tmp_path / "data"), call)()
    message = str(caught.value)
    for word in ("data'", Official.filename, "RESNET_SE_DATA", "data=synthetic"):
        assert word in message, message


def serve(monkeypatch, content):
    """What any download gets: these bytes, or this exception raised."""

    def urlopen(url, timeout):
        assert timeout <= 10
        if isinstance(content, Exception):
            raise content
        response = io.BytesIO(content)
        response.headers = {"Content-Length": str(len(content))}
        return response

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)


def test_failed_download_is_data_not_found(tmp_path, monkeypatch):
    serve(monkeypatch, urllib.error.URLError("Name or service not known"))
    with pytest.raises(DataNotFound, match="Name or service not known"):
        CIFAR10(str(tmp_path / "data")).load()
    assert not (tmp_path / "data").exists()


def test_wrong_download_leaves_no_file(tmp_path, monkeypatch):
    serve(monkeypatch, b"<html>please log in</html>")
    with pytest.raises(DataNotFound, match="md5"):
        CIFAR10(str(tmp_path / "data")).load()
    assert list((tmp_path / "data").iterdir()) == []


def test_a_name_look_up_that_hangs_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "SECONDS", 0.05)
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: time.sleep(1))
    with pytest.raises(DataNotFound, match="no answer"):
        CIFAR10(str(tmp_path / "data")).load()


def test_download_is_kept_and_read(official, tmp_path, monkeypatch):
    root, pixels = official
    content = (root / Official.filename).read_bytes()
    serve(monkeypatch, content)
    monkeypatch.setattr(Official, "tgz_md5", hashlib.md5(content).hexdigest())
    source = CIFAR10(str(tmp_path / "new/data"))
    assert np.array_equal(source.load().test_images.numpy(), pixels[10:])
    assert source.find() == tmp_path / "new/data" / Official.filename


def test_a_missing_archive_is_not_downloaded_into_its_name(tmp_path):
    with pytest.raises(DataNotFound, match="no such file"):
        CIFAR10(str(tmp_path / "typo.tar.xz")).load()
    assert not (tmp_path / "typo.tar.xz").exists()


@pytest.mark.slow
@pytest.mark.skipif(not REAL_DATA, reason="RESNET_SE_DATA is not set")
def test_real_cifar10_has_its_known_counts_and_moments(monkeypatch):
    if REAL_CACHE:
        monkeypatch.setenv("RESNET_SE_CACHE", REAL_CACHE)
    else:
        monkeypatch.delenv("RESNET_SE_CACHE")
    images = cifar10(REAL_DATA).load()
    assert images.classes == CIFAR10_CLASSES
    assert images.train_images.shape == (50_000, 3, 32, 32)
    assert images.test_images.shape == (10_000, 3, 32, 32)
    assert torch.bincount(images.train_labels).tolist() == [5_000] * 10
    assert torch.bincount(images.test_labels).tolist() == [1_000] * 10
    # (3,) of each, from histograms: exact, and 600 MB less than floats of all pixels.
    levels = torch.arange(256, dtype=torch.float64) / 255
    counts = torch.stack(
        [
            torch.bincount(c.flatten(), minlength=256)
            for c in images.train_images.unbind(1)
        ]
    )
    share = counts / counts.sum(1, keepdim=True)
    mean = (share * levels).sum(1)
    std = ((share * levels**2).sum(1) - mean**2).sqrt()
    assert mean.tolist() == pytest.approx([0.4913, 0.4821, 0.4465], abs=1e-3)
    jpeg, lossless = [0.2452, 0.2428, 0.2606], [0.2470, 0.2435, 0.2616]
    expected = jpeg if "JPEG" in images.origin else lossless
    assert std.tolist() == pytest.approx(expected, abs=1e-3)


# ------------------------------------------------------------------------ synthetic


def test_synthetic_is_the_same_for_the_same_seed_only():
    sets = [Synthetic(60, 40, seed=seed).load() for seed in (0, 0, 1)]
    assert sets[0].fingerprint == sets[1].fingerprint != sets[2].fingerprint
    assert sets[0].name == "synthetic"
    keys = {
        Synthetic(**options).key()
        for options in (
            {},
            {"seed": 1},
            {"num_train": 60},
            {"num_test": 60},
            {"size": 16},
            {"num_classes": 5},
            {"num_train": 5000},
        )
    }
    assert len(keys) == 6


def test_synthetic_does_not_touch_the_global_generator():
    state = torch.random.get_rng_state()
    Synthetic(20, 20).load()
    assert torch.equal(state, torch.random.get_rng_state())


def test_synthetic_training_set_is_independent_of_the_test_set():
    small, large = Synthetic(60, 20).load(), Synthetic(60, 60).load()
    assert torch.equal(small.train_images, large.train_images)
    assert not torch.equal(large.train_images, large.test_images)


@pytest.mark.parametrize(("n", "k", "size"), [(100, 10, 32), (103, 7, 16), (10, 2, 40)])
def test_synthetic_is_balanced_and_shaped(n, k, size):
    images = Synthetic(n, 2 * k, size, k).load()
    assert images.train_images.shape == (n, 3, size, size)
    assert len(images.classes) == k
    counts = torch.bincount(images.train_labels, minlength=k)
    assert counts.max() - counts.min() <= 1
    assert images.train_labels.tolist() != sorted(images.train_labels.tolist())


@pytest.mark.parametrize(
    "options",
    [
        {"num_classes": 1},
        {"num_classes": 11},
        {"num_train": 9},
        {"num_test": 0},
        {"size": 7},
        {"seed": -1},
        {"seed": 0.5},
    ],
)
def test_synthetic_checks_its_arguments(options):
    ((name, value),) = options.items()
    message = message_of(lambda: Synthetic(**options))
    assert message.removeprefix("data.source.").startswith(f"{name}: expected ")
    assert message.endswith(f"got {value}")


def accuracy(net, images, epochs, rate):
    """On the test set, after training with Adam on batches of 64, one-cycle rate."""
    x, y = images.train_images / 255 - 0.5, images.train_labels
    optimizer = torch.optim.Adam(net.parameters())
    steps = epochs * (len(x) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(64)[: len(x) // 64]:
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[batch]), y[batch]).backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        guess = net.eval()(images.test_images / 255 - 0.5).argmax(1)
    return (guess == images.test_labels).double().mean().item()


@pytest.mark.slow
def test_synthetic_is_learnt_by_convolutions_but_not_by_a_linear_map():
    images = Synthetic().load()
    layers = []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for wide, out in ((3, 16), (16, 32), (32, 64)):
            layers += [nn.Conv2d(wide, out, 3, 2, 1), nn.BatchNorm2d(out), nn.ReLU()]
        head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
        conv = accuracy(nn.Sequential(*layers, *head), images, epochs=4, rate=1e-2)
        linear = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
        assert accuracy(linear, images, epochs=4, rate=1e-3) < 0.4
    assert conv > 0.75
