"""`resnet_se.load` and `resnet_se.build`: from a run, from what is no run; inputs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn

import resnet_se
from resnet_se.config.recipe import load_recipe
from resnet_se.data.decode import to_pixels, to_rgb
from resnet_se.inference.pretrained import Pretrained
from resnet_se.models.complexity import parameter_counts
from resnet_se.runs import checkpoint
from resnet_se.utils.errors import UserError
from tests.conftest import Run


@pytest.fixture(scope="module")
def model(finished: Run) -> Pretrained:
    return resnet_se.load(finished.folder)


@pytest.fixture
def copy(finished: Run, tmp_path: Path) -> Path:
    """The finished run in another folder, to be changed."""
    return Path(shutil.copytree(finished.folder, tmp_path / "elsewhere"))


def set_status(run_dir: Path, status: str) -> None:
    path = run_dir / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"status": status}))


# --- a run -------------------------------------------------------


def test_a_loaded_network_gives_the_test_logits_of_its_run(model, finished):
    from resnet_se.data.synthetic import Synthetic

    saved = np.load(finished.folder / "predictions.npz")
    images = Synthetic(num_train=240, num_test=60).load().test_images
    with torch.no_grad():
        logits = model(images)
    torch.testing.assert_close(logits, torch.from_numpy(saved["logits"]))
    views = model.predict(images, tta=True).probabilities
    torch.testing.assert_close(views, torch.from_numpy(saved["tta"]))


@pytest.mark.parametrize(("size", "most"), [((64, 64), 0), ((80, 60), 1)])
def test_images_of_another_size_differ_by_a_level_between_their_forms(
    model, size, most
):
    """Pillow and torchvision both resize whole levels, and mostly to the same."""
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (6, *size, 3), dtype=np.uint8)
    whole = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    files = [to_pixels(Image.fromarray(image), model.size) for image in pixels]
    levels = model.std[:, None, None] * 255
    array = model.preprocess(whole) * levels
    apart = array - model.preprocess(torch.from_numpy(np.stack(files))) * levels
    assert round(float(apart.abs().max())) == most
    assert (apart.abs() > 0.5).float().mean() < 0.02
    fractions = array - model.preprocess(whole / 255) * levels
    assert 0.3 < float(fractions.abs().max()) < 1.01  # two roundings of a half


def test_it_carries_what_its_user_needs(model, finished):
    assert not model.training
    assert list(model.classes) == finished.result["data"]["classes"]
    assert model.size == (32, 32)
    assert model.record == finished.result
    assert model.fingerprint == finished.result["data"]["fingerprint"]
    assert model.config["model"]["reduction"] == 4
    assert model.note is None
    assert parameter_counts(model.net)["total"] == finished.result["model"]["total"]


def test_an_unfinished_run_gives_its_best_so_far_and_says_so(copy):
    set_status(copy, "interrupted")
    with pytest.warns(UserWarning, match="is interrupted, not finished"):
        resnet_se.load(copy)


def test_without_a_best_checkpoint_the_last_is_taken_and_said(copy):
    (copy / "checkpoints" / "best.ckpt").unlink()
    with pytest.warns(UserWarning, match="has no best checkpoint, this is its last"):
        resnet_se.load(copy)


def test_one_of_its_checkpoints_may_be_named(copy):
    last = copy / "checkpoints" / "last.ckpt"
    state = checkpoint.read(last)["state_dict"]
    head = resnet_se.load(last).net.head.bias
    assert torch.equal(head, state["net.head.bias"])


def test_a_run_that_has_saved_nothing(copy):
    shutil.rmtree(copy / "checkpoints")
    set_status(copy, "running")
    with pytest.raises(UserError, match="the run is running and has saved no check"):
        resnet_se.load(copy)


def test_a_checkpoint_from_elsewhere(copy):
    path = copy / "checkpoints" / "best.ckpt"
    state = nn.Linear(2, 2).state_dict()
    checkpoint.write(path, {"state_dict": {f"net.{k}": v for k, v in state.items()}})
    with pytest.raises(UserError, match="from elsewhere: it holds no classes"):
        resnet_se.load(copy)
    data = {"classes": ["a", "b"], "mean": torch.zeros(3), "std": torch.ones(3)}
    weights = {f"net.{k}": v for k, v in state.items()}
    checkpoint.write(path, {"state_dict": weights, "ImageDataModule": data})
    with pytest.raises(UserError, match="of another architecture"):
        resnet_se.load(copy)


@pytest.mark.parametrize(
    ("path", "said"),
    [("nowhere", "nowhere, which is not there"), ("", "expected a run directory")],
)
def test_what_is_no_run(tmp_path, path, said):
    with pytest.raises(UserError, match=said):
        resnet_se.load(tmp_path / path)


def test_only_the_model_of_an_untrusted_run_is_built(copy):
    path = copy / "config.yaml"
    text = path.read_text().replace(
        "resnet_se.training.param_groups.make_optimizer", "os.abort"
    )
    path.write_text(text.replace("lightning.Trainer", "os.abort"))
    resnet_se.load(copy)
    path.write_text(
        path.read_text().replace("resnet_se.models.resnet.ResNet", "os.abort")
    )
    with pytest.raises(UserError, match=r"model\._target_"):
        resnet_se.load(copy)


# --- inputs ------------------------------------------------------


def test_every_way_to_give_the_same_picture_gives_the_same(model, tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    image = Image.fromarray(array)
    path = tmp_path / "a.png"
    image.save(path)
    tensor = torch.from_numpy(array.transpose(2, 0, 1).copy())
    inputs = [path, str(tmp_path), image, array, array[None], tensor, tensor / 255]
    probabilities = model.predict(inputs).probabilities  # (7, K)
    torch.testing.assert_close(probabilities, probabilities[:1].expand(7, -1))
    torch.testing.assert_close(probabilities.sum(1), torch.ones(7))


def test_lists_and_generators_are_batched_and_give_the_same(
    model, tmp_path, monkeypatch
):
    images = torch.randint(0, 256, (7, 3, 32, 32), dtype=torch.uint8)
    expected = model.predict(images).probabilities
    sizes = []
    score = model.probabilities

    def counted(batch, views):
        sizes.append(len(batch))
        return score(batch, views)

    monkeypatch.setattr(model, "probabilities", counted)
    arrays = [image.permute(1, 2, 0).numpy() for image in images]
    for i, array in enumerate(arrays):
        Image.fromarray(array).save(tmp_path / f"{i}.png")
    paths = [tmp_path / f"{i}.png" for i in range(7)]
    for many in (list(images), iter(arrays), map(Image.fromarray, arrays), paths):
        sizes.clear()
        found = model.predict(many, batch_size=3)
        assert sizes == [3, 3, 1]
        torch.testing.assert_close(found.probabilities, expected)
    mixed = [images[0], paths[1], images[2:4], np.zeros((40, 30, 3), np.uint8)]
    assert len(model.predict(mixed).probabilities) == 5


def test_other_sizes_are_resized_as_torchvision_would(model):
    from torchvision.transforms.v2.functional import resize

    images = torch.randint(0, 256, (2, 3, 50, 70), dtype=torch.uint8)
    small = resize(images, [32, 32], antialias=True)
    assert torch.equal(
        model.predict(images).probabilities, model.predict(small).probabilities
    )
    # PIL's filter rounds otherwise: a grey level at most.
    as_pil = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    a, b = model.predict(as_pil).probabilities, model.predict(small).probabilities
    torch.testing.assert_close(a, b, atol=1e-3, rtol=0)


def test_predictions_are_typed_printable_and_a_frame(model):
    images = torch.randint(0, 256, (25, 3, 32, 32), dtype=torch.uint8)
    predictions = model.predict(images, batch_size=10)
    assert predictions.names == tuple(f"image {i}" for i in range(25))
    assert len(predictions) == 25
    first = predictions[0]
    assert first.label == predictions.labels[0]
    assert first.probability == max(p for _, p in first.ranking)
    assert {name for name, _ in first.ranking} == set(model.classes)
    assert str(first).startswith(f"image 0: {first.label} ")
    assert str(predictions).endswith("… and 5 more")
    frame = predictions.to_frame()
    assert list(frame["label"]) == predictions.labels
    np.testing.assert_allclose(frame[list(model.classes)].sum(axis=1), 1, rtol=1e-5)
    assert predictions[5:7].names == ("image 5", "image 6")


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        (np.zeros((4, 4), np.float32), "expected a uint8 array"),
        (np.zeros((3, 9, 9), np.uint8), "expected a uint8 array"),
        (torch.zeros(4, 4), "expected a tensor"),
        (torch.full((3, 4, 4), 1.5), "floats in 0..1, got torch.float32 in 1.5"),
        (torch.full((3, 4, 4), torch.nan), "floats in 0..1"),
        (torch.zeros(3, 4, 4, dtype=torch.int64), "got torch.int64"),
        ([3], "expected paths, images or arrays, got int"),
        ([], "at least one picture"),
        ("nowhere.png", "nothing is a file or folder called 'nowhere.png'"),
        ("nowhere*.png", "nothing matches"),
        (Image.new("F", (4, 4)), "range is not known"),
    ],
)
def test_what_is_no_picture(model, inputs, said):
    with pytest.raises(UserError, match=said):
        model.predict(inputs)


def test_test_time_augmentation_by_name_and_object(model):
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    p, mirrored = (model.predict(x).probabilities for x in (images, images.flip(-1)))
    by_name = model.predict(images, tta="flip").probabilities
    torch.testing.assert_close(by_name, (p + mirrored) / 2)
    assert torch.equal(model.predict(images, tta="none").probabilities, p)
    with pytest.raises(UserError, match="tta: unknown 'flp'; did you mean 'flip'"):
        model.predict(images, tta="flp")


def test_grey_alpha_palette_and_16_bits_become_what_they_show():
    grey = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    wide = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    assert wide.mode == "I;16"
    for image in (grey, wide, grey.convert("P"), grey.convert("RGBA")):
        rgb = np.asarray(to_rgb(image))
        assert (rgb == np.asarray(grey)[..., None]).all()
    clear = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    assert to_rgb(clear).getpixel((0, 0)) == (255, 255, 255)
    half = Image.new("LA", (2, 2), (0, 128))
    assert to_rgb(half).getpixel((0, 0)) == (127, 127, 127)


def test_a_photograph_is_turned_upright():
    image = Image.new("RGB", (4, 2))
    image.getexif()[0x0112] = 6  # seen when turned by 90 degrees
    assert to_rgb(image).size == (2, 4)


# --- a new network -----------------------------------------------


def test_build_is_the_preset_with_other_classes_and_arguments():
    net = resnet_se.build("se_resnet20", num_classes=100, reduction=8)
    assert net(torch.zeros(1, 3, 32, 32)).shape == (1, 100)
    assert net.blocks[0].branch[-1].squeeze.out_features == 16 // 8
    headline = parameter_counts(resnet_se.build("se_resnet80"))
    assert (headline["trainable"], headline["non_trainable"]) == (4_617_010, 11_200)


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("se_resnet8", {}, "did you mean 'se_resnet80'"),
        ("se_resnet20", {"reducton": 4}, "did you mean 'reduction'"),
        ("se_resnet20", {"reduction": 0}, "reduction: expected"),
        ("se_resnet20", {"num_classes": 1}, "num_classes: expected"),
    ],
)
def test_build_names_what_is_wrong(name, arguments, said):
    with pytest.raises(UserError, match=said):
        resnet_se.build(name, **arguments)


# --- its configuration -------------------------------------------

LAUGHS = "\n".join(
    [f"x0: &x0 [{', '.join('abcdefghi')}]"]
    + [f"x{i + 1}: &x{i + 1} [{', '.join([f'*x{i}'] * 9)}]" for i in range(9)]
)


@pytest.mark.parametrize("text", [LAUGHS, "x: &x [*x]", "[" * 70, "x: !!python/none"])
def test_a_configuration_that_would_never_end(copy, text):
    """Nine to the tenth values; itself; deeper than a stack; a tag of Python's."""
    (copy / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"config\.yaml: not a configuration of a run"):
        load_recipe(copy)


def test_a_run_may_lie_in_a_folder_of_any_name(copy):
    moved = copy.rename(copy.with_name("it's mine: {a} #1, - 'x'"))
    path = load_recipe(moved)["callbacks"]["history"]["path"]
    assert path == f"{moved}/metrics.csv"


@pytest.mark.parametrize("target", [None, 3, [], "ResNet"])
def test_a_network_of_no_name(copy, target):
    """A run's configuration as somebody else has edited it."""
    cfg = yaml.safe_load((copy / "config.yaml").read_text())
    cfg["model"]["_target_"] = target
    (copy / "config.yaml").write_text(yaml.safe_dump(cfg))
    with pytest.raises(UserError, match=r"model\._target_: expected"):
        resnet_se.load(copy)


@pytest.mark.slow
def test_a_preset_is_built_in_a_process_that_has_composed_nothing():
    code = "import resnet_se; print(resnet_se.build('se_resnet20').num_layers)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "20"


def test_weights_that_are_no_numbers_are_refused(copy):
    path = copy / "checkpoints/best.ckpt"
    saved = torch.load(path, weights_only=True)
    saved["state_dict"]["net.head.weight"].fill_(float("nan"))
    checkpoint.write(path, saved)
    with pytest.raises(UserError, match="holds values that are no finite"):
        resnet_se.load(copy)


def test_probabilities_that_are_no_numbers_are_refused(model):
    with pytest.raises(UserError, match="gives no finite numbers"):
        model.probabilities(torch.full((1, 3, 32, 32), float("nan")))
