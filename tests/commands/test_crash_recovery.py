"""Faults of the machine and of hands: each ends in a sentence, and nothing is lost.

The others' tests stand beside what they are about; experiments/reliability/README.md
lists them all.
"""

from __future__ import annotations

import errno
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from resnet_se.config.recipe import load_recipe
from resnet_se.data.datamodule import ImageDataModule
from resnet_se.runs import checkpoint
from resnet_se.runs.record import read_record
from resnet_se.training.module import Classifier
from resnet_se.utils import distributed
from resnet_se.utils.errors import UserError
from resnet_se.utils.files import exclusive
from tests.conftest import TINY, Run, call, records
from tests.records import record, write


def only(found: dict) -> tuple[Path, dict]:
    assert len(found) == 1
    return next(iter(found.items()))


@contextmanager
def alarm(seconds: int) -> Iterator[None]:
    """What waits longer is a hang."""

    def hang(*_: object) -> None:
        raise TimeoutError("hangs")

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def sentence(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err
    assert "Traceback" not in error
    (line,) = re.findall("^error: (.*)", error, re.MULTILINE)
    return line


def slow(value):
    return pytest.param(value, marks=pytest.mark.slow)


# --- disks -------------------------------------------------------


BIG = (40_000, 60_000)  # bytes: the first checkpoint, the second


@contextmanager
def longest_file(size: int):
    """No file may be longer, as on a disk almost full: EFBIG in place of ENOSPC."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.slow
@pytest.mark.parametrize("size", [0, slow(100), slow(2_000), 8_000, *map(slow, BIG)])
def test_a_full_disk_of_six_sizes(train, run_dirs, capsys, size):
    """Room for nothing, a record, a configuration, …: then the same command again."""
    with longest_file(size):
        assert train("trainer.max_epochs=1") != 0
    assert "same command goes on once" in sentence(capsys)
    folders = [path for path in Path("runs").rglob("*") if path.name.startswith(".l")]
    for path in Path("runs").rglob(".*"):
        assert path in folders  # nothing half-written stays
    assert train("trainer.max_epochs=1") == 0
    assert only(run_dirs())[1]["status"] == "finished"


def test_a_full_tmpdir_does_not_matter(train, run_dirs, monkeypatch, tmp_path):
    """Nothing is written there and then copied."""
    monkeypatch.setenv("TMPDIR", str(tmp_path / "not there"))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("tempfile.gettempdir", lambda: 1 / 0)
    assert train("trainer.max_epochs=1") == 0
    assert only(run_dirs())[1]["status"] == "finished"


def refuse(call: Callable, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Every new file below `folder` fails as on a disk that is mounted to be read."""

    def guarded(*arguments, dir=None, **options):
        if dir is not None and folder in Path(dir).resolve().parents:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(dir))
        return call(*arguments, dir=dir, **options)

    monkeypatch.setattr("resnet_se.utils.files.tempfile.mkstemp", guarded)


@pytest.mark.slow
def test_a_disk_that_becomes_read_only(train, run_dirs, monkeypatch, capsys, tmp_path):
    import tempfile

    begin = Classifier.on_train_epoch_start
    with monkeypatch.context() as patch:

        def at_the_second(module):
            if module.current_epoch == 1:
                refuse(tempfile.mkstemp, patch, tmp_path)
            begin(module)

        patch.setattr(Classifier, "on_train_epoch_start", at_the_second)
        assert train() == 1
    assert "Read-only file system" in sentence(capsys)
    assert train() == 0
    assert "resuming from" in capsys.readouterr().out
    assert only(run_dirs())[1]["status"] == "finished"


@pytest.mark.parametrize("name", ["error.txt", slow("metrics.csv"), "checkpoints"])
def test_something_else_by_the_name_of_a_file(train, run_dirs, capsys, name):
    """A folder where a file belongs, a file where the folder belongs."""
    assert train("trainer.max_epochs=1") == 0
    run_dir, _ = only(run_dirs())
    (run_dir / "result.json").unlink()
    path = run_dir / name
    if name == "checkpoints":
        shutil.rmtree(path)
        path.touch()
    else:
        path.unlink(missing_ok=True)
        path.mkdir()
    capsys.readouterr()
    if train("trainer.max_epochs=1"):
        assert name in sentence(capsys)
    else:
        assert name == "metrics.csv"  # finished before, there was nothing to write


@pytest.mark.parametrize(
    "name", ["config.yaml", "result.json", "checkpoints/best.ckpt"]
)
def test_a_pipe_in_a_run_is_not_waited_for(finished: Run, tmp_path, name):
    run = Path(shutil.copytree(finished.folder, tmp_path / "run"))
    (run / name).unlink()
    os.mkfifo(run / name)
    writer = os.open(run / name, os.O_RDWR)  # else an open alone would wait
    os.write(writer, b"{}")
    read = {
        "config.yaml": lambda: load_recipe(run),
        "result.json": lambda: read_record(run / name),
        "checkpoints/best.ckpt": lambda: checkpoint.read(run / name),
    }[name]
    with alarm(5), pytest.raises(UserError, match="expected a regular file"):
        read()
    os.close(writer)


@pytest.mark.parametrize("target", ["nowhere", slow("config.yaml"), "checkpoints"])
@pytest.mark.parametrize("command", ["train", "evaluate", slow("report"), "bundle"])
def test_links_into_nothing_and_in_circles(
    finished: Run, tmp_path, capsys, command, target
):
    """In a run directory, in place of the configuration and the checkpoints."""
    run = tmp_path / "runs" / finished.folder.parent.name / finished.folder.name
    shutil.copytree(finished.folder, run)
    (run / "config.yaml").unlink()
    (run / "config.yaml").symlink_to(run / target)
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").symlink_to(run / target)
    (run / "result.json").unlink()
    (run / "result.json").symlink_to(run / "result.json")
    (run / "below").symlink_to(run.parent)
    arguments = {
        "train": TINY,
        "evaluate": (f"run={run}",),
        "report": (str(tmp_path / "runs"), "--out", str(tmp_path / "report")),
        "bundle": (f"run={run}",),
    }[command]
    assert call(tmp_path, command, *arguments) != 0
    sentence(capsys)


OUT = {
    "predict": ("run=RUN", "inputs=RUN/plots", "out=/proc/x.csv"),
    "export": ("run=RUN", "format=safetensors", "out=/proc/x/y.safetensors"),
    "bundle": ("run=RUN", "out=/proc/x/y"),
    "evaluate": ("run=RUN", "out=/proc/x/y.json"),
    "report": ("RECORDS", "--out", "/proc/x"),
    "benchmark": ("model=se_resnet20", "data=synthetic", "trainer=cpu", "batch_size=8",
                  "out=/proc/x/y.json"),
}  # fmt: skip


@pytest.mark.parametrize("command", [slow(n) if n == "benchmark" else n for n in OUT])
def test_an_out_that_cannot_be_written(finished: Run, tmp_path, capsys, command):
    write(tmp_path / "records", record("e14_final"))
    given = {"RUN": str(finished.folder), "RECORDS": str(tmp_path / "records")}
    arguments = [re.sub("RUN|RECORDS", lambda m: given[m[0]], a) for a in OUT[command]]
    assert call(tmp_path, command, *arguments) != 0
    assert "/proc/x" in sentence(capsys)


# --- data --------------------------------------------------------


@pytest.mark.slow
def test_data_that_are_gone_on_resuming(train, monkeypatch, tmp_path, capsys, run_dirs):
    from PIL import Image

    for name in ("train/a", "train/b", "test/a", "test/b"):
        for i in range(6):
            path = tmp_path / "tree" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32), (i * 40, 0, 0)).save(path)
    monkeypatch.setenv("RESNET_SE_CACHE", str(tmp_path / "own cache"))
    mine = ["data=image_folder", "data.source.root=tree", "data.batch_size=4"]
    tiny = [o for o in TINY if not o.startswith("data")]

    def stop(module: Classifier) -> None:
        if module.current_epoch == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "on_train_epoch_start", stop)
        assert call(tmp_path, "train", *tiny, *mine) == 130
    (tmp_path / "tree").rename(tmp_path / "elsewhere")
    assert call(tmp_path, "train", *tiny, *mine) == 2
    assert "data.source.root" in sentence(capsys)
    (tmp_path / "elsewhere").rename(tmp_path / "tree")
    assert call(tmp_path, "train", *tiny, *mine) == 0
    assert only(run_dirs())[1]["history"]["epoch"] == [0, 1]


# --- processes ---------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("owner", "name"),
    [(ImageDataModule, "setup"), (Classifier, "configure_optimizers")],
)
def test_sigterm_while_a_run_starts_is_recorded(
    train, run_dirs, monkeypatch, owner, name
):
    before = getattr(owner, name)

    def terminated(self, *arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        return before(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, terminated)
        assert train("trainer.max_epochs=1") == 130
    assert only(run_dirs())[1]["status"] == "interrupted"
    assert train("trainer.max_epochs=1") == 0


@pytest.mark.slow
def test_impatience_prints_no_traceback(tmp_path):
    """Ctrl-C, and again, and again."""
    line = [sys.executable, "-m", "resnet_se.train", *TINY, "trainer.max_epochs=400"]
    process = subprocess.Popen(line, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob("runs/*/*/metrics.csv")):
        time.sleep(0.05)
        assert process.poll() is None
    while process.poll() is None:
        process.send_signal(signal.SIGINT)
        time.sleep(0.03)
    said = process.communicate()[1]
    assert "Traceback" not in said
    assert "the same command goes on from here" in said
    assert process.returncode == 130
    assert only(records(tmp_path))[1]["status"] == "interrupted"


def test_a_rank_of_another_run_than_was_launched_says_so(monkeypatch):
    """A module of one's own was edited between the launch and the start."""
    monkeypatch.setenv(distributed.RUN_ENV, "seed0-11111111")
    distributed.check_same_run("seed0-22222222")  # no rank
    monkeypatch.setenv(distributed.LAUNCHER_PID_ENV, "1")
    distributed.check_same_run("seed0-11111111")
    with pytest.raises(UserError, match="changed in between; start it again"):
        distributed.check_same_run("seed0-22222222")


def test_two_starts_at_once(train, run_dirs, capsys, monkeypatch):
    """The second leaves the run to the first, whatever it has got to."""
    assert train("trainer.max_epochs=1") == 0
    run_dir, _ = only(run_dirs())
    capsys.readouterr()
    with exclusive(run_dir):
        assert train("trainer.max_epochs=1") == 2
    assert "another process is training this run" in sentence(capsys)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a pipe
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*create 2 worker processes")
def test_a_killed_loader_worker_is_an_error_and_the_run_goes_on(
    train, run_dirs, monkeypatch, capsys
):
    options = ("data.engine=torchvision", "data.num_workers=1")
    begin = Classifier.on_train_batch_start

    def kill(module, batch, index):
        if (module.current_epoch, index) == (1, 2):
            children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
            for child in children.read_text().split():
                os.kill(int(child), signal.SIGKILL)
        begin(module, batch, index)

    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "on_train_batch_start", kill)
        assert train(*options) in (1, 2)
    assert only(run_dirs())[1]["status"] == "failed"
    assert train(*options) == 0
    assert only(run_dirs())[1]["status"] == "finished"


# --- memory, clocks ----------------------------------------------


def test_out_of_memory_names_the_batch_that_fits(train, run_dirs, monkeypatch, capsys):
    from resnet_se.models.resnet import ResNet

    forward = ResNet.forward

    def scarce(net, x):
        if len(x) > 8 and x.device.type != "meta":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return forward(net, x)

    with monkeypatch.context() as patch:
        patch.setattr(ResNet, "forward", scarce)
        assert train("trainer.max_epochs=1") == 2
    said = sentence(capsys)
    assert "32 images do not fit into the memory of cpu" in said
    assert "data.batch_size=8 does" in said
    assert only(run_dirs())[1]["status"] == "failed"


@pytest.mark.slow
def test_a_clock_set_back_changes_nothing(train, run_dirs, monkeypatch):
    """Choices are by epoch and score, never by a file's time."""

    def stop(module: Classifier) -> None:
        if module.current_epoch == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "on_train_epoch_start", stop)
        assert train("trainer.max_epochs=3") == 130
    run_dir, _ = only(run_dirs())
    os.utime(run_dir / "checkpoints/last.ckpt", (0, 0))  # older than all others
    monkeypatch.setattr(time, "time", lambda: 1e8)  # 1973
    assert train("trainer.max_epochs=3") == 0
    _, result = only(run_dirs())
    assert result["history"]["epoch"] == [0, 1, 2]
    assert result["train"]["seconds"] > 0
    assert checkpoint.read(run_dir / "checkpoints/last.ckpt")["epoch"] == 2
