"""Time to accuracy: by hand, against SciPy's Welch test, and on committed records."""

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from resnet_se.analysis.report.runs import Run
from resnet_se.analysis.time_to import Cost, compared, cost_until, ratio

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


def run(accuracies, seconds, seed=0, **history):
    steps = [10 * (i + 1) for i in range(len(seconds))]
    return Run(
        "", "x", seed, "", 2, "finished", [], {},
        model={"macs": 10**6}, data={"batch_size": 100}, hardware={"world_size": 2},
        history={"val/acc": accuracies, "seconds": seconds, "step": steps, **history},
    )  # fmt: skip


def test_the_time_is_interpolated_between_epochs():
    cost = cost_until(run([0.5, 0.7, 0.9], [10.0, 20.0, 40.0]), 0.75)
    # A quarter of the third epoch; 6 operations × 10⁶ × 200 images a step, 25/2 steps.
    assert cost == Cost(pytest.approx(25.0), pytest.approx(22.5 * 1.2e-6), True)
    assert cost_until(run([0.5, 0.7], [10.0, 20.0]), 0.4).seconds == 10.0


def test_the_first_time_counts_and_an_epoch_without_validation_does_not():
    dipped = run([0.5, None, 0.8, 0.6, 0.9], [10.0, 20.0, 30.0, 40.0, 50.0])
    assert cost_until(dipped, 0.8).seconds == pytest.approx(30.0)


def test_a_recorded_pflop_is_taken_and_an_epoch_of_small_images_costs_less():
    small = run([0.5, 0.7, 0.9], [1.0, 2.0, 3.0], pflop=[1.0, 2.0, 6.0])
    assert cost_until(small, 0.8).pflop == pytest.approx(4.0)


def test_a_run_that_never_had_it_is_censored_at_its_end():
    assert cost_until(run([0.5, 0.7], [10.0, 20.0]), 0.8)[::2] == (20.0, False)
    assert cost_until(run([], []), 0.8) is None


def test_the_ratio_is_welchs_on_logarithms():
    rng = np.random.default_rng(0)
    ours, others = np.exp(rng.normal(1, 0.1, 5)), np.exp(rng.normal(1.3, 0.3, 4))
    mean, interval, p = ratio([(ours, others)], 0.95)
    test = stats.ttest_ind(np.log(ours), np.log(others), equal_var=False)
    assert p == pytest.approx(test.pvalue)
    assert interval == pytest.approx(np.exp(test.confidence_interval(0.95)))
    assert interval[0] < mean < interval[1]
    twice = ratio([(ours, others)] * 2, 0.95)
    assert twice[0] == pytest.approx(mean)
    assert twice[2] < p


def comparison(ours, others):
    def group(ends):
        runs = [run([0.5, end], [10.0 + i, 20.0 + 2 * i]) for i, end in enumerate(ends)]
        return SimpleNamespace(runs=runs)

    return SimpleNamespace(pairs=[(group(ours), group(others))])


def test_censored_runs_are_compared_by_ranks():
    faster, slower = [0.9] * 4, [0.9, 0.7, 0.7, 0.7]
    text, p = compared(comparison(faster, slower), 0.8, 1)
    assert text == "–"
    assert re.fullmatch(r"0\.\d{3} \(log-rank\)", p)
    corrected = compared(comparison(faster, slower), 0.8, 3)[1]
    shown = [float(words.split()[0]) for words in (p, corrected)]
    assert shown[1] == pytest.approx(min(1, 3 * shown[0]), abs=0.002)
    assert compared(comparison([0.7] * 3, [0.6] * 3), 0.8, 1)[1] == "neither had it"
    assert "n = 1" in compared(comparison([0.9], [0.9, 0.9]), 0.8, 1)[1]


def test_a_report_has_table_comparison_and_figure(command, tmp_path, capsys):
    paths = [str(EXPERIMENTS / f"speedrun/h200/{n}") for n in ("vanilla", "se_lr83")]
    options = ("--factor", "model", "--time-to", "0.89", "--out", "r")
    assert command("report", *paths, *options) == 0
    text = (tmp_path / "r/REPORT.md").read_text()
    part = text[text.index("## Time to accuracy") :]
    assert "Times compared" in part
    assert len(re.findall(r"\d of [35] ", part)) == 2
    assert "validation accuracy, %" in (tmp_path / "r/figures/time-to.svg").read_text()
    with pytest.raises(SystemExit):
        raise SystemExit(command("report", *paths, "--time-to", "90"))
    assert "between 0 and 1 expected (0.9), got '90'" in capsys.readouterr().err
