"""`resnet-se bundle`: the same logits elsewhere, and safe from others."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

import resnet_se
from resnet_se.commands.bundle import _card
from resnet_se.runs.bundle import checksum
from resnet_se.utils.errors import UserError
from tests.conftest import Run, call

IMAGES = torch.arange(2 * 3 * 32 * 32).remainder(251).view(2, 3, 32, 32).byte()


@pytest.fixture(scope="module")
def made(finished: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of the finished run; only to be read."""
    folder = tmp_path_factory.mktemp("bundle")
    assert call(folder, "bundle", f"run={finished.folder}", "out=share/mine") == 0
    return folder / "share" / "mine"


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "copy"))


def change(folder: Path, name: str, edit: Callable[[dict], None]) -> None:
    """Changes a JSON file as anybody could: its checksum with it."""
    content = json.loads((folder / name).read_text())
    edit(content)
    (folder / name).write_text(json.dumps(content))
    manifest = json.loads((folder / "bundle.json").read_text())
    if name in manifest["files"]:
        digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        manifest["files"][name] = digest
    manifest["checksum"] = checksum(manifest)
    (folder / "bundle.json").write_text(json.dumps(manifest))


# --- the round trip ----------------------------------------------


def test_folder_and_zip_give_the_run_s_logits_bit_for_bit(made, finished):
    run = resnet_se.load(finished.folder)
    for path in (made, made.with_name("mine.zip")):
        model = resnet_se.load(path)
        assert torch.equal(model(IMAGES), run(IMAGES))
        assert (model.classes, model.size) == (run.classes, run.size)
        assert model.fingerprint == run.fingerprint
        assert model.record["test"] == run.record["test"]
        own, theirs = (m.predict(IMAGES, tta=True).probabilities for m in (model, run))
        assert torch.equal(own, theirs)


def test_a_bundle_has_no_path_of_its_machine(made, finished):
    texts = [path.read_bytes() for path in made.iterdir()]
    assert not any(str(finished.folder.parent).encode() in text for text in texts)
    config = json.loads((made / "config.json").read_text())
    assert "logger" not in config
    assert "root" not in config["data"]["source"]


def test_the_same_run_gives_the_same_bytes_over_an_older_bundle(
    made, finished, command, tmp_path
):
    for _ in range(2):
        assert command("bundle", f"run={finished.folder}", "out=again/mine") == 0
    again = tmp_path / "again"
    assert {path.name for path in again.iterdir()} == {"mine", "mine.zip"}
    assert (again / "mine.zip").read_bytes() == made.with_name("mine.zip").read_bytes()


def test_the_card_s_head_is_what_the_hub_reads(made, finished):
    card = (made / "README.md").read_text()
    head = yaml.safe_load(card.split("---\n")[1])
    (result,) = head["model-index"][0]["results"]
    values = [metric["value"] for metric in result["metrics"]]
    test = finished.result["test"]
    assert values == [test["acc"], test["acc_tta"]]
    assert result["task"]["type"] == head["pipeline_tag"] == "image-classification"
    assert "license" not in head
    assert finished.result["data"]["fingerprint"] in card
    hub = pytest.importorskip("huggingface_hub")
    data = hub.ModelCard(card).data
    assert [r.metric_value for r in data.eval_results] == values


@pytest.mark.parametrize(
    ("origin", "kind"),
    [
        ("official CIFAR-10", "cifar10"),
        ("cifar.tar.gz: official CIFAR-10", "cifar10"),
        ("cifar10-jpeg.tar.xz: JPEG files", "other"),
    ],
)
def test_a_lossy_copy_s_accuracy_is_not_given_as_the_data_set_s(finished, origin, kind):
    model = resnet_se.load(finished.folder)
    data = finished.result["data"] | {"name": "cifar10", "origin": origin}
    model.record = finished.result | {"data": data}
    model.config = model.config | {"model": {"_target_": "mynet.Net"}}
    card = _card(model)
    head = yaml.safe_load(card.split("---\n")[1])
    dataset = head["model-index"][0]["results"][0]["dataset"]
    assert dataset["type"] == kind
    assert (origin in dataset["name"]) == (kind == "other")
    assert "pip install" not in card
    assert "trust=True" in card  # what a network of one's own needs
    assert "`mynet.Net`" in card


def test_torch_hub_opens_it(made, finished):
    model = torch.hub.load(str(made), "network", source="local")
    assert torch.equal(model(IMAGES), resnet_se.load(finished.folder)(IMAGES))


# --- of the version whose modules lay side by side ---------------

OLD_TARGETS = (
    "resnet_se.callbacks.Checkpoints",
    "resnet_se.callbacks.History",
    "resnet_se.callbacks.SaveOnSigterm",
    "resnet_se.data.augment.Augmentation",
    "resnet_se.data.module.ImageDataModule",
    "resnet_se.data.synthetic.Synthetic",
    "resnet_se.mixing.Mixing",
    "resnet_se.optim.Schedule",
    "resnet_se.optim.constant",
    "resnet_se.optim.make_optimizer",
    "resnet_se.progress.Forecast",
    "resnet_se.progress.progress",
    "resnet_se.resnet.ResNet",
    "resnet_se.tta.TTA",
)


def with_old_targets(text: str) -> str:
    """Return a configuration's text as the earlier version wrote it."""
    old = {target.rpartition(".")[2]: target for target in OLD_TARGETS}
    return re.sub(r"\bresnet_se(?:\.\w+)*\.(\w+)", lambda m: old[m[1]], text)


def test_runs_and_bundles_of_the_earlier_modules_give_the_same_digits(
    made, finished, command, tmp_path
):
    run = Path(shutil.copytree(finished.folder, tmp_path / "run"))
    config = run / "config.yaml"
    config.write_text(with_old_targets(config.read_text()))
    assert "resnet_se.resnet.ResNet" in config.read_text()
    bundle = Path(shutil.copytree(made, tmp_path / "old"))
    old = json.loads(with_old_targets((bundle / "config.json").read_text()))
    change(bundle, "config.json", lambda config: config.update(old))
    assert "resnet_se.resnet.ResNet" in (bundle / "config.json").read_text()
    expected = resnet_se.load(finished.folder)
    for path in (run, bundle):
        model = resnet_se.load(path)
        assert torch.equal(model(IMAGES), expected(IMAGES))
        probabilities = model.predict(IMAGES, tta=True).probabilities
        assert torch.equal(
            probabilities, expected.predict(IMAGES, tta=True).probabilities
        )
    assert command("evaluate", "run=run", "out=again.json") == 0
    again = json.loads((tmp_path / "again.json").read_text())
    for part in ("val", "test"):
        for name, value in again[part].items():
            assert value == finished.result[part][name], name
    # Passed on, it names the network as this version does.
    assert command("bundle", "run=run", "out=new") == 0
    assert torch.equal(resnet_se.load(tmp_path / "new")(IMAGES), expected(IMAGES))
    assert "resnet_se.resnet." not in (tmp_path / "new/config.json").read_text()


@pytest.mark.slow
def test_the_wheel_elsewhere_gives_the_run_s_logits(
    made, finished, fresh_python, tmp_path
):
    code = (
        "import resnet_se, torch; torch.set_num_threads(1);"
        "m = resnet_se.load('mine.zip');"
        "x = torch.arange(2*3*32*32).remainder(251).view(2,3,32,32).byte();"
        "torch.save((resnet_se.__file__, m(x)), 'logits.pt')"
    )
    shutil.copy(made.with_name("mine.zip"), tmp_path)
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run([fresh_python, "-c", code], check=True, cwd=tmp_path, env=env)
    file, logits = torch.load(tmp_path / "logits.pt")
    assert Path(file).is_relative_to(fresh_python.parents[1])
    assert torch.equal(logits, resnet_se.load(finished.folder)(IMAGES))


# --- damage and intent -------------------------------------------


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "result.json"])
def test_every_flipped_byte_is_seen(copy, name):
    path = copy / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{name} is not what was bundled"):
        resnet_se.load(copy)


def test_the_card_may_be_edited(copy):
    (copy / "README.md").write_text("license: mit")
    resnet_se.load(copy)


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "torch.nn.Linear",
        "resnet_se.utils.files.os.abort",
        "resnet_se.models.resnet.nn.Linear",
        "resnet_se.nowhere.Network",
        "resnet_se.models.layers.get_args",
        None,
        ["resnet_se.models.resnet.ResNet"],
    ],
)
def test_an_untrusted_target_is_not_called(copy, target):
    change(copy, "config.json", lambda c: c["model"].update(_target_=target))
    with pytest.raises(UserError, match=r"not one of resnet_se; load\(…, trust=True"):
        resnet_se.load(copy)


@pytest.mark.parametrize(
    "arguments",
    [
        {"widths": {"_target_": "os.abort"}},
        {"_args_": [1]},
        {"dropout": "${oc.env:HOME}"},
        {"depths": [[[1]] * 100]},
        {"depths": [10**9]},
    ],
)
def test_untrusted_arguments_are_plain(copy, arguments):
    change(copy, "config.json", lambda c: c["model"].update(arguments))
    with pytest.raises(UserError):
        resnet_se.load(copy)


def test_a_trusted_network_of_another_package_is_built(copy):
    model = {"_target_": "torchvision.models.resnet18"}
    change(copy, "config.json", lambda c: c.update(model=model))
    with pytest.raises(UserError, match="of another architecture"):
        resnet_se.load(copy, trust=True)


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("model", ["${run_dir}", None, [], 3])
def test_a_network_that_is_none(copy, model, trust):
    change(copy, "config.json", lambda c: c.update(model=model))
    with pytest.raises(UserError, match=r"network is|expected a mapping"):
        resnet_se.load(copy, trust=trust)


@pytest.mark.parametrize("tta", [3, "flip", [1], {"views": None}])
def test_views_that_are_none(copy, tta):
    change(copy, "config.json", lambda c: c.update(tta=tta))
    with pytest.raises(UserError, match="the run has none of its own"):
        resnet_se.load(copy).predict(IMAGES, tta=True)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda m: m.update(format=3), "format 2 expected, got 3"),
        (lambda m: m.update(classes=["a"]), "classes: expected 2 or more"),
        (lambda m: m.update(classes=["a", "b"]), "of another architecture"),
        (lambda m: m.update(size=[0, 32]), "size: expected"),
        (lambda m: m.update(mean=[0.5]), "mean: expected three numbers"),
        (lambda m: m.pop("std"), "not a bundle: 'std' is missing"),
    ],
)
def test_a_manifest_that_does_not_fit(copy, edit, said):
    change(copy, "bundle.json", edit)
    with pytest.raises(UserError, match=said):
        resnet_se.load(copy)


@pytest.mark.parametrize("edit", [{"mean": [0, 0, 0]}, {"classes": list("abcdefghij")}])
def test_an_edited_manifest_is_noticed(copy, edit):
    manifest = json.loads((copy / "bundle.json").read_text())
    (copy / "bundle.json").write_text(json.dumps(manifest | edit))
    with pytest.raises(UserError, match=r"bundle\.json is not what was bundled"):
        resnet_se.load(copy)
    del manifest["checksum"]  # as bundles of the first format were
    (copy / "bundle.json").write_text(json.dumps(manifest | {"format": 1}))
    resnet_se.load(copy)


def test_what_is_no_bundle(tmp_path, copy):
    (tmp_path / "a.zip").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"a\.zip: a damaged bundle"):
        resnet_se.load(tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("../../bundle.json", "{}")
    with pytest.raises(UserError, match=r"b\.zip: not a bundle"):
        resnet_se.load(tmp_path / "b.zip")
    (copy / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"'model\.safetensors' is missing"):
        resnet_se.load(copy)


def test_another_folder_is_not_overwritten(command, finished, tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    assert command("bundle", f"run={finished.folder}", "out=photos") == 2
    assert "photos is there and is no bundle" in capsys.readouterr().err
    assert command("bundle", f"run={finished.folder}", "out=photos/a.jpg/b") == 2
    assert "cannot write photos/a.jpg/b" in capsys.readouterr().err
