"""Folders as people have them: names of parts, what lies beside pictures, refusals."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from resnet_se.data import decode
from resnet_se.data.augmentation.pipeline import Augmentation
from resnet_se.data.datamodule import ImageDataModule
from resnet_se.data.inference_inputs import batches, find_pictures
from resnet_se.data.sources import ImageFolder
from tests.data.test_sources import load, make_tree, make_zip, message_of


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RESNET_SE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def tree(tmp_path):
    make_tree(tmp_path / "t")
    return tmp_path / "t"


@pytest.mark.parametrize(
    ("train", "test"),
    [
        *(("Train", "Test"), ("Training", "Testing"), ("seg_train", "seg_test")),
        *(("TRAIN", "Val"), ("train/train", "test/test"), ("Training", "validation")),
    ],
)
def test_parts_go_by_any_of_their_names(tree, train, test):
    expected = load(tree).fingerprint
    for part, name in (("train", train), ("test", test)):
        (tree / part).rename(tree / "moved")
        (tree / name).parent.mkdir(exist_ok=True)
        (tree / "moved").rename(tree / name)
    images = load(tree)
    assert images.classes == ("ant", "bee")
    assert images.fingerprint == expected
    archive = make_zip(tree.parent / "a.zip", tree, under="data/Data/")
    assert load(archive).fingerprint == expected


def test_two_common_folders_are_stripped(tree):
    expected = load(tree).fingerprint
    outer = tree.parent / "outer/cifar10/cifar10"
    shutil.copytree(tree, outer)
    assert load(outer.parent.parent).fingerprint == expected


@pytest.mark.parametrize("name", ["val", "valid", "Validation", "dev"])
def test_a_validation_part_beside_a_test_part_is_validated_on(tree, name):
    shutil.copytree(tree / "test", tree / name)
    Image.new("RGB", (8, 8), (1, 2, 3)).save(tree / name / "bee/9.png")
    data = ImageDataModule(ImageFolder(str(tree)), Augmentation())
    data.setup()
    assert data.images.origin == f"t: PNG files, validated on {name}/"
    assert [len(part[1]) for part in (data.train_part, data.val_part)] == [6, 7]
    assert len(data.test_part[0]) == 6
    assert data.val_part[0][-1, :, 0, 0].tolist() == [1, 2, 3]
    archive = make_zip(tree.parent / "a.zip", tree)
    for source in (ImageFolder(str(tree)), ImageFolder(str(archive))):
        first, again = source.load(), source.load()  # decoded, then from the cache
        assert first.fingerprint == again.fingerprint == data.images.fingerprint
        assert again.val_images is not None


def test_folds_leave_a_validation_part_unused_and_say_so(tree):
    shutil.copytree(tree / "test", tree / "valid")
    data = ImageDataModule(ImageFolder(str(tree)), Augmentation(), folds=3)
    data.setup()
    assert [len(part[1]) for part in (data.train_part, data.val_part)] == [4, 2]
    assert data.describe()["origin"] == (
        "t: PNG files, validated on valid/, but with data.folds on a fold of the "
        "training part"
    )


def test_a_named_part_is_validated_on(tree):
    shutil.copytree(tree / "test", tree / "holdout")
    images = load(tree, val="holdout")
    assert images.val_labels is not None
    assert images.val_labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert load(tree).val_images is None
    message = message_of(lambda: load(tree, val="hold"))
    assert message.startswith(
        "data.source.val: expected the name of a part, got 'hold'"
    )
    assert "holdout" in message


def test_keys_tell_readings_of_one_archive_apart(tree):
    """The same bytes, once read as two classes, are another run now."""
    archive = make_zip(tree.parent / "plain.zip", tree)
    assert ImageFolder(str(archive)).key().endswith("-test0.2")
    assert "train" not in ImageFolder(str(archive)).key()
    (tree / "train").rename(tree / "Train")
    upper = make_zip(tree.parent / "upper.zip", tree)
    assert "-Train+test-" in ImageFolder(str(upper)).key()
    shutil.copytree(tree / "test", tree / "valid")
    assert "-Train+test+valid-" in ImageFolder(str(tree)).key()


def test_parts_under_unknown_names_are_refused(tree):
    (tree / "train").rename(tree / "fold1")
    (tree / "test").rename(tree / "fold2")
    message = message_of(lambda: load(tree))
    assert "expected class folders, got fold1/, fold2/ with the same folders" in message
    assert "ant, bee" in message
    assert "train/ and test/" in message


def test_two_training_parts_are_refused(tree):
    shutil.copytree(tree / "train", tree / "Training")
    message = message_of(lambda: load(tree))
    assert "one part called train, got Training/ and train/" in message


def test_files_that_are_no_pictures_are_left_out_and_counted(tree):
    expected = load(tree).fingerprint
    for name in ("Thumbs.db", "desktop.ini", "_boxes.txt"):
        (tree / "train/ant" / name).write_text("no picture")
    for root in (tree, make_zip(tree.parent / "a.zip", tree)):
        images = load(root)
        assert images.fingerprint == expected
        assert images.origin.endswith(
            "PNG files, 3 that are no pictures left out (.db, .ini, .txt)"
        )


def test_broken_pictures_are_left_out_on_request(tree):
    (tree / "train/ant/1.png").write_text("no picture")
    message = message_of(lambda: load(tree))
    assert "train/ant/1.png" in message
    assert "data.source.skip_broken=true" in message
    images = load(tree, skip_broken=True)
    assert images.train_labels.tolist() == [0, 0, 1, 1, 1]
    assert "1 broken ones left out" in images.origin
    whole = ImageFolder(str(tree)).key()
    assert ImageFolder(str(tree), skip_broken=True).key() != whole


def test_broken_large_pictures_are_named_before_any_is_decoded(tree, monkeypatch):
    from resnet_se.data.wrappings import image_files

    for path in tree.rglob("*.png"):
        Image.new("RGB", (160, 160)).save(path)
    (tree / "train/ant/1.png").write_text("no picture")
    cut = (tree / "test/bee/2.png").read_bytes()[:-99]  # its header is whole
    (tree / "test/bee/2.png").write_bytes(cut)
    Image.new("RGB", (160, 160)).save(tree / "cut.jpg")
    (tree / "train/ant/2.png").write_bytes((tree / "cut.jpg").read_bytes()[:-20])
    decoded = []
    decode = image_files.decode
    monkeypatch.setattr(
        image_files, "decode", lambda path, *a: decoded.append(path) or decode(path, *a)
    )
    message = message_of(lambda: load(tree))
    assert "train/ant/1.png" in message
    assert "test/bee/2.png" in message
    assert "train/ant/2.png" in message
    assert len(set(decoded)) == 4  # the first, and the three broken ones


def test_broken_pictures_are_all_named_however_many(tree, capsys):
    make_tree(tree, ("cow",), per_class=9)
    broken = sorted(str(p.relative_to(tree)) for p in tree.rglob("cow/*.png"))
    for name in broken:
        (tree / name).write_text("no picture")
    message = message_of(lambda: load(tree))
    assert " and 13 more; data.source.skip_broken=true" in message
    named = [line.partition(" (")[0] for line in capsys.readouterr().err.splitlines()]
    assert sorted(name for name in named if name.endswith(".png")) == broken


@pytest.fixture
def without_heif(monkeypatch):
    known = [name for name in decode.formats() if name != "HEIF"]
    monkeypatch.setattr(decode, "formats", lambda: known)
    decode.suffixes.cache_clear()
    yield
    decode.suffixes.cache_clear()


def test_heic_is_refused_by_its_name(tree, without_heif):
    (tree / "train/ant/IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    message = message_of(lambda: load(tree))
    assert "train/ant/IMG_1.HEIC (HEIC, which needs pillow-heif" in message
    assert "uv sync --extra heif" in message


def test_predict_names_heic_files_and_counts_other_files(tree, without_heif):
    folder = tree / "train/ant"
    (folder / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    (folder / "notes.txt").write_text("x")
    with find_pictures([folder]) as pictures:
        assert pictures.passed_over() == 1
        (batch,) = batches(pictures, (8, 8), 9)
    assert len(batch.pictures) == 3
    assert list(batch.broken.values()) == [decode.NO_HEIC]


def test_heic_is_decoded_with_the_extra(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    decode.formats()
    file = tmp_path / "a.heic"
    heif.from_pillow(Image.new("RGB", (64, 64), (200, 30, 30))).save(file, quality=90)
    pixels = decode.decode(file).pixels
    assert pixels.shape == (3, 64, 64)
    assert abs(int(pixels[0].mean()) - 200) < 9


def test_a_class_may_be_missing_from_the_test_part(tree):
    shutil.rmtree(tree / "test/bee")
    images = load(tree)
    assert images.test_labels.tolist() == [0, 0, 0]
    assert images.origin.endswith("1 classes without test images")


def test_numbered_classes_are_in_the_order_of_their_numbers(tmp_path):
    make_tree(tmp_path / "t", [str(k) for k in range(11)], per_class=2, size=4)
    images = load(tmp_path / "t")
    assert images.classes == tuple(str(k) for k in range(11))
    pixels = np.asarray(Image.open(tmp_path / "t/train/10/0.png"))
    last = images.train_images[images.train_labels == 10][0]
    assert torch.equal(last.permute(1, 2, 0), torch.from_numpy(pixels.copy()))


# --- labels in a CSV ---------------------------------------------


@pytest.mark.parametrize("form", ["kaggle", "fastai"])
def test_labels_of_a_csv_are_those_of_folders(tmp_path, form):
    make_tree(tmp_path / "t", ("ant", "bee"), per_class=5)
    shutil.rmtree(tmp_path / "t/test")
    expected = load(tmp_path / "t")
    flat = tmp_path / "flat"
    (flat / "train").mkdir(parents=True)
    rows = ["id,label" if form == "kaggle" else "name,label"]
    for path in sorted((tmp_path / "t/train").rglob("*.png")):
        name = f"{path.parent.name}_{path.stem}"
        shutil.copy(path, flat / "train" / f"{name}.png")
        file = name if form == "kaggle" else f"train/{name}.png"
        rows.append(f"{file},{path.parent.name}")
    (flat / "labels.csv").write_text("\n".join(rows))
    images = load(flat, labels="labels.csv")
    assert images.fingerprint == expected.fingerprint
    assert images.origin.endswith("labelled by labels.csv, 20% cut off to test")
    rows[-1] = rows[-1].removesuffix(",bee") + ",ant"
    (flat / "labels.csv").write_text("\n".join(rows))
    assert load(flat, labels="labels.csv").fingerprint != expected.fingerprint


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("id,label\n9,a\n", ["labels.csv names", "no 9"]),
        ("id,label\n../t,a\n", ["no ../t"]),
        ("id,label\n0,a\n0,b\n", ["data.source.labels", "each file once", "got 0"]),
        ("x,y,z\n", ["columns of files and labels", "x, y, z"]),
        ("id,label\n0,a\n1,a\n", ["2 or more classes", "got a"]),
        (None, ["data.source.labels: expected a CSV that can be read"]),
    ],
)
def test_bad_tables_are_one_sentence(tmp_path, text, words):
    make_tree(tmp_path / "t", ("train",))
    root = tmp_path / "t/train"
    if text is not None:
        (root / "labels.csv").write_text(text)
    message = message_of(lambda: load(root, labels="labels.csv"))
    assert all(word in message for word in words), message
    assert "\n" not in message


def gtsrb(folder):
    """Kaggle's GTSRB in small, and the same images in class folders."""
    numbers = [str(k) for k in (0, 1, 2, 10)]
    make_tree(folder / "t", numbers)
    shutil.copytree(folder / "t/train", folder / "g/Train")
    (folder / "g/Test").mkdir()
    (folder / "g/Meta").mkdir()
    Image.new("RGB", (8, 8)).save(folder / "g/Meta/0.png")
    rows = ["Width,Height,Roi.X1,Roi.Y1,Roi.X2,Roi.Y2,ClassId,Path"]
    for label in numbers:
        for path in sorted((folder / "t/test" / label).iterdir()):
            name = f"Test/{label.zfill(3)}{path.stem}.png"
            shutil.copy(path, folder / "g" / name)
            rows.append(f"8,8,0,0,8,8,{label},{name}")
    (folder / "g/Test.csv").write_text("\n".join([rows[0], *rows[:0:-1]]))
    (folder / "g/Test/GT-final_test.csv").write_text("ours")
    return folder / "g"


@pytest.mark.parametrize("form", ["folder", "zip", "padded"])
def test_a_flat_test_part_has_its_labels_from_its_csv(tmp_path, form):
    root = gtsrb(tmp_path)
    expected = load(tmp_path / "t")
    if form == "padded":  # class folders 00000, 00001: the official archive's
        for path in list((root / "Train").iterdir()):
            path.rename(path.with_name(path.name.zfill(5)))
    root = make_zip(tmp_path / "g.zip", root) if form == "zip" else root
    images = load(root)
    assert images.classes[-1] == ("00010" if form == "padded" else "10")
    for name in ("train_images", "train_labels", "test_images", "test_labels"):
        assert torch.equal(getattr(images, name), getattr(expected, name)), name
    assert "tested on Test/" in images.origin


def test_the_key_holds_the_labels_of_a_flat_part(tmp_path):
    root = gtsrb(tmp_path)
    key, table = ImageFolder(str(root)).key(), root / "Test.csv"
    table.write_text(table.read_text().replace(",10,", ",1,", 1))
    assert ImageFolder(str(root)).key() != key


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: None, ["Test/<class>/ folders in", "or test.csv", "got only"]),
        (lambda t: t.replace("Test/0000", "Test/x"), ["names to be in", "no x.png"]),
        (lambda t: t.rpartition("\n")[0], ["each picture of", "got no 0000.png"]),
        (lambda t: t + "\n" + t.splitlines()[1], ["each file once in"]),
        (lambda t: t.replace(",10,", ",11,"), ["Test/11/ to be in Train/", "no Tra"]),
        (lambda t: t.replace(",Test/0000", ",Test/b/0001"), ["some in two folders"]),
        (lambda t: t.replace("Path", "Place"), ["columns of files and labels"]),
        (lambda t: t + "\n8,8", ["a file and a label in each row"]),
    ],
)
def test_labels_of_a_flat_part_that_do_not_fit_are_one_sentence(
    tmp_path, change, words
):
    root = gtsrb(tmp_path)
    text = change((root / "Test.csv").read_text())
    (root / "Test.csv").unlink()
    if text is not None:
        (root / "Test.csv").write_text(text)
    for make in (lambda: load(root), lambda: load(make_zip(tmp_path / "g.zip", root))):
        message = message_of(make)
        assert all(word in message for word in words), message
        assert "\n" not in message


# --- Tiny ImageNet, MedMNIST -------------------------------------


def test_tiny_imagenets_layout_is_that_of_class_folders(tree):
    expected = load(tree)
    rows = []
    (tree / "val/images").mkdir(parents=True)
    for i, path in enumerate(sorted((tree / "test").rglob("*.png"))):
        shutil.copy(path, tree / f"val/images/val_{i}.png")
        rows.append(f"val_{i}.png\t{path.parent.name}\t0\t0\t8\t8")
    shutil.rmtree(tree / "test")
    (tree / "test/images").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tree / "test/images/test_0.png")
    for name in ("ant", "bee"):
        (tree / "train" / name).rename(tree / "moved")
        (tree / "train" / name).mkdir()
        (tree / "moved").rename(tree / "train" / name / "images")
        (tree / "train" / name / f"{name}_boxes.txt").write_text("0 0 8 8")
    (tree / "val/val_annotations.txt").write_text("\n".join(rows))
    for root in (
        tree,
        make_zip(tree.parent / "a.zip", tree, under="tiny-imagenet-200/"),
    ):
        images = load(root)
        assert images.fingerprint == expected.fingerprint
        assert "tested on val/" in images.origin
    (tree / "val/val_annotations.txt").write_text("\n".join(rows[1:]))
    assert "got no val_0.png" in message_of(lambda: load(tree))
    (tree / "val/val_annotations.txt").unlink()
    assert "or val_annotations.txt beside images/" in message_of(lambda: load(tree))


def write_npz(path, **changes):
    rng = np.random.default_rng(0)
    arrays = {}
    for part, n in (("train", 12), ("val", 4), ("test", 6)):
        arrays[f"{part}_images"] = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        arrays[f"{part}_labels"] = (np.arange(n) % 2)[:, None].astype(np.uint8)
    arrays |= changes
    np.savez(path, **{name: a for name, a in arrays.items() if a is not None})
    return arrays


def test_medmnists_file_has_its_three_parts(tmp_path):
    arrays = write_npz(tmp_path / "a.npz")
    data = ImageDataModule(ImageFolder(str(tmp_path / "a.npz")), Augmentation())
    data.setup()
    for part, name in (("train", "train"), ("val", "val"), ("test", "test")):
        images, labels = getattr(data, f"{name}_part")
        grey = torch.from_numpy(arrays[f"{part}_images"])[:, None].expand(-1, 3, -1, -1)
        assert torch.equal(images, grey)
        assert labels.tolist() == arrays[f"{part}_labels"][:, 0].tolist()
    assert data.images.classes == ("0", "1")
    rgb = np.zeros((12, 28, 28, 3), np.uint8)
    rgb[..., 1] = 9
    write_npz(tmp_path / "b.npz", train_images=rgb, val_images=None)
    images = load(tmp_path / "b.npz")
    assert images.val_images is None
    assert images.train_images[0, :, 0, 0].tolist() == [0, 9, 0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"test_labels": None}, ["an array test_labels", "got test_images, "]),
        ({"train_images": np.zeros((12, 28, 28))}, ["train_images uint8", "float64"]),
        ({"train_images": np.zeros((12, 9, 9, 9), np.uint8)}, ["(12, 9, 9, 9)"]),
        ({"train_labels": np.zeros(11, int)}, ["train_labels", "(12,)", "(11,)"]),
        ({"train_labels": np.zeros((12, 14), int)}, ["(12, 14)"]),
        ({"test_labels": np.full(6, -1)}, ["test_labels from 0 on", "got -1"]),
        ({"test_labels": np.full(6, 7)}, ["test_labels", "0 to 1", "got 7"]),
        ({"train_labels": np.zeros(12)}, ["whole numbers", "float64"]),
        ({"train_labels": np.full(12, 2**40)}, ["every class", "of 12 images"]),
    ],
)
def test_arrays_that_do_not_fit_are_named(tmp_path, changes, words):
    write_npz(tmp_path / "a.npz", **changes)
    message = message_of(lambda: load(tmp_path / "a.npz"))
    assert all(word in message for word in words), message


def test_a_damaged_npz_file_is_named(tmp_path):
    write_npz(tmp_path / "a.npz")
    data = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(data[: len(data) // 2])
    assert "a whole .npz file" in message_of(lambda: load(tmp_path / "a.npz"))
    write_npz(tmp_path / "b.npz", train_images=np.array([{}], object))
    assert "a whole .npz file" in message_of(lambda: load(tmp_path / "b.npz"))
    write_npz(tmp_path / "c.npz")
    message = message_of(lambda: load(tmp_path / "c.npz", max_gb=1e-6))
    assert "data.source.max_gb" in message
