"""Parts of one's own, from a folder of one's own, by the command line alone."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

from resnet_se.analysis.report.runs import Run
from resnet_se.data.augmentation.custom import apply_custom
from resnet_se.data.augmentation.pipeline import Augmentation
from resnet_se.data.loaders import AugmentedImages, BatchesOnDevice, ShuffledBatches
from resnet_se.runs.run_hash import own_sources
from resnet_se.utils.errors import UserError

NET = """
import torch
class Net(torch.nn.Module):
    def __init__(self, width: int, num_classes: int):
        super().__init__()
        self.body = torch.nn.Sequential(
            torch.nn.Conv2d(3, width, 3), torch.nn.AdaptiveAvgPool2d(1),
            torch.nn.Flatten(), torch.nn.Linear(width, num_classes))
    def forward(self, x):
        return self.body(x)
"""
SHORT = (
    "data=synthetic",
    "data.source.num_train=120",
    "data.source.num_test=30",
    "data.batch_size=32",
    "scheduler=constant",
    "trainer.precision=32-true",
    "trainer.max_epochs=1",
    "tta=none",
    "plots=false",
)
OWN = ("model._target_=ownnet.Net", "+model.width=4", *SHORT)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The working directory, with a network in it."""
    (tmp_path / "ownnet.py").write_text(NET)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("ownnet", None)


def names(folder: Path) -> set[str]:
    return {path.parent.name for path in folder.glob("runs/*/*/result.json")}


@pytest.mark.slow
def test_a_network_is_trained_skipped_and_after_an_edit_trained_anew(
    folder, command, capsys
):
    assert command("train", *OWN) == 0
    (first,) = names(folder)
    record = json.loads(next(folder.glob("runs/custom/*/result.json")).read_text())
    assert record["model"]["trainable"] == 3 * 4 * 9 + 4 + 4 * 10 + 10
    assert record["model"]["layers"] == 2
    assert command("train", *OWN) == 0
    assert "skipped" in capsys.readouterr().out
    with (folder / "ownnet.py").open("a") as file:
        file.write("# another thought\n")
    assert command("train", *OWN) == 0
    assert len(names(folder)) == 2
    assert first in names(folder)


@pytest.fixture
def sources(folder, monkeypatch):
    """What the source of `own.Net` is hashed to, after some files were written."""
    monkeypatch.chdir(folder)

    def of(**files: str) -> dict[str, str]:
        for name, text in files.items():
            path = folder / name.replace("__", "/")
            path.parent.mkdir(exist_ok=True)
            path.with_suffix(".py").write_text(text)
        importlib.invalidate_caches()
        return own_sources(["own.net.Net", "torch.nn.Linear", "resnet_se.x.Y"])

    return of


def test_what_a_module_imports_belongs_to_its_source(sources):
    first = sources(
        own__net="def f():\n    from parts import a\nimport os, torch, numpy.linalg",
        parts__a="import others",  # a folder without __init__.py is a package too
        others="import own.net",
        unused="",
    )
    assert set(first) == {"source of own", "source of parts", "source of others"}
    for name in ("own__net", "parts__a", "others"):
        now = sources(**{name: "import own.net, others\nfrom parts import a\nx = 1"})
        package = name.partition("__")[0]
        assert [k for k in first if now[k] != first[k]] == [f"source of {package}"]
        first = now
    assert sources(unused="x = 1") == first


def test_a_source_that_cannot_be_read_is_said(sources, folder):
    sources(own__net="x = 1")
    (folder / "own/broken.py").symlink_to(folder / "nothing")
    with pytest.raises(
        UserError, match=r"own/broken.py: No such file or directory; the"
    ):
        sources()


PARTS = (
    "import lightning as L"
    + NET
    + """
def make(width: int, num_classes: int) -> torch.nn.Module:
    return Net(width, num_classes)
def unsaid(width, num_classes):
    return Net(width, num_classes)
class Bright:
    def __call__(self, image):
        return image.clamp(min=20)
class NoClosure(torch.optim.SGD):
    def step(self):
        super().step()
class Images(L.LightningDataModule):
    pass
class Averaged(torch.optim.SGD):
    # As schedule-free ones: weights to train and, in evaluation, others to test.
    def __init__(self, params, lr):
        super().__init__(params, lr)
        for group in self.param_groups:
            group["train_mode"] = False
    def shift(self, mode):
        for group in self.param_groups:
            if group["train_mode"] != mode:
                for p in group["params"]:
                    p.data.add_(1.0 if mode else -1.0)
            group["train_mode"] = mode
    def train(self):
        self.shift(True)
    def eval(self):
        self.shift(False)
    def step(self, closure=None):
        assert all(g["train_mode"] for g in self.param_groups), "not in train mode"
        return super().step(closure)
"""
)


@pytest.fixture
def parts(folder) -> Path:
    (folder / "ownnet.py").write_text(PARTS)
    return folder


def test_a_factory_and_a_plain_callable_work(parts, command, capsys):
    own = ("model._target_=ownnet.make", *OWN[1:])
    assert command("train", *own, "+augment.own._target_=ownnet.Bright") == 0
    assert command("train", "model._target_=ownnet.unsaid", *OWN[1:]) == 2
    assert "-> torch.nn.Module" in capsys.readouterr().err


def test_a_data_module_is_told_what_to_write_instead(parts, command, capsys):
    assert command("train", *OWN, "data._target_=ownnet.Images") == 2
    said = capsys.readouterr().err
    assert "images of your own need none: data.source._target_=module.Class" in said
    assert "key() and load()" in said


def test_an_optimizer_without_a_closure_is_told(parts, command, capsys):
    options = ("optimizer._target_=ownnet.NoClosure", "optimizer.lr=0.1")
    assert command("train", *OWN, *options) == 2
    assert "Lightning hands every step its closure" in capsys.readouterr().err


def test_an_optimizer_with_two_modes_trains_goes_on_and_is_saved_in_the_tested_one(
    parts, command
):
    options = ("optimizer._target_=ownnet.Averaged", "optimizer.lr=0.0001")
    assert command("train", *OWN, *options) == 0
    (last,) = parts.glob("runs/*/*/checkpoints/last.ckpt")
    more = ("trainer.max_epochs=2", f"ckpt_path={last}")
    assert command("train", *OWN, *options, *more) == 0
    paths = list(parts.glob("runs/*/*/checkpoints/*.ckpt"))
    assert len({path.parent for path in paths}) == 2
    for path in paths:
        weights = torch.load(path, weights_only=True)["state_dict"]
        means = [w.mean() for n, w in weights.items() if n.endswith("weight")]
        assert all(abs(mean) < 0.5 for mean in means)  # in training they are near 1


def test_force_trains_again_beside(folder, command):
    for _ in range(2):
        assert command("train", *OWN, "force=true") == 0
    first, second = sorted(names(folder), key=len)
    assert second == f"{first}+1"


def test_a_network_of_another_shape_is_refused_with_both(folder, command, capsys):
    (folder / "ownnet.py").write_text(NET.replace("num_classes))", "7))"))
    assert command("train", *OWN) == 2
    assert "expected logits (2, 10)" in capsys.readouterr().err


def test_a_small_set_gets_a_batch_that_fits_unless_one_was_typed(
    folder, command, capsys
):
    small = [o for o in OWN if "batch_size" not in o and "num_train" not in o]
    small.append("data.source.num_train=60")
    assert command("train", *small) == 0
    said = "128 do not fit, there are 50 images to train on; 12 are taken"
    assert said in capsys.readouterr().out
    record = json.loads(next(folder.glob("runs/custom/*/result.json")).read_text())
    assert (record["data"]["batch_size"], record["train"]["steps"]) == (12, 4)
    values = Run.of("", record).values
    assert values["data.global_batch_size"] == 12
    assert command("train", *small, "data.batch_size=128") == 2
    assert "data.batch_size: 128 do not fit these data" in capsys.readouterr().err


@pytest.mark.slow
def test_timm_by_name_and_any_optimizer(folder, command):
    assert (
        command(
            "train",
            "model._target_=timm.create_model",
            "+model.model_name=resnet10t",
            "optimizer._target_=torch.optim.NAdam",
            *SHORT,
        )
        == 0
    )
    (run,) = folder.glob("runs/custom/*")
    assert command("evaluate", f"run={run}") == 0


def test_weights_of_another_run_but_for_the_head(folder, command, capsys):
    assert command("train", *OWN) == 0
    (run,) = folder.glob("runs/custom/*")
    more = ("data.source.num_classes=5", f"init_from={run}")
    assert command("train", *OWN, *more) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "2 of 4 tensors, new: net.body.3.bias, net.body.3.weight" in said
    (folder / "nothing.ckpt").write_bytes(b"")
    assert command("train", *OWN, "init_from=nothing.ckpt") == 2


def test_an_experiment_in_a_conf_folder_beside_the_work(folder, command, capsys):
    conf = folder / "conf/experiment"
    conf.mkdir(parents=True)
    (folder / "conf/scheduler").mkdir()  # of a name that is ours, which wins
    (folder / "conf/scheduler/constant.yaml").write_text("warmup_epochs: 99\n")
    (conf / "mine.yaml").write_text(
        "# @package _global_\ndefaults: [override /scheduler: constant]\n"
        "against: [{experiment: other, question: 'is it better?'}]\n"
    )
    assert command("train", "experiment=mine", *OWN) == 0
    record = json.loads(next(folder.glob("runs/mine/*/result.json")).read_text())
    assert record["against"][0]["experiment"] == "other"
    won = "conf/scheduler/constant.yaml: resnet_se has one of that name, which is taken"
    assert won in capsys.readouterr().err


def test_a_slip_in_ones_own_yaml_is_a_sentence_with_its_line(folder, command, capsys):
    conf = folder / "conf/experiment"
    conf.mkdir(parents=True)
    (conf / "mine.yaml").write_text("# @package _global_\nmodel: {depths: [1, 1}\n")
    assert command("train", "experiment=mine", *OWN) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert "mine.yaml" in said
    assert "line 2" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("engine", ["batched", "torchvision"])
def test_a_transform_of_ones_own(folder, command, engine):
    own = "+augment.own._target_=torchvision.transforms.v2.RandomInvert"
    typed = (own, f"data.engine={engine}", "data.num_workers=0")
    assert command("train", *OWN, *typed) == 0


class Halved(torch.nn.Module):
    def forward(self, image):
        return image[..., ::2, ::2]


class Whitened(torch.nn.Module):
    def forward(self, image):
        return image / 255


class Listing(torch.nn.Module):
    def forward(self, image):
        return [image]


class Failing(torch.nn.Module):
    def forward(self, image):
        raise ValueError("no bands")


@pytest.mark.parametrize("where", ["own", "own_batch"])
@pytest.mark.parametrize(
    ("own", "answer"),
    [
        (Halved, r"expected torch.uint8 \(.*3, 8, 8\) back, got torch.uint8 .*4, 4\)"),
        (Whitened, r"expected torch.uint8 .* back, got torch.float32 \(.*3, 8, 8\)"),
        (Failing, r"Failing fails on uint8 \(.*3, 8, 8\): no bands"),
        (Listing, r"expected torch.uint8 .* back, got list"),
    ],
)
def test_a_transform_that_changes_size_or_dtype_is_refused(where, own, answer):
    with pytest.raises(UserError, match=f"augment.{where}: .*{answer}"):
        Augmentation(**{where: own()}).check(8, 8)


def test_a_transform_draws_by_image_and_keeps_the_shape():
    class Noise(torch.nn.Module):
        def forward(self, image):
            return torch.randint(256, image.shape, dtype=torch.uint8)

    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    index = torch.tensor([5, 6, 7, 8])
    whole = apply_custom(Noise(), images, index, seed=0, epoch=1)
    part = apply_custom(Noise(), images[2:], index[2:], seed=0, epoch=1)
    assert torch.equal(whole[2:], part)
    assert not torch.equal(whole[0], whole[1])
    assert not torch.equal(whole, apply_custom(Noise(), images, index, seed=0, epoch=2))


class Shaken(torch.nn.Module):
    """One number a batch, added to all of it."""

    def forward(self, images):
        return images + torch.randint(1, 200, (), dtype=torch.uint8)


def batches(engine: str, size: int, done: int = 0) -> list[torch.Tensor]:
    images = torch.zeros(12, 3, 8, 8, dtype=torch.uint8)
    labels = torch.zeros(12, dtype=torch.int64)
    sampler = ShuffledBatches(12, size, seed=3, epoch=2, done=done)
    own = Augmentation(own_batch=Shaken())
    if engine == "torchvision":
        dataset = AugmentedImages(images, labels, own, seed=3)
        return [dataset[batch][0].float() for batch in sampler]
    unit = torch.zeros(3), torch.full((3,), 1 / 255)  # as they are
    return [x for x, _ in BatchesOnDevice(images, labels, own, sampler, unit)]


def test_a_transform_of_batches_draws_by_batch_in_either_engine():
    whole = batches("batched", 4)
    assert [x.shape for x in whole] == [(4, 3, 8, 8)] * 3
    assert all(len(x.unique()) == 1 for x in whole)
    assert len({x.unique().item() for x in whole}) > 1
    for x, y in zip(whole, batches("torchvision", 4), strict=True):
        torch.testing.assert_close(x, y)
    for x, y in zip(whole[1:], batches("batched", 4, done=1), strict=True):
        assert torch.equal(x, y)
