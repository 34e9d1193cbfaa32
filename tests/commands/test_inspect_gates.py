"""`resnet-se inspect`: its figures are those of loops by hand; the report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import resnet_se
from resnet_se.analysis import gate_study
from resnet_se.analysis.report.gates import read_study
from resnet_se.analysis.report.runs import load
from resnet_se.analysis.report.significance import images_only
from resnet_se.data.splits import stratified_split
from resnet_se.data.synthetic import Synthetic
from resnet_se.inference import export
from resnet_se.runs import checkpoint
from resnet_se.utils.random_streams import stream
from tests.conftest import Run, call
from tests.models.test_se_gates import by_hand

KINDS = ("mean", "class mean", "shuffled", "one")
PICTURES = ("gates", "ablations", "channels", "maps")


@pytest.fixture(scope="module")
def strong(finished: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished run with gates that differ from image to image, looked into."""
    folder = tmp_path_factory.mktemp("strong")
    run = shutil.copytree(finished.folder, folder / "runs" / "run")
    saved = checkpoint.read(run / "checkpoints/best.ckpt")
    for name, tensor in saved["state_dict"].items():
        if "squeeze.weight" in name or "excite.weight" in name:
            tensor.mul_(6)
    checkpoint.write(run / "checkpoints/best.ckpt", saved)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gate_study, "milliseconds", lambda nets, images: [2.0, 1.0])
        assert call(folder, "inspect", f"run={run}", "images=40", "maps=[3,0]") == 0
    return run


@pytest.fixture(scope="module")
def entry(strong: Path) -> dict:
    (found,) = json.loads((strong / "inspect/inspect.json").read_text())["runs"]
    return found


def parts() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The 40 test images of the command above, and the validation part."""
    images = Synthetic(num_train=240, num_test=60).load()
    _, val = stratified_split(images.train_labels, 0.1, 0)
    chosen = [i * 60 // 40 for i in range(40)]
    test = images.test_images[chosen], images.test_labels[chosen]
    return test, (images.train_images[val], images.train_labels[val])


def test_every_ablation_is_that_of_a_loop_by_hand(strong, entry):
    model = resnet_se.load(strong)
    (images, labels), (val_images, val_labels) = parts()
    with torch.no_grad():
        x = model.preprocess(images)
        plain, values = by_hand(model.net, x, {})
        _, seen = by_hand(model.net, model.preprocess(val_images), {})
        right = (plain.argmax(1) == labels).numpy()
        other = torch.randperm(40, generator=stream("shuffled gates"))
        expected = {}
        for place in ("all", "stage 1", "stage 2", "stage 3"):
            blocks = [0, 1, 2] if place == "all" else [int(place[-1]) - 1]
            for kind in KINDS:
                gates = {}
                for b in blocks:
                    of_class = [seen[b][val_labels == y].mean(0) for y in labels]
                    gates[b] = {
                        "mean": seen[b].mean(0),
                        "class mean": torch.stack(of_class),
                        "shuffled": values[b][other],
                        "one": torch.ones(values[b].shape[1]),
                    }[kind]
                logits, _ = by_hand(model.net, x, gates)
                expected[kind, place] = (logits.argmax(1) == labels).numpy()
    assert entry["accuracy"]["acc"] == pytest.approx(right.mean())
    rows = {(a["gates"], a["where"]): a for a in entry["ablations"]}
    assert rows.keys() == expected.keys()
    for key, found in expected.items():
        difference = found.astype(int) - right
        assert rows[key]["acc"] == pytest.approx(found.mean()), key
        assert rows[key]["difference"] == pytest.approx(difference.mean())
        interval = images_only(difference)[1]
        assert rows[key]["difference_interval"] == pytest.approx(interval, rel=1e-4)
    assert len({found.tobytes() for found in expected.values()}) >= 5, "they differ"


def test_blocks_are_described_as_numpy_does(strong, entry):
    model = resnet_se.load(strong)
    (images, labels), _ = parts()
    with torch.no_grad():
        _, values = by_hand(model.net, model.preprocess(images), {})
    for block, gate in zip(entry["blocks"], values, strict=True):
        g = gate.double().numpy()  # (40, C)
        assert block["mean"] == pytest.approx(g.mean(), rel=1e-4)
        assert block["std"] == pytest.approx(g.std(), rel=1e-4)
        spread = np.sqrt(g.var(0).mean())
        assert block["std_images"] == pytest.approx(spread, rel=1e-4)
        constant = (g.mean(0) ** 2).sum() / (g**2).mean(0).sum()
        assert block["shares"]["constant"] == pytest.approx(constant, rel=1e-4)
        for k, name in enumerate(model.classes):
            own = g[labels.numpy() == k]
            found = block["classes"][name]
            assert found["mean"] == pytest.approx(own.mean(), rel=1e-4)
    assert [b["stage"] for b in entry["blocks"]] == [1, 2, 3]
    assert entry["all"]["channels"] == 8 + 8 + 16
    assert entry["data"]["means_over"] == 20
    assert entry["latency"]["milliseconds"] == {
        batch: {"with": 2.0, "without": 1.0} for batch in ("1", "128")
    }


def test_pictures_show_something(strong):
    for name in PICTURES:
        with Image.open(strong / "inspect" / f"{name}.png") as image:
            assert image.convert("L").getextrema() != (255, 255)


def test_the_report_has_a_section_of_it(strong, tmp_path):
    runs = strong.parent
    assert call(tmp_path, "report", str(runs), "--out", "with") == 0
    page = (tmp_path / "with/report.html").read_text()
    assert "What the gates do" in page
    assert "class/var %" in page
    assert (tmp_path / "with/figures/ablations.svg").is_file()


@pytest.mark.parametrize("hash_is", ["another", "none", "its own"])
def test_what_was_found_of_another_run_is_not_taken_for_this_one_s(
    strong, tmp_path, hash_is
):
    run = shutil.copytree(strong, tmp_path / "run")
    file = run / "inspect/inspect.json"
    text = file.read_text()
    if hash_is == "another":
        text = text.replace('"config_hash": "', '"config_hash": "x')
    file.write_text("{" if hash_is == "none" else text)
    (loaded,) = load([str(run)]).runs
    assert (read_study(loaded) is not None) == (hash_is == "its own")


@pytest.mark.slow
def test_two_runs_side_by_side_one_of_them_unfinished(
    strong, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(gate_study, "milliseconds", lambda nets, images: [2.0, 1.0])
    strong = shutil.copytree(strong, tmp_path / "strong")
    other = shutil.copytree(strong, tmp_path / "other")
    shutil.rmtree(other / "inspect")
    record = json.loads((other / "result.json").read_text())
    record["status"] = "interrupted"
    (other / "result.json").write_text(json.dumps(record))
    assert call(tmp_path, "inspect", f"run={strong},other", "images=20") == 0
    assert "is interrupted, not finished" in capsys.readouterr().out
    found = json.loads((tmp_path / "inspect/inspect.json").read_text())["runs"]
    assert [entry["note"] is None for entry in found] == [True, False]
    assert found[0]["ablations"] == found[1]["ablations"]
    own = json.loads((other / "inspect/inspect.json").read_text())["runs"]
    assert own == found[1:]
    assert {path.stem for path in (tmp_path / "inspect").glob("*.png")} == {
        *("gates", "ablations", "channels", "maps-1", "maps-2")
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run=nowhere",), "run: expected a run directory or a bundle, got nowhere"),
        (("maps=[60]",), "maps: expected test images, 0..59, got [60]"),
        (("images=0",), "images: expected"),
        (("out=file/inspect",), "out: cannot write"),
    ],
)
def test_one_sentence_for_each_mistake(strong, tmp_path, capsys, arguments, said):
    (tmp_path / "file").touch()
    given = {"run": f"run={strong}"}
    given |= {argument.partition("=")[0]: argument for argument in arguments}
    assert call(tmp_path, "inspect", *given.values()) == 2
    error = capsys.readouterr().err
    assert f"error: {said}" in error
    assert len(error.splitlines()) == 1


def test_a_network_without_gates_is_told_so(train, run_dirs, command, capsys):
    assert train("model.reduction=null", "trainer.max_epochs=1") == 0
    (run,) = run_dirs()
    capsys.readouterr()
    assert command("inspect", f"run={run}") == 2
    assert "this network has no SE blocks" in capsys.readouterr().err


@pytest.mark.slow
def test_of_a_static_network_nothing_varies(
    train, run_dirs, command, capsys, monkeypatch
):
    monkeypatch.setattr(gate_study, "milliseconds", lambda nets, images: [2.0, 1.0])
    assert train("model.attention=static", "trainer.max_epochs=1") == 0
    (run,) = run_dirs()
    capsys.readouterr()
    assert command("inspect", f"run={run}") == 0
    assert "nothing varies from image to image" in capsys.readouterr().out
    (found,) = json.loads((run / "inspect/inspect.json").read_text())["runs"]
    assert found["static"] is True
    for part in (*found["blocks"], *found["stages"], found["all"]):
        assert part["std_images"] == pytest.approx(0, abs=1e-12)
        assert part["shares"]["constant"] == pytest.approx(1)
        assert part["shares"]["between_classes"] is None
    for row in found["ablations"]:  # their mean, their class's, another's: themselves
        assert row["difference"] == 0 or row["gates"] == "one"
    # And an export sets them to their mean by folding alone.
    monkeypatch.setattr(export, "BATCHES", (1,))
    monkeypatch.setattr(export, "milliseconds", lambda nets, images: [1.0] * len(nets))
    assert command("export", f"run={run}", "format=torch", "gates=mean") == 0
    printed = capsys.readouterr().out
    assert "gates=mean: nothing to do" in printed
    assert "BatchNorm, static" in printed  # the table breaks the line here
    assert "gates folded" in printed


def test_no_run_at_all(command, capsys):
    assert command("inspect", "run=[]") == 2
    assert "run: expected" in capsys.readouterr().err
