"""`evaluate` on another test set: of a run, of a bundle, and what it leaves there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchmetrics.functional.classification import multiclass_calibration_error

import resnet_se
from resnet_se.config.build import run_data
from resnet_se.data.test_sets.base import LabelledImages
from resnet_se.inference.robustness import figures, of_people
from resnet_se.runs.record import unpack_labels
from tests.conftest import Run, call


@pytest.fixture(scope="module")
def run(finished: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the finished run, to be written beside."""
    folder = tmp_path_factory.mktemp("evaluated") / finished.folder.name
    return Path(shutil.copytree(finished.folder, folder))


@pytest.fixture(scope="module")
def arrays(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's own test part as one's own arrays."""
    folder = tmp_path_factory.mktemp("arrays") / "mine"
    folder.mkdir()
    images, labels = run_data(run).test_part
    np.save(folder / "images.npy", images.permute(0, 2, 3, 1).numpy())
    np.save(folder / "labels.npy", labels.numpy())
    return folder


def test_the_run_s_own_test_images_have_the_figures_of_its_record(run, arrays):
    """As arrays: the same network, pixels and views, so the same test."""
    options = (f"run={run}", "data=arrays", f"data.source.root={arrays}")
    assert call(arrays.parent, "evaluate", *options) == 0
    found = json.loads((run / "evaluations/arrays-mine.json").read_text())
    test = json.loads((run / "result.json").read_text())["test"]
    for key in ("acc", "acc_tta", "images", "labels", "predicted", "per_class"):
        assert found[key] == test[key], key
    for key in ("loss", "ece"):
        assert found[key] == pytest.approx(test[key], rel=1e-4)
    low, high = found["acc_95"]
    assert low < found["acc"] < high
    assert found["run"]["seed"] == 0
    assert "root" not in json.dumps(found)  # of this machine


def test_the_report_and_the_table_of_runs_have_a_column(run, arrays, tmp_path):
    options = (f"run={run}", "data=arrays", f"data.source.root={arrays}")
    assert call(arrays.parent, "evaluate", *options) == 0
    [row] = resnet_se.load_runs(run).to_dict("records")
    assert row["arrays-mine.acc"] == row["test.acc"]
    assert call(tmp_path, "report", str(run), "--out", str(tmp_path / "out")) == 0
    text = next((tmp_path / "out").glob("*.md")).read_text()
    assert "arrays-mine %" in text


def test_a_damaged_evaluation_is_named_and_the_run_still_counts(run, tmp_path):
    folder = Path(shutil.copytree(run, tmp_path / run.name))
    shutil.rmtree(folder / "evaluations", ignore_errors=True)
    (folder / "evaluations").mkdir()
    (folder / "evaluations/x.json").write_text('{"name": "x", "acc": 2}')
    with pytest.warns(UserWarning, match=r"x\.json"):
        table = resnet_se.load_runs(folder)
    assert len(table) == 1


def test_a_bundle_is_evaluated_beside_it(run, arrays, tmp_path):
    assert call(tmp_path, "bundle", f"run={run}", f"out={tmp_path / 'b'}") == 0
    for name in ("b", "b.zip"):
        options = ("data=arrays", f"data.source.root={arrays}", "tta=none")
        assert call(tmp_path, "evaluate", f"run={tmp_path / name}", *options) == 0
        path = tmp_path / "b-evaluations/arrays-mine.json"
        found = json.loads(path.read_text())
        assert found["acc_tta"] is None
        path.unlink()
    test = json.loads((run / "result.json").read_text())["test"]
    assert found["acc"] == test["acc"]


def test_no_source_that_a_bundle_names_is_built(run, tmp_path, capsys):
    """Its configuration is of whoever made it."""
    assert call(tmp_path, "bundle", f"run={run}", f"out={tmp_path / 'b'}") == 0
    options = (f"run={tmp_path / 'b'}", "data=cifar10_c_here")
    assert call(tmp_path, "evaluate", *options) == 2
    error = capsys.readouterr().err
    assert "a network of resnet_se.data.sources.CIFAR10 or" in error
    assert error.count("\n") == 1


def test_corruptions_of_the_run_s_own_images(run, tmp_path):
    options = ("data=cifar10_c_here", "data.source.images=20", "tta=none")
    chosen = "data.source.corruptions=[contrast,pixelate,saturate]"
    out = tmp_path / "c.json"
    assert call(tmp_path, "evaluate", f"run={run}", *options, chosen, f"out={out}") == 0
    found = json.loads(out.read_text())
    assert list(found["by"]) == ["contrast", "pixelate", "saturate"]
    assert found["averaged"] == ["contrast", "pixelate"]  # of the 15
    cells = [f["acc"] for n in found["averaged"] for f in found["by"][n].values()]
    assert found["acc"] == pytest.approx(np.mean(cells), abs=1e-6)
    assert found["mean_corruption_error"] == pytest.approx(1 - found["acc"])
    assert out.with_suffix(".png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["data=cifar10_d"], "data=cifar10_d: no such choice; did you mean"),
        (["data=arrays"], "data.source.root: expected a value, got none"),
        (["data=arrays", "data.source.root=no"], "expected images.npy in no"),
        (
            ["data=cifar10_1", "data.source.version=v5"],
            "expected one of v4, v6, got 'v5'",
        ),
        (["data=cifar10_1", "data.source.roof=x"], "unknown key 'data.source.roof'"),
        (["data=arrays", "data.source.root=.", "ckpt=lost"], "ckpt: expected"),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing(
    run: Path, tmp_path: Path, capsys, options: list[str], message: str
):
    out = tmp_path / "out.json"
    assert call(tmp_path, "evaluate", f"run={run}", f"out={out}", *options) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not out.exists()


# --- figures -----------------------------------------------------


class Fixed:
    """A network whose logits are given with the images."""

    classes = ("a", "b", "c")
    source = "here"

    def __init__(self, logits: torch.Tensor):
        self.logits = logits
        self.mean = torch.zeros(3)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits[images[:, 0, 0, 0].long()]


def numbered(n: int) -> torch.Tensor:
    return torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1).expand(n, 3, 2, 2)


def test_figures_are_those_of_torch_and_torchmetrics():
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(90, 3, generator=generator)
    labels = torch.randint(0, 2, (90,), generator=generator)  # none of class c
    found = figures(Fixed(logits), [LabelledImages(numbered(90), labels)])
    assert found["loss"] == pytest.approx(float(F.cross_entropy(logits, labels)), 1e-5)
    wanted = multiclass_calibration_error(logits.softmax(1), labels, 3, n_bins=15)
    assert found["ece"] == pytest.approx(float(wanted), abs=1e-5)
    assert found["per_class"]["c"] is None
    predicted = unpack_labels(found["predicted"])
    assert (predicted == labels.numpy()).mean() == pytest.approx(found["acc"], abs=1e-6)


def test_against_people_the_entropy_is_the_least_cross_entropy():
    people = torch.tensor([[0.5, 0.5, 0.0], [0.96, 0.04, 0.0], [0.1, 0.0, 0.9]])
    labels = torch.tensor([0, 0, 2])
    like_them = of_people(people.clamp_min(1e-9).log(), labels, people)
    assert like_them["cross_entropy"] == pytest.approx(like_them["entropy"], abs=1e-5)
    even = of_people(torch.zeros(3, 3), labels, people)
    assert even["cross_entropy"] == pytest.approx(np.log(3), abs=1e-5)
    assert [b["images"] for b in even["by_agreement"]] == [1, 1, 1]
    assert even["least_agreed"][0] == 0


def test_the_interval_of_corruptions_counts_an_image_once():
    """Ten copies of one answer are no ten images."""
    logits = F.one_hot(torch.arange(50) % 2, 3).float()
    part = LabelledImages(numbered(50), torch.zeros(50, dtype=torch.int64), "fog", 1)
    once = figures(Fixed(logits), [part])
    many = figures(Fixed(logits), [part._replace(severity=s) for s in (1, 2, 3, 4, 5)])
    assert once["acc_95"] == many["acc_95"]
    assert once["acc"] == 0.5
    assert once["acc_95"][0] == pytest.approx(0.5 - 1.96 * (50 / 49 / 4 / 50) ** 0.5)


@pytest.mark.parametrize("side", [32, 48])
def test_a_keras_file_is_tested_with_the_network_it_holds(tmp_path, capsys, side):
    folder, rng = tmp_path / "mine", np.random.default_rng(0)
    folder.mkdir()
    coarse = rng.integers(0, 256, (50, 8, 8, 3), dtype=np.uint8)  # logits spread
    pixels = coarse.repeat(side // 8, axis=1).repeat(side // 8, axis=2)
    np.save(folder / "images.npy", pixels)
    labels = rng.integers(0, 10, 50)
    np.save(folder / "labels.npy", labels)
    file = Path(__file__).parents[1] / "fixtures/keras/se_resnet.keras"
    network = {"depths": [1, 2, 1], "widths": [8, 16, 32], "strides": [1, 2, 2]}
    typed = [f"model.{k}={v}".replace(" ", "") for k, v in network.items()]
    typed += ["model=se_resnet20", "model.reduction=4", f"run={file}", "out=found.json"]
    data = ("data=arrays", f"data.source.root={folder}")
    assert call(tmp_path, "evaluate", *typed, *data) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    model = resnet_se.load(file, model={**network, "reduction": 4})
    logits = model(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    assert (unpack_labels(found["predicted"]) == logits.argmax(1).numpy()).all()
    # With the preset's own padding and epsilon it would be another network's.
    loss = float(F.cross_entropy(logits, torch.from_numpy(labels)))
    assert found["loss"] == pytest.approx(loss, rel=1e-5)
    assert call(tmp_path, "evaluate", f"run={file}") == 2
    assert "is a Keras file; add data=NAME" in capsys.readouterr().err
    assert call(tmp_path, "evaluate", f"run={file}", *data) == 2
    assert "a Keras file; add model=" in capsys.readouterr().err
