"""Right again tomorrow: a run is trained again and compared."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from PIL import Image

from resnet_se.commands.reproduce import (
    check_overrides,
    command_of,
    differences,
    digits,
    weights_agree,
)
from resnet_se.config.schema import is_idle
from resnet_se.runs import checkpoint
from resnet_se.runs.record import check_finished, read_result, write_result
from resnet_se.utils.errors import UserError
from tests.conftest import TINY, call, records


@pytest.mark.parametrize(
    ("a", "b", "text"),
    [
        (0.5, 0.5, "equal"),
        (None, None, "equal"),
        (None, 0.5, "only one of them has it"),
        (1.0, 1.0001, "4 digits (1, 1.0001)"),
        (1.0, 2.0, "0 digits (1, 2)"),
    ],
)
def test_shared_digits(a, b, text):
    assert digits(a, b) == text


def test_weights_that_differ_are_seen(tmp_path):
    weights = {"w": torch.ones(3)}
    for name, change in (("a", 0.0), ("b", 0.0), ("c", 1e-3)):
        state = {"w": weights["w"] + change}
        path = tmp_path / name / "checkpoints" / checkpoint.BEST
        checkpoint.write(path, {"state_dict": state})
    assert weights_agree(tmp_path / "a", tmp_path / "b") == "equal, bit for bit"
    assert weights_agree(tmp_path / "a", tmp_path / "c") == "differ by at most 0.001"


def test_environments_that_differ_are_named():
    then = {"versions": {"torch": "2.14"}, "git": None}
    now = {"versions": {"torch": "2.15"}, "git": None}
    assert differences(then, now) == ["versions.torch: 2.14 → 2.15"]
    assert differences(now, now) == []


@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("+hydra.callbacks.x._target_=os.system", "not of a training alone"),
        ("hydra.searchpath=[file:///elsewhere]", "not of a training alone"),
        ("hydra/launcher=joblib", "not of a training alone"),
        ("~hydra.sweeper", "not of a training alone"),
        ("hparams_search=optuna", "not of a training alone"),
        ("--config-dir=elsewhere", "no override"),
        ("-m", "no override"),
        (5, "no override"),
        ("seed=1,2", "not a plain value"),
        ("model.reduction=${oc.env:HOME}", "not a plain value"),
        ("model._target_=mynet.Net", "code of another package"),
        ("+callbacks.x._target_=elsewhere.Watch", "code of another package"),
        ("callbacks.checkpoint.dirpath=/elsewhere", "a place outside of the run"),
        ("callbacks.checkpoint.dirpath=../elsewhere", "a place outside of the run"),
    ],
)
def test_a_record_of_others_runs_nothing_but_a_training(word, why):
    with pytest.raises(UserError, match=why):
        check_overrides([*TINY, word], Path("RUN"))


def test_what_the_record_says_beside_its_overrides_is_no_more_than_a_value(finished):
    record = dict(finished.result)
    record["hardware"] = record["hardware"] | {"precision": "32-true hydra.run.dir=x"}
    words = command_of(finished.folder, record, Path("again"))
    assert "trainer.precision='32-true hydra.run.dir=x'" in words
    assert words.count(f"seed={record['seed']}") == 1
    record["seed"] = "0 hydra.run.dir=x"
    with pytest.raises(UserError, match="seed"):
        check_finished(record, finished.folder)


def test_what_cannot_change_a_result_is_not_repeated():
    watched = ["logger=wandb", "tags=[a]", "plots=true", "force=true"]
    watched += ["logger.x._target_=os.system", "+trainer.default_root_dir=/x"]
    kept = check_overrides([*TINY, *watched, "mixing=cutmix"], Path("RUN"))
    assert kept == [*(o for o in TINY if not is_idle(o.split("=")[0])), "mixing=cutmix"]


@pytest.mark.slow
def test_a_run_is_the_same_again_and_an_edited_record_is_noticed(
    train, command, run_dirs, capfd
):
    assert train() == 0
    ((run_dir, _),) = run_dirs().items()
    assert command("reproduce", str(run_dir)) == 0
    assert "weights: equal, bit for bit" in capfd.readouterr().out
    record = run_dir / "result.json"
    text = record.read_text()
    acc = f'"acc": {run_dirs()[run_dir]["val"]["acc"]}'
    record.write_text(text.replace(acc, '"acc": 0.77', 1))
    assert command("reproduce", str(run_dir)) == 1


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*create 2 worker processes")
@pytest.mark.parametrize(
    ("engine", "workers"),
    [("batched", (0, 0)), pytest.param("torchvision", (0, 2), marks=pytest.mark.slow)],
)
def test_deterministic_weights_are_the_same_twice_and_with_any_workers(
    train, tmp_path, engine, workers
):
    same = (f"data.engine={engine}", "mixing=cutmix", "+trainer.deterministic=true")
    for i, n in enumerate(workers):
        assert train(*same, f"runs_dir=runs{i}", f"data.num_workers={n}") == 0
    assert torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    a, b = (next(tmp_path.glob(f"runs{i}/*/seed*")) for i in range(2))
    assert a.name == b.name
    assert weights_agree(a, b) == "equal, bit for bit"
    assert train(*same, "runs_dir=other", "seed=1") == 0  # it could differ
    torch.use_deterministic_algorithms(False)
    other = next(tmp_path.glob("other/*/seed*"))
    assert weights_agree(a, other).startswith("differ")


@pytest.fixture
def own_images(train, tmp_path):
    """A run on images in `my data, v2 (x)`, and that folder."""
    folder = tmp_path / "my data, v2 (x)"
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (folder / label).mkdir(parents=True)
        for i in range(40):
            pixels = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{i}.png")
    given = [o for o in TINY if not o.startswith("data")]
    root = f"data.source.root='{folder}'"
    more = ("data=image_folder", root, "data.batch_size=16", "data.num_workers=0")
    assert call(tmp_path, "train", *given, *more, "trainer.max_epochs=1") == 0
    ((run_dir, _),) = records(tmp_path).items()
    return run_dir, folder


def test_data_that_have_moved_are_found_by_their_content(
    own_images, command, monkeypatch, capsys
):
    run_dir, folder = own_images
    moved = folder.rename(folder.with_name("moved"))
    monkeypatch.delenv("RESNET_SE_DATA", raising=False)
    assert command("evaluate", f"run={run_dir}") == 2
    assert "Traceback" not in capsys.readouterr().err
    monkeypatch.setenv("RESNET_SE_DATA", str(moved))
    assert command("evaluate", f"run={run_dir}") == 0
    record = read_result(run_dir)
    line = command_of(run_dir, record, folder.parent / "again")
    assert f"data.source.root='{moved}'" in line
    (moved / "cat/0.png").unlink()  # other data
    assert command("evaluate", f"run={run_dir}") == 2
    assert "trained on data with fingerprint" in capsys.readouterr().err
    with pytest.raises(UserError, match="trained on data with fingerprint"):
        command_of(run_dir, record, folder.parent / "again")


@pytest.fixture
def without_broken(train, tmp_path):
    """A run on images of which two are broken, and its folder."""
    folder = tmp_path / "photos"
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (folder / label).mkdir(parents=True)
        for i in range(20):
            pixels = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{i}.png")
        (folder / label / "3.png").write_text("no picture")
    given = [o for o in TINY if not o.startswith("data")]
    root = f"data.source.root={folder}"
    more = ("data=image_folder", root, "data.batch_size=16", "data.num_workers=0")
    skip = ("data.source.skip_broken=true", "trainer.max_epochs=1")
    assert call(tmp_path, "train", *given, *more, *skip) == 0
    ((run_dir, _),) = records(tmp_path).items()
    return run_dir, folder


@pytest.mark.slow
def test_a_run_without_its_broken_pictures_is_tested_again(
    without_broken, command, monkeypatch, capsys, tmp_path
):
    run_dir, folder = without_broken
    record = read_result(run_dir)
    assert "2 broken ones left out" in record["data"]["origin"]
    assert [record["data"][k] for k in ("train", "val", "test")] == [26, 4, 8]
    assert "data.source.skip_broken=true" in command_of(run_dir, record, tmp_path)
    assert command("evaluate", f"run={run_dir}", "out=again.json") == 0
    again = json.loads((tmp_path / "again.json").read_text())
    assert again["test"]["predicted"] == record["test"]["predicted"]
    # Mended, a picture is one more: other data, and no decoder is to blame.
    shutil.copy(folder / "cat/1.png", folder / "cat/3.png")
    capsys.readouterr()
    assert command("evaluate", f"run={run_dir}") == 2
    message = capsys.readouterr().err
    assert "trained on data with fingerprint" in message
    assert "decoded" not in message
    record["data"]["decoder"] = "Pillow 1.0, libjpeg 9"
    write_result(run_dir, record)
    assert command("evaluate", f"run={run_dir}") == 2
    message = capsys.readouterr().err
    assert "decoded then by Pillow 1.0, libjpeg 9, now by Pillow" in message


@pytest.mark.slow
def test_a_run_without_its_broken_pictures_is_reproduced(
    without_broken, command, capfd
):
    run_dir, _ = without_broken
    record = read_result(run_dir)
    assert command("reproduce", str(run_dir)) == 0
    printed = capfd.readouterr().out
    assert "weights: equal, bit for bit" in printed
    assert "decoded then" not in printed
    record["data"]["decoder"] = "Pillow 1.0, libjpeg 9"
    write_result(run_dir, record)
    assert command("reproduce", str(run_dir)) == 0  # the same pixels nevertheless
    first = capfd.readouterr().out.splitlines()[0]
    assert first.startswith("data: decoded then by Pillow 1.0, libjpeg 9, now by")


def test_a_fallback_reproduces_nothing(own_images, monkeypatch):
    run_dir, folder = own_images
    record = read_result(run_dir)
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    config["data"]["fallback"] = {"_target_": "resnet_se.data.synthetic.Synthetic"}
    (run_dir / "config.yaml").write_text(yaml.safe_dump(config))
    folder.rename(folder.with_name("moved"))
    monkeypatch.delenv("RESNET_SE_DATA", raising=False)
    with pytest.raises(UserError, match="nothing is there"):
        command_of(run_dir, record, folder.parent / "again")


def test_overrides_of_any_folder_are_read_as_they_were_meant(own_images):
    run_dir, folder = own_images
    line = command_of(run_dir, read_result(run_dir), folder.parent / "a b, (c)")
    parser = OverridesParser.create()
    parsed = {o.key_or_group: o.value() for o in parser.parse_overrides(line[3:])}
    assert parsed["data.source.root"] == str(folder)
    assert parsed["runs_dir"] == str(folder.parent / "a b, (c)")
