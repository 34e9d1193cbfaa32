"""Training end to end: run directory, idempotence, resuming, evaluation, failures."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from resnet_se.training.module import Classifier
from resnet_se.training.schedules import Schedule
from tests.conftest import TINY, call


def only(found: dict) -> tuple[Path, dict]:
    assert len(found) == 1
    return next(iter(found.items()))


def epochs_of(run_dir: Path) -> list[dict[str, str]]:
    """metrics.csv without its times."""
    rows = csv.DictReader((run_dir / "metrics.csv").read_text().splitlines())
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def assert_same_run(a: Path, b: Path) -> None:
    """Epoch for epoch the same figures, and the same predictions bit for bit."""
    for ours, theirs in zip(epochs_of(a), epochs_of(b), strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            assert float(ours[name]) == pytest.approx(float(value), rel=1e-6), name
    ours, theirs = (np.load(d / "predictions.npz")["logits"] for d in (a, b))
    np.testing.assert_array_equal(ours, theirs)


# --- the run directory -------------------------------------------


def test_a_run_leaves_its_record(finished):
    run_dir, result = finished
    assert result["status"] == "finished"
    assert run_dir.parent.name == result["experiment"] == "custom"
    assert run_dir.name == f"seed0-{result['config_hash']}"
    assert result["setting"]["model.widths"] == [8, 8, 16]
    assert result["choices"]["optimizer"] == "sgd"
    assert result["hardware"]["world_size"] == 1
    assert result["train"]["epochs"] == 2
    assert result["train"]["steps"] == 2 * (220 // 32)
    assert result["data"]["name"] == "synthetic"
    # 24 images a class, of which round(2.4) go to validation.
    assert (result["data"]["train"], result["data"]["val"]) == (220, 20)
    assert {p.name for p in run_dir.iterdir()} == {
        "config.yaml", "checkpoints", "metrics.csv", "predictions.npz", "plots",
        "result.json", ".lock",
    }  # fmt: skip
    assert len(epochs_of(run_dir)) == 2
    pictures = {p.name for p in (run_dir / "plots").iterdir()}
    assert {path.removesuffix(".png") for path in pictures} == {
        *("curves", "confusion", "per_class", "reliability", "mistakes", "augmented")
    }


@pytest.mark.parametrize(
    ("more", "by"),
    [
        ((), "max_epochs"),
        (("+trainer.max_steps=12",), "max_steps"),  # as many as two epochs have
        (("+trainer.max_steps=9",), "max_steps"),
        (("+trainer.max_time=00:00:00:00",), "max_time"),
    ],
)
def test_what_ended_a_training_is_recorded(train, run_dirs, more, by):
    assert train("plots=false", *more) == 0
    _, result = only(run_dirs())
    assert result["train"]["stopped"] == by


def test_the_stored_predictions_give_the_published_figures(finished):
    test, stored = finished.result["test"], np.load(finished.folder / "predictions.npz")
    assert test["images"] == len(stored["labels"]) == 60
    for name, kept in (("acc", "logits"), ("acc_tta", "tta")):
        hits = stored[kept].argmax(axis=1) == stored["labels"]
        assert hits.mean() == pytest.approx(test[name], rel=1e-5)
    per_class = np.mean(list(test["per_class"].values()))
    assert per_class == pytest.approx(test["acc"], rel=1e-5)  # balanced classes
    val = finished.result["val"]
    val_logits, val_labels = map(
        torch.from_numpy, (stored["val_logits"], stored["val_labels"])
    )
    assert len(val_labels) == finished.result["data"]["val"]
    loss = float(F.cross_entropy(val_logits, val_labels))
    assert loss == pytest.approx(val["loss"], rel=1e-4)
    accuracy = float((val_logits.argmax(1) == val_labels).float().mean())
    assert accuracy == pytest.approx(val["acc"], abs=1e-6)


def test_a_finished_run_is_not_repeated(finished, capsys):
    path = finished.folder / "result.json"
    before = path.stat().st_mtime_ns
    runs = finished.folder.parents[2]
    # What cannot change the result does not matter.
    assert call(runs, "train", *TINY, "tags=[again]", "data.num_workers=1") == 0
    assert "skipped" in capsys.readouterr().out
    assert path.stat().st_mtime_ns == before


class Own(L.Callback):
    """A callback of the user's, which writes into the run directory."""

    def __init__(self, path: str):
        self.path = Path(path)

    def on_train_end(self, *_) -> None:
        self.path.touch()


@pytest.mark.slow
def test_a_callback_of_ones_own_may_name_the_run_directory(train, run_dirs, capsys):
    own = "+callbacks.own={_target_: tests.commands.test_train.Own, "
    own += "path: '${run_dir}/mine'}"
    for _ in range(2):
        assert train(own, "trainer.max_epochs=1") == 0
    assert "skipped" in capsys.readouterr().out
    run_dir, _ = only(run_dirs())
    assert (run_dir / "mine").is_file()


def test_an_edited_run_directory_is_refused(finished, tmp_path, train, capsys):
    shutil.copytree(finished.folder.parents[1], tmp_path / "runs")
    (path,) = tmp_path.glob("runs/*/*/config.yaml")
    path.write_text(path.read_text().replace("max_epochs: 2", "max_epochs: 7"))
    (path.parent / "result.json").unlink()  # it would have been skipped
    assert train() == 2
    assert "another configuration" in capsys.readouterr().err


# --- going on ----------------------------------------------------

NOISY = ("model.dropout=0.2", "mixing=mixup")


class Stopped:
    """Notes the steps that are begun; `stop` is called at one of them, once."""

    def __init__(self, monkeypatch, at, stop):
        self.steps: list[tuple[int, int]] = []
        begin, due = Classifier.on_train_batch_start, [stop]

        def noted(module, batch, batch_idx):
            step = (module.current_epoch, batch_idx)
            if step == at and due:
                due.pop()()
            self.steps.append(step)
            begin(module, batch, batch_idx)

        monkeypatch.setattr(Classifier, "on_train_batch_start", noted)


@pytest.fixture
def whole(train, tmp_path):
    """The run directory of a training that was not interrupted."""

    def call(*overrides: str) -> Path:
        assert train("runs_dir=whole", *overrides) == 0
        return next(tmp_path.glob("whole/*/*"))

    return call


def interrupt() -> None:
    raise KeyboardInterrupt


def test_an_interrupted_run_goes_on_as_if_it_had_not_stopped(
    train, run_dirs, monkeypatch, whole
):
    overrides = (*NOISY, "callbacks=ema", "trainer.max_epochs=3")
    reference = whole(*overrides)
    stopped = Stopped(monkeypatch, (2, 1), interrupt)
    assert train(*overrides) == 130
    run_dir, result = only(run_dirs())
    assert result["status"] == "interrupted"
    assert len(epochs_of(run_dir)) == 2
    assert train(*overrides) == 0
    assert only(run_dirs())[1]["status"] == "finished"
    assert stopped.steps[12:] == [(2, 0), *((2, step) for step in range(6))]
    assert_same_run(run_dir, reference)


@pytest.mark.parametrize(
    "options",
    [
        ("callbacks=ema",),
        pytest.param(
            ("data.engine=torchvision", "data.num_workers=1"), marks=pytest.mark.slow
        ),
    ],
    ids=["averaged", "workers"],
)
def test_after_sigterm_a_run_goes_on_in_mid_epoch(
    train, run_dirs, monkeypatch, whole, options
):
    overrides = (*NOISY, *options)
    reference = whole(*overrides)
    stopped = Stopped(monkeypatch, (1, 3), lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert train(*overrides) == 130
    run_dir, result = only(run_dirs())
    assert result["status"] == "interrupted"
    assert stopped.steps[-1] == (1, 3)  # that step was finished
    assert train(*overrides) == 0
    assert stopped.steps == [(epoch, step) for epoch in range(2) for step in range(6)]
    result = only(run_dirs())[1]
    assert result["status"] == "finished"
    assert result["train"]["images_per_second"] > 0
    assert_same_run(run_dir, reference)


@pytest.mark.slow
def test_from_a_checkpoint_of_a_step_no_image_is_seen_twice(
    train, run_dirs, monkeypatch, whole
):
    overrides = (*NOISY, "+callbacks.checkpoint.every_n_steps=4")
    reference = whole(*overrides)
    stopped = Stopped(monkeypatch, (1, 4), interrupt)
    assert train(*overrides) == 130
    before = len(stopped.steps)
    assert train(*overrides) == 0
    assert stopped.steps[before:] == [(1, 2), (1, 3), (1, 4), (1, 5)]  # after step 8
    assert_same_run(only(run_dirs())[0], reference)


def test_a_thread_of_a_launcher_trains(train, run_dirs):
    """Only the main thread of a process may set signal handlers."""
    thread = threading.Thread(target=train, args=("trainer.max_epochs=1",))
    thread.start()
    thread.join()
    assert only(run_dirs())[1]["status"] == "finished"


@pytest.mark.slow
def test_a_killed_process_is_resumed_by_the_same_command(tmp_path, train, run_dirs):
    overrides = ("trainer.max_epochs=30",)
    line = [sys.executable, "-m", "resnet_se.train", *TINY, *overrides]
    process = subprocess.Popen(line, cwd=tmp_path, stdout=subprocess.DEVNULL)
    while not list(tmp_path.glob("runs/*/*/checkpoints/last.ckpt")):
        time.sleep(0.05)
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    run_dir, result = only(run_dirs())
    assert result["status"] == "running"  # nobody could say otherwise
    done = torch.load(run_dir / "checkpoints/last.ckpt", weights_only=True)["epoch"] + 1
    assert 1 <= done < 30

    assert train(*overrides) == 0
    assert [int(row["epoch"]) for row in epochs_of(run_dir)] == list(range(30))


def test_a_continued_run_has_the_settings_that_were_asked_for(
    finished, train, run_dirs
):
    donor = finished.folder / "checkpoints/last.ckpt"
    # A rate at which nothing beats the donor's best.
    asked = ("optimizer.lr=1e-9", "optimizer.weight_decay=0.25", "trainer.max_epochs=3")
    assert train(*asked, f"ckpt_path={donor}") == 0
    run_dir, result = only(run_dirs())
    assert result["status"] == "finished"
    assert result["best_epoch"] == 2  # of its own epochs the best
    assert float(epochs_of(run_dir)[2]["train/lr"]) == pytest.approx(1e-9)
    (state,) = last_checkpoint(run_dir)["optimizer_states"]
    assert {group["weight_decay"] for group in state["param_groups"]} == {0.25}
    assert {group["lr"] for group in state["param_groups"]} == {1e-9}
    # The first step already had the rate: the weights are the donor's.
    before = torch.load(donor, weights_only=True)["state_dict"]
    after = last_state(run_dir)
    torch.testing.assert_close(after["net.head.weight"], before["net.head.weight"])


@pytest.mark.parametrize("known", [True, False], ids=["named", "by its state"])
def test_another_class_of_optimizer_takes_over_no_state(
    finished, train, tmp_path, capsys, known
):
    donor = torch.load(finished.folder / "checkpoints/last.ckpt", weights_only=True)
    if not known:  # of an earlier version
        del donor["optimizer"]
    torch.save(donor, tmp_path / "donor.ckpt")
    assert train("optimizer=adamw", f"ckpt_path={tmp_path}/donor.ckpt") == 2
    error = capsys.readouterr().err
    assert "ckpt_path: " in error
    assert "init_from=" in error
    assert "Traceback" not in error


# --- what is tested ----------------------------------------------

# The rate leaps up in the end, so that the best is not the last epoch's.
WORSE_AT_LAST = (
    "trainer.max_epochs=6", "scheduler=multistep", "scheduler.decay.milestones=[4]",
    "scheduler.decay.gamma=100", "scheduler.warmup_epochs=0",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["val/acc", "train/acc", "val/loss"])
def test_the_epoch_that_is_kept_is_the_best_of_any_metric(train, run_dirs, metric):
    assert train(*WORSE_AT_LAST, f"+callbacks.checkpoint.monitor={metric}") == 0
    run_dir, result = only(run_dirs())
    column = [float(epoch[metric]) for epoch in epochs_of(run_dir)]
    best = min(column) if metric.endswith("loss") else max(column)
    assert result["best_epoch"] == column.index(best)
    assert min(column) < max(column)


def test_validations_within_an_epoch_may_be_the_best_and_count_once(
    train, run_dirs, monkeypatch
):
    observed, validated = [], []
    observe, log = Schedule.observe, Classifier._log_epoch
    note = lambda self, loss: (observed.append(loss), observe(self, loss))  # noqa: E731
    monkeypatch.setattr(Schedule, "observe", note)

    def logged(self, part, sums, **more):
        if part == "val" and self.trainer.state.fn == "fit":
            validated.append(float((sums[0] / sums[2]).float()))
        log(self, part, sums, **more)

    monkeypatch.setattr(Classifier, "_log_epoch", logged)
    # The rate leaps up in the middle of the second epoch.
    leap = ("scheduler=multistep", "scheduler.decay.milestones=[1.5]",
            "scheduler.decay.gamma=20", "scheduler.warmup_epochs=0")  # fmt: skip
    assert train(*leap, "+trainer.val_check_interval=0.5") == 0
    assert len(validated) == 4
    assert observed == validated[1::2]
    run_dir, result = only(run_dirs())
    assert [float(row["val/loss"]) for row in epochs_of(run_dir)] == validated
    assert [len(column) for column in result["history"].values()] == [2] * len(
        result["history"]
    )
    assert result["val"]["loss"] == pytest.approx(min(validated), rel=1e-5)
    assert result["best_epoch"] == validated.index(min(validated)) // 2


def test_an_epoch_without_validation_shows_none(train, run_dirs, capsys):
    assert train("+trainer.check_val_every_n_epoch=2", "trainer.max_epochs=3") == 0
    lines = [x for x in capsys.readouterr().out.splitlines() if x.startswith("epoch ")]
    assert ["val" in line for line in lines] == [False, True, False]


@pytest.mark.slow
def test_what_was_averaged_is_validated_kept_and_tested(train, command, run_dirs):
    averaged = ("callbacks=ema", "callbacks.weight_average.decay=0.5")
    assert train(*WORSE_AT_LAST, *averaged) == 0
    run_dir, result = only(run_dirs())
    best = epochs_of(run_dir)[result["best_epoch"]]
    assert result["best_epoch"] < 5
    assert float(best["val/loss"]) == pytest.approx(result["val"]["loss"], rel=1e-5)
    kept = torch.load(run_dir / "checkpoints/best.ckpt", weights_only=True)
    name = "net.head.weight"
    assert not torch.equal(kept["state_dict"][name], kept["trained_state"][name])
    assert command("evaluate", f"run={run_dir}", "out=again.json") == 0
    again = json.loads(Path("again.json").read_text())
    for part in ("val", "test"):
        assert again[part] == result[part]


SMALL = (
    "model.depths=[1]", "model.widths=[8]", "model.strides=[1]", "model.reduction=null",
)  # fmt: skip


@pytest.mark.slow
def test_compiled_training_is_the_same_within_rounding(train, run_dirs):
    assert train(*SMALL) == 0
    plain, before = only(run_dirs())
    rows, state = epochs_of(plain), last_state(plain)
    assert before["train"]["compile_seconds"] is None

    # The same run directory: compiled or not, it is the same run.
    plain.rename("plain")
    assert train(*SMALL, "trainer.compile=default") == 0
    run_dir, result = only(run_dirs())
    assert run_dir == plain
    assert result["train"]["compile_seconds"] > 0
    for a, b in zip(rows, epochs_of(run_dir), strict=True):
        for name in ("train/loss", "val/loss"):
            assert float(a[name]) == pytest.approx(float(b[name]), rel=1e-3)
    compiled = last_state(run_dir)
    assert list(compiled) == list(state)
    torch.testing.assert_close(compiled, state, rtol=1e-2, atol=1e-3)


def last_checkpoint(run_dir: Path) -> dict:
    return torch.load(run_dir / "checkpoints/last.ckpt", weights_only=True)


def last_state(run_dir: Path) -> dict[str, torch.Tensor]:
    path = run_dir / "checkpoints/last.ckpt"
    return torch.load(path, weights_only=True)["state_dict"]


@pytest.mark.slow  # imports the compiler
def test_no_compiler_is_said_before_training(
    train, run_dirs, capsys, monkeypatch, tmp_path
):
    import torch._inductor.config as inductor

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "nothing compiled"))
    # Not monkeypatch, which deletes the setting when it puts it back.
    with inductor.patch({"cpp.cxx": ("no-such-compiler",)}):
        assert train(*SMALL, "trainer.compile=default") == 2
    error = capsys.readouterr().err
    assert "trainer.compile: torch's compiler does not work here" in error
    assert "trainer.compile=off" in error
    assert "Traceback" not in error
    run_dir, _ = only(run_dirs())
    assert not (run_dir / "checkpoints").exists()


IMPOSSIBLE = {
    "trainer.compile=cuda_graphs": "trainer.compile=default works there",
    "trainer.compile=defaut": "did you mean 'default'?",
    "callbacks.early_stopping.patience=-1": "early_stopping.patience: expected",
    "trainer.precision=bf16-mixed +trainer.gradient_clip_val=1": "optimizer.fused=",
}


@pytest.mark.parametrize(("typed", "answer"), IMPOSSIBLE.items(), ids=list(IMPOSSIBLE))
def test_what_cannot_work_is_said_before_training(train, capsys, typed, answer):
    assert train(*typed.split()) == 2
    error = capsys.readouterr().err
    assert answer in error
    assert "Traceback" not in error


def test_evaluate_repeats_the_figures_and_takes_another_tta(finished, command, capsys):
    run_dir, result = finished
    assert command("evaluate", f"run={run_dir}", "out=again.json") == 0
    again = json.loads(Path("again.json").read_text())
    for part in ("val", "test"):
        assert again[part] == result[part]

    assert command("evaluate", f"run={run_dir}", "tta=none", "out=plain.json") == 0
    plain = json.loads(Path("plain.json").read_text())
    assert plain["test"]["acc_tta"] is None
    assert plain["test"]["acc"] == result["test"]["acc"]

    capsys.readouterr()
    assert command("evaluate", "run=nowhere") == 2
    assert "nowhere" in capsys.readouterr().err


def test_checkpoints_hold_plain_values_only(train, run_dirs):
    assert train("optimizer=adamw", "scheduler=plateau", "trainer.max_epochs=1") == 0
    run_dir, result = only(run_dirs())
    for path in (run_dir / "checkpoints").iterdir():
        checkpoint = torch.load(path, weights_only=True)
        data = checkpoint["ImageDataModule"]
        assert data["fingerprint"] == result["data"]["fingerprint"]
        assert not any("_orig_mod" in name for name in checkpoint["state_dict"])


def test_a_nan_loss_stops_and_keeps_the_last_good_checkpoint(
    train, run_dirs, capsys, monkeypatch
):
    forward = Classifier.forward

    def spoiled(self, images):
        logits = forward(self, images)
        return logits * float("nan") if self.global_step == 8 else logits

    monkeypatch.setattr(Classifier, "forward", spoiled)
    assert train() == 2  # six steps an epoch: step 8 is the third of the second
    error = capsys.readouterr().err
    assert "batch 3 of epoch 2" in error
    assert "Traceback" not in error
    run_dir, result = only(run_dirs())
    assert result["status"] == "failed"
    assert "batch 3" in result["error"]
    assert "Diverged" in (run_dir / "error.txt").read_text()
    last = torch.load(run_dir / "checkpoints/last.ckpt", weights_only=True)
    assert last["epoch"] == 0
    assert all(torch.isfinite(w.float()).all() for w in last["state_dict"].values())


def test_other_architecture_other_data_damaged_checkpoint(finished, train, capsys):
    ckpt = finished.folder / "checkpoints/best.ckpt"
    assert train(f"ckpt_path={ckpt}", "model.widths=[8,16,16]") == 2
    error = capsys.readouterr().err
    assert "another architecture" in error
    assert "blocks.1" in error

    assert train(f"ckpt_path={ckpt}", "data.source.seed=1") == 2
    assert "fingerprint" in capsys.readouterr().err

    Path("broken.ckpt").write_bytes(ckpt.read_bytes()[:1000])
    assert train("ckpt_path=broken.ckpt") == 2
    assert "broken.ckpt: damaged" in capsys.readouterr().err


def test_quickstart_alone_goes_on_without_cifar10(
    command, run_dirs, monkeypatch, tmp_path, capsys
):
    def no_network(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    monkeypatch.setenv("RESNET_SE_DATA", str(tmp_path / "empty"))
    tiny = [o for o in TINY if not o.startswith("data=") and "source" not in o]
    small = ["data.fallback.num_train=240", "data.fallback.num_test=60"]
    assert command("train", "experiment=quickstart", *tiny, *small) == 0
    out = capsys.readouterr().out
    assert "synthetic images instead of CIFAR-10" in out
    assert "CIFAR-10 was not found" in out  # the closing table
    _, result = only(run_dirs())
    assert result["data"]["name"] == "synthetic"
    assert "no network" in result["data"]["fallback"]

    assert command("train", *tiny) == 2
    assert "RESNET_SE_DATA" in capsys.readouterr().err


def test_the_number_of_classes_is_the_datas(train, run_dirs, capsys):
    assert train("data.source.num_classes=4", "trainer.max_epochs=1") == 0
    _, result = only(run_dirs())
    assert len(result["test"]["per_class"]) == 4
    assert train("+model.num_classes=7") == 2
    assert "10 classes, got 7" in capsys.readouterr().err


@pytest.mark.slow  # decodes 60,000 files
@pytest.mark.skipif(
    "RESNET_SE_DATA" not in os.environ, reason="RESNET_SE_DATA names no CIFAR-10"
)
def test_real_images_are_learnt(command, run_dirs):
    status = command(
        "train", "experiment=quickstart", "model.widths=[16,16,32]", "plots=false",
        "data.train_subset=4000", "trainer.max_epochs=4", "trainer.accelerator=cpu",
        "trainer.limit_test_batches=2",
    )  # fmt: skip
    assert status == 0
    _, result = only(run_dirs())
    assert result["data"]["name"] == "cifar10"
    assert result["test"]["acc"] > 0.16  # chance is 0.1 ± 0.01
