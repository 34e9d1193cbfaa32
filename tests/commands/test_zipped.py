"""Zipped sweeps: rows instead of combinations, in the plan as in the sweep."""

from __future__ import annotations

from itertools import product

import pytest

from resnet_se.commands.plan import jobs_of
from resnet_se.utils.errors import UserError
from tests.commands.test_multirun import outcomes
from tests.conftest import TINY

ZIP = "zip(model=se_resnet20,vanilla_resnet20; optimizer.lr=0.1,0.2)"
ROWS = (
    ["model=se_resnet20", "optimizer.lr=0.1"],
    ["model=vanilla_resnet20", "optimizer.lr=0.2"],
)


@pytest.mark.parametrize(
    ("typed", "jobs"),
    [
        ([ZIP], [*ROWS]),
        (["seed=1,2", ZIP], [[f"seed={s}", *row] for s, row in product((1, 2), ROWS)]),
        (
            [ZIP, "+a=range(2)", "tta=none"],
            [[*row, f"+a={a}", "tta=none"] for row, a in product(ROWS, (0, 1))],
        ),
        (
            [ZIP, "zip(seed=1,2;tags=[a],['b;c','d)'])"],
            [
                [*row, *other]
                for row, other in product(
                    ROWS, (["seed=1", "tags=[a]"], ["seed=2", "tags=['b;c','d)']"])
                )
            ],
        ),
        (["seed=1,2", "seed=3", "~tta"], [["seed=3", "~tta"]]),  # the last one counts
    ],
)
@pytest.mark.usefixtures("hydra")
def test_a_zip_is_its_rows_and_combines_with_the_rest(typed, jobs):
    assert jobs_of(typed) == jobs


@pytest.fixture
def hydra():
    from hydra import initialize_config_dir

    from resnet_se.config import CONF

    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["zip(seed=1,2,3; tta=none,flip)"], "but seed has 3, tta has 2"),
        (["zip(seed=1,2)"], "expected 'zip"),
        (["zip(seed=1,2; tta=none,flip"], "expected 'zip"),
        (["zip(seed=1,2; tta)"], "expected 'zip"),
        (["zip(seed=1,2; seed=3,4)"], "seed is in it 2 times"),
        (["zip(a=1,2; b=3,4)", "zip(b=1,2; c=3,4)"], "b is in it 2 times"),
        (["seed=interval(0,1)"], "a sweep takes a list"),
    ],
)
@pytest.mark.usefixtures("hydra")
def test_a_mistake_in_a_zip_is_one_sentence(typed, message):
    with pytest.raises(UserError, match=message):
        jobs_of(typed)


def test_a_sweep_runs_the_rows_of_a_zip(train, tmp_path, capsys):
    """Seeds that are refused: each job leaves an outcome without a training."""
    zipped = "zip(seed=-1,-2; optimizer.lr=0.1,0.2)"
    assert train("-m", zipped) == 1
    jobs = [record["overrides"][-2:] for record in outcomes(tmp_path)]
    assert jobs == [[f"seed=-{n}", f"optimizer.lr=0.{n}"] for n in (1, 2)]
    assert "seed=-2 lr=0.2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["-m", "zip(seed=1,2,3; tta=none,flip)"], "seed has 3, tta has 2"),
        (["zip(seed=1,2; tta=none,flip)"], "seed=1,2"),
        (["-m", "zip(sed=1,2; tta=none,flip)"], "did you mean 'seed'"),
        (["zip(seed=1,2; tta=none,flip)", "hparams_search=optuna"], "zip: a search"),
    ],
)
def test_a_sweep_with_a_mistaken_zip_starts_nothing(train, capsys, typed, message):
    assert train(*typed) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_the_plan_counts_the_rows_of_a_zip(command, capsys):
    zipped = "zip(seed=1,2; model.reduction=4,99)"
    assert command("plan", *TINY, zipped) == 2
    printed = capsys.readouterr()
    assert "2 jobs" in printed.out
    assert "model.reduction: expected 1..8" in printed.err


@pytest.mark.slow
def test_a_zip_under_joblib_is_resumable(train, tmp_path, run_dirs):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="extra joblib")
    zipped = "zip(seed=1,2; optimizer.lr=0.1,0.2)"
    sweep = ("-m", zipped, "launcher=joblib", "trainer.max_epochs=1")
    assert train(*sweep) == 0
    rates = {r["seed"]: r["setting"]["optimizer.lr"] for r in run_dirs().values()}
    assert rates == {1: 0.1, 2: 0.2}
    assert train(*sweep) == 0
    assert [o["kind"] for o in outcomes(tmp_path)] == ["skipped"] * 2
