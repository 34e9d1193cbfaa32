"""CIFAR in every wrapping: the same pixels and labels, the same split, the same key."""

import csv
import hashlib
import io
import itertools
import pickle
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10 as Official

from resnet_se.data.augmentation.pipeline import Augmentation
from resnet_se.data.datamodule import ImageDataModule
from resnet_se.data.image_set import DataNotFound, ImageSet
from resnet_se.data.sources import CIFAR10, CIFAR10_CLASSES, CIFAR100, CIFAR100_CLASSES
from resnet_se.data.wrappings import content
from tests.data.test_sources import load, make_tar, message_of

BATCHES = 5
KEY = f"cifar10-{Official.tgz_md5[:16]}"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RESNET_SE_CACHE", str(tmp_path / "cache"))


def tiny(classes=CIFAR10_CLASSES, train=40, test=20, seed=0):
    """Images (N, 3, 32, 32) and labels (N,) of the training and the test part."""
    rng = np.random.default_rng(seed)
    return [
        (
            rng.integers(0, 256, (n, 3, 32, 32), dtype=np.uint8),
            rng.permutation(np.arange(n) % len(classes)),
        )
        for n in (train, test)
    ]


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(file, "png")
    return file.getvalue()


# --- the wrappings -----------------------------------------------


def as_python(root, parts, monkeypatch):
    """The Python batches, with their md5 sums put in torchvision."""
    folder = root / Official.base_folder
    folder.mkdir(parents=True)

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    def batch(name, x, y):
        return write(name, {"data": x.reshape(len(y), -1), "labels": y.tolist()})

    (x, y), (test_x, test_y) = parts
    pieces = zip(np.split(x, BATCHES), np.split(y, BATCHES), strict=True)
    train = [batch(f"data_batch_{i}", *piece) for i, piece in enumerate(pieces, 1)]
    md5 = write("batches.meta", {"label_names": list(CIFAR10_CLASSES)})[1]
    monkeypatch.setattr(Official, "train_list", train)
    monkeypatch.setattr(Official, "test_list", [batch("test_batch", test_x, test_y)])
    monkeypatch.setattr(Official, "meta", {**Official.meta, "md5": md5})
    return folder


def as_binary(root, parts):
    folder = root / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    (x, y), test = parts
    pieces = zip(np.split(x, BATCHES), np.split(y, BATCHES), strict=True)
    names = [f"data_batch_{i}.bin" for i in range(1, BATCHES + 1)]
    for name, (x, y) in zip([*names, "test_batch.bin"], [*pieces, test], strict=True):
        rows = [y[:, None].astype(np.uint8), x.reshape(len(y), -1)]
        (folder / name).write_bytes(np.concatenate(rows, axis=1).tobytes())
    return folder


def as_parquet(root, parts, label="label"):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    folder = root / "plain_text"
    folder.mkdir(parents=True)
    for part, (x, y) in zip(("train", "test"), parts, strict=True):
        images = [{"bytes": png(pixels), "path": None} for pixels in x]
        table = pa.table({"img": images, label: y})
        parquet.write_table(table, folder / f"{part}-00000-of-00001.parquet")
    return root


def as_tree(root, parts, classes=CIFAR10_CLASSES):
    """fastai's folders; the order of names is not that of the batches."""
    for part, (x, y) in zip(("train", "test"), parts, strict=True):
        for i, (pixels, label) in enumerate(zip(x, y, strict=True)):
            folder = root / "cifar10" / part / classes[label]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{i * 7 % 100:03}.png").write_bytes(png(pixels))
    return root


def as_kaggle(root, parts):
    """The labelled images alone, numbered in an order of their own."""
    (x, y), _ = parts
    (root / "train").mkdir(parents=True)
    (root / "test").mkdir()
    with (root / "trainLabels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["id", "label"])
        for i in range(len(y)):
            table.writerow([i + 1, CIFAR10_CLASSES[y[i]]])
            (root / f"train/{i + 1}.png").write_bytes(png(x[i]))
    return root


def cifar10(root, **options):
    return CIFAR10(str(root), **{"download": False, **options})


def known(monkeypatch, parts):
    """Have the tiny set taken for the official one, by its binary files' digests."""
    size = len(parts[0][1]) // BATCHES
    monkeypatch.setattr(content, "BATCH", size)
    digests = [
        tuple(
            content._binary_digest(
                torch.from_numpy(x[i : i + size]), torch.tensor(y[i : i + size])
            )
            for i in range(0, len(y), size)
        )
        for x, y in parts
    ]
    monkeypatch.setattr(content, "OFFICIAL_BINARY", {"cifar10": tuple(digests)})


def split_of(root):
    """Digests of the images trained and validated on, as sets and in order."""
    data = ImageDataModule(cifar10(root), Augmentation(), val_fraction=0.25)
    data.setup()
    parts = [data.train_part, data.val_part, data.test_part]
    return [
        [(x.numpy().tobytes(), int(k)) for x, k in zip(*part, strict=True)]
        for part in parts
    ]


# --- laws --------------------------------------------------------


def test_wrappings_of_the_official_images_are_the_batches(tmp_path, monkeypatch):
    """One key, one split, one order, pairwise, whatever the official images lie in."""
    parts = tiny(test=8)
    known(monkeypatch, parts)
    (x, y), test = parts
    shuffled = np.concatenate([np.split(np.arange(40), 5)[i] for i in (3, 2, 1, 4, 0)])
    python = as_python(tmp_path / "python", parts, monkeypatch)
    binary = as_binary(tmp_path / "binary", parts)
    archive = make_tar(
        tmp_path / "cifar-10-binary.tar.gz",
        binary,
        "w:gz",
        under="cifar-10-batches-bin/",
    )
    keras = tmp_path / "keras"
    shutil.copytree(python, keras / f"{python.name}-target" / python.name)
    packed = tmp_path / "keras2"
    packed.mkdir()
    make_tar(packed / f"{python.name}.tar.gz", python, "w:gz", f"{python.name}/")
    roots = [
        *(python.parent, python, binary.parent, binary, archive, keras, packed),
        as_parquet(tmp_path / "hub", parts),
        as_parquet(tmp_path / "hub2", [(x[shuffled], y[shuffled]), test]),
    ]
    splits = [split_of(root) for root in roots]
    keys = [cifar10(root).key() for root in roots]
    for i, j in itertools.combinations(range(len(roots)), 2):
        assert splits[i] == splits[j], (roots[i], roots[j])
    assert set(keys) == {KEY}
    assert {cifar10(root).load().order for root in roots} == {"official"}


def test_any_wrapping_of_other_images_has_the_order_of_its_content(tmp_path):
    """Such as a lossy copy: order and names of the files say nothing, pixels do."""
    parts = tiny()
    (x, y), test = parts
    mixed = np.random.default_rng(1).permutation(len(y))
    tree = as_tree(tmp_path / "fastai", parts)
    roots = [
        as_binary(tmp_path / "binary", parts).parent,
        as_binary(tmp_path / "mixed", [(x[mixed], y[mixed]), test]),
        as_parquet(tmp_path / "hub", parts),
        *(tree, tree / "cifar10"),
        make_tar(tmp_path / "cifar10.tgz", tree, "w:gz"),
    ]
    splits = [split_of(root) for root in roots]
    keys = [cifar10(root).key() for root in roots]
    for i, j in itertools.combinations(range(len(roots)), 2):
        assert splits[i] == splits[j], (roots[i], roots[j])
    assert len(set(keys)) == 1
    assert keys[0].startswith("cifar10-")
    assert cifar10(tree).load().order == "content"
    y[[0, 1]] = y[[0, 1]] + 1 - 2 * (y[[0, 1]] > 0)  # other labels
    assert cifar10(as_binary(tmp_path / "other", parts)).key() != keys[0]


def test_the_set_s_fingerprint_is_of_any_order_and_of_no_others(tmp_path, monkeypatch):
    parts = tiny()
    batches = cifar10(as_python(tmp_path / "py", parts, monkeypatch)).load()
    files = cifar10(as_tree(tmp_path / "tree", parts)).load()
    assert (batches.order, files.order) == ("official", "content")
    assert batches.fingerprint != files.fingerprint
    assert batches.set_fingerprint == files.set_fingerprint
    (x, y), test = parts
    others = [((x, np.roll(y, 1)), test), ((x[:-1], y[:-1]), test), (test, (x, y))]
    for i, other in enumerate(others):
        images = cifar10(as_tree(tmp_path / str(i), other)).load()
        assert images.set_fingerprint != files.set_fingerprint


def test_files_keep_their_order_for_labels_without_images(tmp_path):
    """CIFAR-10N's are in the order of the files within a class."""
    source = cifar10(as_tree(tmp_path, tiny()))
    key, read = source.as_files()
    images = read()
    assert images.order == "files"
    assert images.train_labels.tolist() == sorted(images.train_labels.tolist())
    first = sorted((tmp_path / "cifar10/train/airplane").iterdir())[0]
    pixels = torch.from_numpy(np.asarray(Image.open(first)).copy()).permute(2, 0, 1)
    assert torch.equal(images.train_images[0], pixels)
    assert key != source.key()


def test_a_set_with_runs_on_record_keeps_their_key_and_order(tmp_path, monkeypatch):
    parts = tiny()
    (x, y), (test_x, test_y) = parts
    tensors = [torch.from_numpy(a) for a in (x, y, test_x, test_y)]
    recorded = ImageSet("image_folder", "", CIFAR10_CLASSES, *tensors)
    records = {recorded.fingerprint: "image_folder-0123456789abcdef"}
    monkeypatch.setattr(content, "RECORDED", records)
    for root in (as_binary(tmp_path / "a", parts), as_parquet(tmp_path / "b", parts)):
        images = cifar10(root).load()
        assert images.fingerprint == recorded.fingerprint
        assert images.order == "files"
        assert cifar10(root).key() == "image_folder-0123456789abcdef"


def test_kaggles_copy_has_a_test_part_cut_by_content(tmp_path):
    parts = tiny()
    (x, y), _ = parts
    root = as_kaggle(tmp_path / "a", parts)
    images = cifar10(root).load()
    assert "test images have no labels: 20% of the labelled ones" in images.origin
    assert torch.bincount(images.test_labels).tolist() == [1] * 10
    assert len(images.train_labels) == 30
    mixed = np.random.default_rng(1).permutation(len(y))
    other = as_kaggle(tmp_path / "b", [(x[mixed], y[mixed]), None])
    assert split_of(other) == split_of(root)
    assert cifar10(other).key() == cifar10(root).key()


def test_cifar100_is_read_from_its_wrappings(tmp_path):
    parts = tiny(CIFAR100_CLASSES, 200, 100)
    folder = tmp_path / "data/cifar-100-binary"
    folder.mkdir(parents=True)
    for name, (x, y) in zip(("train", "test"), parts, strict=True):
        coarse = np.full((len(y), 1), 19, np.uint8)
        rows = [coarse, y[:, None].astype(np.uint8), x.reshape(len(y), -1)]
        (folder / f"{name}.bin").write_bytes(np.concatenate(rows, axis=1).tobytes())
    hub = as_parquet(tmp_path / "hub", parts, "fine_label")
    first, second = (CIFAR100(str(r), download=False) for r in (folder.parent, hub))
    assert first.key() == second.key()
    assert first.load().classes == CIFAR100_CLASSES
    assert first.load().origin == "binary version of CIFAR-100"
    assert CIFAR10(str(folder.parent), download=False).find() is None


def test_fastais_cifar100_has_its_classes_below_superclasses(tmp_path):
    parts = tiny(CIFAR100_CLASSES, 200, 100)
    flat = as_tree(tmp_path / "flat", parts, CIFAR100_CLASSES)
    (flat / "cifar10").rename(flat / "cifar100")
    below = tmp_path / "below/cifar100"
    for folder in (flat / "cifar100").glob("*/*"):
        above = f"superclass_{CIFAR100_CLASSES.index(folder.name) % 20}"
        part = below / folder.parent.name / above
        shutil.copytree(folder, part / folder.name)
    archive = make_tar(tmp_path / "cifar100.tgz", below, "w:gz", under="cifar100/")
    roots = (flat, below.parent, archive)
    first, *others = (CIFAR100(str(root), download=False) for root in roots)
    assert first.load().classes == CIFAR100_CLASSES
    for other in others:
        assert other.key() == first.key()
        assert other.load().fingerprint == first.load().fingerprint
    folder = load(below, test_fraction=None, superclasses=True)
    assert folder.classes == tuple(sorted(CIFAR100_CLASSES))
    assert load(below, test_fraction=None).classes[0] == "superclass_0"


def test_other_archives_beside_are_passed_over(tmp_path, capsys):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/a.txt").write_text("x")
    make_tar(tmp_path / "cifar10-notes.tar.gz", tmp_path / "notes", "w:gz")
    (tmp_path / "cifar-10-matlab.tar.gz").write_bytes(b"mat")
    source = cifar10(tmp_path)
    assert source.find() is None
    assert (
        "cifar-10-matlab.tar.gz: MATLAB's version, not read" in capsys.readouterr().err
    )
    with pytest.raises(DataNotFound):
        source.key()
    message = message_of(cifar10(tmp_path / "cifar-10-matlab.tar.gz").load)
    assert "got MATLAB's" in message
    assert "cifar-10-python.tar.gz" in message


# --- bad input ---------------------------------------------------


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def relabel(path):
    data = bytearray(path.read_bytes())
    data[0] = 10
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (cut, ["whole records of 3,073 bytes", "data_batch_2.bin"]),
        (relabel, ["labels 0 to 9", "data_batch_2.bin", "got 10"]),
        (lambda path: path.write_bytes(b""), ["whole records", "got 0 bytes"]),
    ],
)
def test_damaged_binary_files_are_named(tmp_path, change, words):
    folder = as_binary(tmp_path, tiny())
    change(folder / "data_batch_2.bin")
    message = message_of(cifar10(folder).load)
    assert message.startswith("data.source.root: expected")
    assert all(word in message for word in words), message
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"picture": [b""], "label": [0]}, ["columns img and label", "picture, label"]),
        ({"img": [b"x"], "label": [0]}, ["row 0 (cannot identify image file)"]),
        ({"img": ["text"], "label": [0]}, ["encoded images (bytes)", "str in row 0"]),
        ({"img": [png(np.zeros((3, 8, 8), np.uint8))], "label": [0]}, ["(8, 8)"]),
        ({"img": [png(np.zeros((3, 32, 32), np.uint8))], "label": [10]}, ["got 10"]),
        ({"img": [png(np.zeros((3, 32, 32), np.uint8))], "label": ["a"]}, ["whole"]),
        ({"img": [b"x"], "label": [0.5]}, ["whole numbers as label", "got double"]),
        ({"img": [b"x"], "label": ["3"]}, ["whole numbers as label", "got string"]),
        ({"img": [b"x", b"x"], "label": [0, None]}, ["a label in each row"]),
        (None, ["whole Parquet file", "train-00000-of-00001.parquet"]),
    ],
)
def test_bad_parquet_files_are_one_sentence(tmp_path, table, words):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    root = as_parquet(tmp_path / "hub", tiny())
    file = root / "plain_text/train-00000-of-00001.parquet"
    if table is None:
        cut(file)
    else:
        parquet.write_table(pa.table(table), file)
    message = message_of(cifar10(root).load)
    assert message.count("data.source.root") == 1  # none within another
    assert all(word in message for word in words), message
    assert "\n" not in message


def test_a_parquet_part_that_is_missing_is_named(tmp_path):
    root = as_parquet(tmp_path / "hub", tiny())
    (root / "plain_text/test-00000-of-00001.parquet").unlink()
    assert "test-….parquet" in message_of(cifar10(root).load)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("id,label\n1,cat\n1,dog\n", ["each file once", "got 1"]),
        ("id,label\n77,cat\n", ["no train/77.png", "train.7z"]),
        ("id,label\n1,lorry\n", ["classes of CIFAR-10", "got lorry"]),
        ("id,label\n1\n", ["a file and a label in each row", "line 2"]),
        ("a,b,c\n1,2,3\n", ["columns of files and labels", "got a, b, c"]),
        ("", ["columns of files and labels", "got nothing"]),
    ],
)
def test_bad_tables_of_labels_are_one_sentence(tmp_path, text, words):
    root = as_kaggle(tmp_path / "k", tiny())
    (root / "trainLabels.csv").write_text(text)
    message = message_of(cifar10(root).load)
    assert all(word in message for word in words), message
    assert "\n" not in message
