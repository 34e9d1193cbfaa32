"""Laws of the record of a run: whole or not at all, plain JSON, honest git; plots."""

import json
import os
import subprocess
from contextlib import suppress

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.functional.classification import multiclass_confusion_matrix

from resnet_se import plots
from resnet_se.errors import UserError, nearest
from resnet_se.record import (
    SCHEMA,
    STATUSES,
    Busy,
    atomic_file,
    environment,
    exclusive,
    git_state,
    hardware,
    pack_labels,
    peak_memory_mb,
    read_result,
    reset_peak_memory,
    unpack_labels,
    write_result,
)


def record(**fields):
    return {"schema": SCHEMA, "status": "finished", **fields}


# --- files -------------------------------------------------------


def test_file_appears_only_when_it_is_whole(tmp_path):
    path = tmp_path / "deep" / "file"
    with atomic_file(path) as file:
        file.write(b"new")
        file.flush()
        assert not path.exists()
    assert path.read_bytes() == b"new"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failed_write_leaves_the_old_content_alone(tmp_path, error):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with suppress(error), atomic_file(path) as file:
        file.write(b"half")
        raise error
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


# --- result.json -------------------------------------------------


def test_result_comes_back_as_written(tmp_path):
    assert read_result(tmp_path) is None
    result = record(seed=0, tags=["a", "ü"], test={"acc": 0.5, "acc_tta": None})
    write_result(tmp_path, result)
    assert read_result(tmp_path) == result
    write_result(tmp_path, result | {"status": "failed"})
    assert read_result(tmp_path)["status"] == "failed"


def test_what_json_lacks_becomes_null(tmp_path):
    nan, inf = float("nan"), float("inf")
    fields = {"a": nan, "b": [1.5, -inf], "c": {"d": (np.float64(inf), 2)}}
    write_result(tmp_path, record(**fields))

    def refuse(constant):  # the package's own reader would take NaN
        raise AssertionError(constant)

    text = (tmp_path / "result.json").read_text()
    found = json.loads(text, parse_constant=refuse)
    assert found == record(a=None, b=[1.5, None], c={"d": [None, 2]})


@pytest.mark.parametrize(
    "text",
    [
        '{"schema": 1, "status": "fini',
        "",
        "[]",
        "null",
        '{"schema": 1}',
        '{"status": "finished"}',
        json.dumps({"schema": SCHEMA + 1, "status": "finished"}),
        json.dumps({"schema": SCHEMA, "status": "done"}),
        "\xff",
    ],
)
def test_damaged_result_is_named(tmp_path, text):
    path = tmp_path / "result.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError) as caught:
        read_result(tmp_path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("status", STATUSES)
def test_every_status_can_be_read(tmp_path, status):
    write_result(tmp_path, record(status=status))
    assert read_result(tmp_path)["status"] == status


@pytest.mark.parametrize("n", [0, 1, 1000])
def test_labels_survive_packing(n):
    labels = torch.arange(n) * 65_535 // max(n - 1, 1)
    found = unpack_labels(pack_labels(labels))
    assert found.dtype == np.int64
    assert found.tolist() == labels.tolist()
    assert pack_labels(labels).isascii()


def test_one_process_at_a_time_in_a_run_directory(tmp_path):
    run_dir = tmp_path / "experiment/seed0"
    with exclusive(run_dir):
        with pytest.raises(Busy, match=str(run_dir)), exclusive(run_dir):
            pass
        with exclusive(tmp_path / "experiment/seed1"):
            pass
    with suppress(KeyError), exclusive(run_dir):
        raise KeyError  # frees it as well
    with exclusive(run_dir):
        pass


# --- where it ran ------------------------------------------------


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """Makes `tmp_path` a repository with a package in it; returns git's command."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)  # a hook's would lead to the repository around us
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "a")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "a@b.c")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))

    def git(*command):
        call = ["git", "-C", str(tmp_path), *command]
        return subprocess.run(call, check=True, capture_output=True, text=True).stdout

    (tmp_path / "package").mkdir()
    (tmp_path / "package/__init__.py").touch()
    git("init", "-q")
    return git


def test_git_state_is_the_commit_and_its_changes(tmp_path, repository):
    package = tmp_path / "package"
    repository("add", ".")
    repository("-c", "commit.gpgsign=false", "commit", "-qm", "first")
    commit = repository("rev-parse", "HEAD").strip()
    assert git_state(package) == {"commit": commit, "dirty": False}
    (package / "__init__.py").write_text("changed = True\n")
    assert git_state(package) == {"commit": commit, "dirty": True}


def test_a_repository_that_does_not_track_the_package_is_not_its_own(
    tmp_path, repository
):
    assert git_state(tmp_path / "package") is None


def test_no_git_state_outside_a_repository(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    (tmp_path / "__init__.py").touch()
    assert git_state(tmp_path) is None
    monkeypatch.setenv("PATH", "")  # no git at all
    assert git_state(tmp_path) is None


def test_environment_and_hardware_can_be_written(tmp_path):
    found = record(**environment(), hardware=hardware(torch.device("cpu"), "32-true"))
    write_result(tmp_path, found)
    assert read_result(tmp_path) == found
    assert found["versions"]["torch"] == torch.__version__.split("+")[0]
    assert found["hardware"]["cores"] >= 1


def test_peak_memory_is_in_megabytes():
    before = peak_memory_mb(torch.device("cpu"))
    block = np.ones(300_000_000 // 8)  # 300 MB, of which a little was free before
    grown = peak_memory_mb(torch.device("cpu")) - before
    assert block.sum() == 37_500_000
    assert before > 50
    assert 0 <= grown < 400


def test_nearest_name_else_all():
    assert nearest("cosin", ["cosine", "constant"]) == "did you mean 'cosine'?"
    assert nearest("xyz", ["b", "a"]) == "valid choices: a, b"
    assert nearest("xyz", []) == "valid choices: (none)"


# --- plots -------------------------------------------------------


def numbers(figure):
    return [int(text.get_text()) for text in figure.axes[0].texts]


def test_confusion_shows_torchmetrics_matrix_in_per_cent_of_the_row():
    torch.manual_seed(0)
    labels, predicted = torch.randint(4, (2, 200))
    labels[labels == 2] = 0  # a class that the test set lacks
    figure = plots.confusion(labels, predicted, "abcd")
    counts = multiclass_confusion_matrix(predicted, labels, 4)
    expected = 100 * counts / counts.sum(1, keepdim=True).clamp_min(1)
    assert numbers(figure) == expected.round().int().flatten().tolist()
    plt.close(figure)


def test_mistakes_are_the_surest_wrong_ones_in_order():
    logits = torch.tensor([[9.0, 0], [2, 0], [0, 1], [5, 0]])
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    figure = plots.mistakes(images, torch.tensor([0, 1, 0, 1]), logits, ["cat", "dog"])
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    assert titles == ["cat (0.99)\ndog", "cat (0.88)\ndog", "dog (0.73)\ncat"]
    plt.close(figure)


def test_plots_are_written_whatever_the_classes_are_called(tmp_path):
    history = [{"epoch": 0, "train/loss": 2.0, "train/lr": 0.1, "val/acc": 0.5}]
    before = plt.get_fignums()
    plots.save_run_plots(
        tmp_path,
        history=history,
        images=torch.zeros(4, 3, 8, 8, dtype=torch.uint8),
        labels=torch.tensor([0, 1, 1]),  # only the first batches were tested
        logits=torch.eye(2)[[1, 1, 0]],
        classes=["$^$", "_ #%"],  # no formula
    )
    for name in ("curves", "confusion", "mistakes"):
        with Image.open(tmp_path / f"{name}.png") as image:
            assert image.convert("L").getextrema() != (255, 255)
    assert plt.get_fignums() == before  # nothing is left open


def test_confusion_of_many_classes_fits_into_memory():
    labels = torch.arange(500)
    figure = plots.confusion(labels, labels.flip(0), [f"class {i}" for i in labels])
    assert max(figure.get_size_inches()) <= 50  # 6000 pixels, 150 MB to draw on
    plt.close(figure)


def test_peak_memory_can_be_counted_afresh():
    cpu = torch.device("cpu")
    block = torch.ones(60_000_000)  # 240 MB
    high = peak_memory_mb(cpu)
    del block
    reset_peak_memory(cpu)
    assert peak_memory_mb(cpu) < high - 200
