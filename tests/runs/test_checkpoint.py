"""Checkpoints: nothing lost, nothing damaged unseen, each by its own rule."""

from __future__ import annotations

import errno
import random
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from lightning.pytorch.trainer.connectors import checkpoint_connector

from resnet_se.runs import checkpoint
from resnet_se.training.module import Classifier
from resnet_se.utils.errors import UserError

EPOCHS = ("trainer.max_epochs=4", "plots=false")


@pytest.fixture
def sample(tmp_path) -> Path:
    path = tmp_path / "some/last.ckpt"
    checkpoint.write(path, {"state_dict": {"w": torch.arange(300.0)}, "epoch": 3})
    return path


def only(found: dict) -> tuple[Path, dict]:
    assert len(found) == 1
    return next(iter(found.items()))


def same_weights(a: Path, b: Path) -> bool:
    ours, theirs = (checkpoint.read(p)["state_dict"] for p in (a, b))
    return ours.keys() == theirs.keys() and all(
        torch.equal(ours[name], theirs[name]) for name in ours
    )


# --- files -------------------------------------------------------


def test_what_is_written_is_read_also_by_torch_alone(sample):
    for loaded in (checkpoint.read(sample), torch.load(sample, weights_only=True)):
        assert loaded["epoch"] == 3
        assert torch.equal(loaded["state_dict"]["w"], torch.arange(300.0))


def test_no_damage_goes_unseen(sample):
    """A flipped bit anywhere, a cut anywhere, bytes too many."""
    whole = sample.read_bytes()
    draw = random.Random(0)
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        sample.write_bytes(damaged)
        with pytest.raises(UserError, match=r"last\.ckpt"):
            checkpoint.read(sample)
    for length in (0, 1, 70, 71, 72, len(whole) // 2, len(whole) - 1):
        sample.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"last\.ckpt"):
            checkpoint.read(sample)
    sample.write_bytes(whole + b"x")
    with pytest.raises(UserError, match=r"last\.ckpt"):
        checkpoint.read(sample)


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(2), {"state_dict": 3}])
def test_what_is_no_checkpoint_is_said(tmp_path, content):
    torch.save(content, tmp_path / "x.ckpt")
    with pytest.raises(UserError, match="not a checkpoint"):
        checkpoint.read(tmp_path / "x.ckpt")


def test_a_full_disk_leaves_the_one_that_was_there(sample, monkeypatch):
    def no_room(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    before = sample.read_bytes()
    monkeypatch.setattr("resnet_se.utils.files.os.fsync", no_room)
    with pytest.raises(OSError, match="No space"):
        checkpoint.write(sample, {"state_dict": {"w": torch.ones(3)}})
    assert sample.read_bytes() == before
    assert [p.name for p in sample.parent.iterdir()] == ["last.ckpt"]


def test_the_previous_one_is_kept(sample):
    before = sample.read_bytes()
    checkpoint.write(sample, {"state_dict": {}, "epoch": 4})
    assert (sample.parent / checkpoint.PREVIOUS).read_bytes() == before
    assert checkpoint.choose(sample.parent).checkpoint["epoch"] == 4


def test_a_damaged_last_falls_back_to_previous_then_to_best(sample):
    folder = sample.parent
    checkpoint.write(folder / checkpoint.BEST, {"state_dict": {}, "epoch": 1})
    checkpoint.write(sample, {"state_dict": {}, "epoch": 4})
    order = []
    for name in (checkpoint.LAST, checkpoint.PREVIOUS, checkpoint.BEST):
        choice = checkpoint.choose(folder)
        assert choice is not None
        order.append((choice.checkpoint["epoch"], len(choice.damage)))
        (folder / name).write_bytes(b"")
    assert order == [(4, 0), (3, 1), (1, 2)]
    with pytest.raises(UserError, match="no checkpoint of this run can be read") as e:
        checkpoint.choose(folder)
    assert "delete" not in str(e.value)


# --- in a run ----------------------------------------------------


@pytest.fixture
def interrupted(train, run_dirs, monkeypatch):
    """A run of four epochs whose best is the first, stopped as the fourth begins."""

    def stop_or_worsen(module: Classifier) -> None:
        if module.current_epoch == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "on_train_epoch_start", stop_or_worsen)
        patch.setattr(Classifier, "validation_step", worse_each_epoch)
        assert train(*EPOCHS) == 130
    monkeypatch.setattr(Classifier, "validation_step", worse_each_epoch)
    run_dir, result = only(run_dirs())
    assert result["status"] == "interrupted"
    return run_dir


VALIDATION_STEP = Classifier.validation_step


def worse_each_epoch(module: Classifier, batch, batch_idx: int) -> None:
    VALIDATION_STEP(module, batch, batch_idx)
    hits, loss = torch.tensor(0), torch.tensor(1.0 + module.current_epoch)
    module.val_batches[-1] = (loss, hits, len(batch[1]))


def test_last_is_of_the_last_epoch_though_the_best_was_the_first(interrupted):
    folder = interrupted / "checkpoints"
    assert checkpoint.read(folder / checkpoint.LAST)["epoch"] == 2
    assert checkpoint.read(folder / checkpoint.PREVIOUS)["epoch"] == 1
    assert checkpoint.read(folder / checkpoint.BEST)["epoch"] == 0


def test_no_epoch_is_trained_twice(interrupted, train, capsys):
    capsys.readouterr()
    assert train(*EPOCHS) == 0
    said = capsys.readouterr().out
    assert "epoch 4/4" in said
    assert "epoch 3/4" not in said


@pytest.mark.slow
def test_moved_damaged_or_untouched_it_becomes_the_same_run(
    interrupted, train, run_dirs, tmp_path, capsys
):
    """Copied away, moved back under another parent, its last checkpoint damaged."""
    for name, damage in (("moved", False), ("damaged", True)):
        copy = tmp_path / name / interrupted.parent.name / interrupted.name
        shutil.copytree(interrupted, copy)
        if damage:
            content = bytearray((copy / "checkpoints/last.ckpt").read_bytes())
            content[len(content) // 2] ^= 1
            (copy / "checkpoints/last.ckpt").write_bytes(content)
        assert train(*EPOCHS, f"runs_dir={tmp_path / name}") == 0
    assert "going on from previous.ckpt" in " ".join(capsys.readouterr().out.split())
    assert train(*EPOCHS) == 0
    for name in ("moved", "damaged"):
        copy = tmp_path / name / interrupted.parent.name / interrupted.name
        for file in ("last.ckpt", "best.ckpt"):
            ours = interrupted / "checkpoints" / file
            assert same_weights(ours, copy / "checkpoints" / file)
    best = checkpoint.read(interrupted / "checkpoints/best.ckpt")
    assert best["epoch"] == 0  # not overwritten by a worse epoch
    # The comparison would see a difference.
    ours = interrupted / "checkpoints"
    assert not same_weights(ours / "last.ckpt", ours / "best.ckpt")


def test_a_lost_best_is_an_error_and_no_silent_test_of_the_last(
    interrupted, train, run_dirs, capsys
):
    (interrupted / "checkpoints/best.ckpt").unlink()
    assert train(*EPOCHS) == 2
    assert "epoch 1 was the best" in capsys.readouterr().err
    assert only(run_dirs())[1]["status"] == "failed"


@pytest.mark.slow
def test_swapped_files_are_seen(interrupted, train, run_dirs, tmp_path, capsys):
    """Whole files all of them, and none where it belongs."""
    folder = interrupted / "checkpoints"
    (folder / "best.ckpt").rename(folder / "x")
    (folder / "last.ckpt").rename(folder / "best.ckpt")
    (folder / "x").rename(folder / "last.ckpt")
    shutil.copytree(interrupted, tmp_path / "aside")
    assert train(*EPOCHS) == 2
    assert "of epoch 3, though epoch 1 was the best" in capsys.readouterr().err

    shutil.rmtree(interrupted)
    shutil.copytree(tmp_path / "aside", interrupted)
    assert train(*EPOCHS, "seed=1", "runs_dir=other") == 0
    (other,) = tmp_path.glob("other/*/*/checkpoints/last.ckpt")
    shutil.copy(other, folder / "last.ckpt")
    capsys.readouterr()
    train(*EPOCHS)
    said = " ".join(capsys.readouterr().out.split())
    assert "a checkpoint of another run: seed1-" in said
    assert "going on from previous.ckpt" in said


def test_lightning_says_nothing_of_a_checkpoint(train, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(checkpoint_connector.log, "info", said.append)
    train("trainer.max_epochs=1")
    assert not [line for line in said if "weights_only" in line]


def test_every_so_many_steps_is_a_choice(train, run_dirs, monkeypatch):
    def stop(module: Classifier, batch, batch_idx: int) -> None:
        if batch_idx == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(Classifier, "on_train_batch_start", stop)
    assert train("+callbacks.checkpoint.every_n_steps=2", *EPOCHS) == 130
    run_dir, _ = only(run_dirs())
    assert checkpoint.read(run_dir / "checkpoints/last.ckpt")["global_step"] == 4


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        (torch.eye(3).to_sparse(), "sparse, quantised or without values"),
        (torch.zeros(3, device="meta"), "sparse, quantised or without values"),
        (torch.zeros(1).expand(1 << 40), "larger than the file"),
        (torch.zeros(1).expand(1 << 20, 1 << 20, 4), "larger than the file"),
    ],
)
@pytest.mark.parametrize("place", ["state_dict", "optimizer_states"])
def test_tensors_that_are_not_in_the_file_are_refused(tmp_path, tensor, said, place):
    weights = {"w": tensor if place == "state_dict" else torch.zeros(3)}
    states = [{"state": {0: [tensor]}}] if place == "optimizer_states" else []
    whole = {"state_dict": weights, "optimizer_states": states}
    checkpoint.write(tmp_path / "a.ckpt", whole)
    with pytest.raises(UserError, match=said):
        checkpoint.read(tmp_path / "a.ckpt")


def test_a_compressed_checkpoint_is_not_unpacked(tmp_path):
    plain, packed = tmp_path / "plain.pt", tmp_path / "packed.pt"
    torch.save({"state_dict": {"w": torch.zeros(1 << 16)}}, plain)
    assert checkpoint.read(plain)["state_dict"]["w"].shape == (1 << 16,)
    with (
        zipfile.ZipFile(plain) as old,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(UserError, match="got compressed ones"):
        checkpoint.read(packed)
