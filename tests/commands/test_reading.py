"""Training by the Keras reading: its settings, its figures, its refusals, its files."""

import csv
from pathlib import Path

import numpy as np
import pytest

from resnet_se.commands.plan import Planner
from resnet_se.config.hydra_versions import with_conf
from resnet_se.training.module import Classifier
from resnet_se.training.param_groups import l2_penalty
from tests.conftest import TINY

KERAS = ("reading=keras", "optimizer=adam", "optimizer.weight_decay=0.01")
KERAS += ("augment=paper", "scheduler=paper", "scheduler.warmup_epochs=1")
FIXTURE = Path(__file__).parents[1] / "fixtures/keras/se_resnet.keras"


def rows_of(run_dir):
    with (run_dir / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_a_run_by_the_keras_reading(train, run_dirs, capsys, monkeypatch):
    penalties, plain = [], []
    observed = Classifier.on_validation_epoch_end

    def noted(module):
        observed(module)
        if module.trainer.state.fn == "fit":
            penalties.append(l2_penalty(module.trainer.optimizers[0]))
            loss, _, images = module._train_sums().tolist()
            plain.append(loss / images)

    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "on_validation_epoch_end", noted)
        assert train(*KERAS, "model.bn_momentum=0.5") == 0
    ((run_dir, result),) = run_dirs().items()
    assert "The Keras reading" in capsys.readouterr().out
    setting = result["setting"]
    assert result["choices"]["reading"] == "keras"
    assert setting["model.padding"] == "same"
    assert setting["model.init"] == "glorot"
    assert setting["model.bn_momentum"] == 0.5  # the command line wins
    assert setting["augment.fill"] == "nearest"
    assert setting["optimizer.penalty"] == "l2"
    assert "reading.name" not in setting
    assert result["data"]["train"] == 216  # of 240, the tail held out
    assert result["train"]["steps"] == 2 * 7  # 216 = 6 × 32 + 24
    # The penalty is in what may be watched, not in what is tested.
    rows, best = rows_of(run_dir), result["best_epoch"]
    assert min(penalties) > 0.05
    watched = float(rows[best]["val/loss"]) - result["val"]["loss"]
    assert watched == pytest.approx(penalties[best], rel=1e-3)
    watched = np.subtract([float(row["train/loss"]) for row in rows], plain)
    assert watched == pytest.approx(penalties, rel=0.05)  # before the last step
    assert train(*KERAS, "model.bn_momentum=0.5") == 0
    assert "skipped" in capsys.readouterr().out


@pytest.mark.slow
def test_it_goes_on_as_if_it_had_not_stopped(train, run_dirs, monkeypatch, tmp_path):
    assert train("runs_dir=whole", *KERAS) == 0
    (whole,) = tmp_path.glob("whole/*/*")
    begin, due = Classifier.on_train_batch_start, [KeyboardInterrupt]

    def stopped(module, batch, batch_idx):
        # Within the last batch of an epoch, which is the smaller one.
        if (module.current_epoch, batch_idx) == (1, 6) and due:
            raise due.pop()
        begin(module, batch, batch_idx)

    monkeypatch.setattr(Classifier, "on_train_batch_start", stopped)
    assert train(*KERAS, "+callbacks.checkpoint.every_n_steps=3") == 130
    assert train(*KERAS, "+callbacks.checkpoint.every_n_steps=3") == 0
    ((run_dir, _),) = run_dirs().items()
    for ours, other in zip(rows_of(run_dir), rows_of(whole), strict=True):
        for name in ("train/loss", "val/loss", "val/acc", "train/lr"):
            assert float(ours[name]) == pytest.approx(float(other[name]), rel=1e-4)


def test_readings_are_planned_and_nothing_is_written(command, capsys, tmp_path):
    assert command("plan", *TINY, *KERAS[1:], "reading=pytorch,keras") == 0
    printed = capsys.readouterr().out
    assert "2 jobs" in printed
    assert "cannot work" not in printed
    assert list(tmp_path.iterdir()) == []


def test_the_plan_splits_each_job_s_data_as_its_training_would():
    planner, given = Planner(), [*TINY, "trainer.max_epochs=1"]
    more = ("split=tail", "folds=3", "fold=0")
    with with_conf():
        for options in ([], *([f"data.{option}"] for option in more)):
            planner.job([*given, *options])
    parts = [len(m.train_part[0]) for m in planner.modules.values()]
    assert parts == [220, 216, 160]  # the last job's are the first's


def test_a_network_of_another_package_is_refused(train, command, capsys):
    options = ("model._target_=timm.create_model", "+model.model_name=resnet18")
    assert train("reading=keras", *options) == 2
    assert "reading=keras: it sets padding and init" in capsys.readouterr().err
    assert command("plan", *TINY, "reading=keras", *options) == 2
    message = capsys.readouterr().err
    assert "reading=keras: it sets padding and init" in message
    assert len(message.strip().splitlines()) == 1
    assert train("reading=keras", "optimizer=muon") == 2
    message = capsys.readouterr().err
    assert "optimizer." in message
    assert len(message.strip().splitlines()) == 1


@pytest.mark.slow
def test_training_begins_from_a_keras_file(train, capsys):
    pytest.importorskip("h5py")
    same = ("model.depths=[1,2,1]", "model.widths=[8,16,32]", "model.reduction=4")
    assert train("reading=keras", *same, f"init_from={FIXTURE}") == 0
    assert "weights of" in capsys.readouterr().out
    assert train("reading=keras", f"init_from={FIXTURE}", "seed=1") == 2
    assert "se_resnet.keras: expected" in capsys.readouterr().err
