"""Right again tomorrow: a run is trained again and compared."""

from __future__ import annotations

import pytest
import torch

from resnet_se.commands.reproduce import differences, digits, weights_agree
from resnet_se.runs import checkpoint


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
