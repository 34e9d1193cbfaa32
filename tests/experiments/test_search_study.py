"""experiments/search: its table and sentences say what its record says."""

import json
import statistics
from pathlib import Path

from scipy import stats

FOLDER = Path(__file__).parents[2] / "experiments" / "search"


def test_the_table_is_that_of_the_record():
    record = json.loads((FOLDER / "small.json").read_text())
    text = " ".join((FOLDER / "README.md").read_text().split())
    pairs = {}
    for one in record["searches"]:
        pairs.setdefault(one["seed"], {})[one["pruner"]] = one
    gains = []
    for seed, pair in pairs.items():
        whole, halved = pair["null"], pair["halving"]
        cells = [seed, f"{100 * whole['best_value']:.2f}", whole["epochs"]]
        cells += [f"{100 * halved['best_value']:.2f}", halved["epochs"]]
        cells += [halved["pruned"], f"{halved['epochs'] / whole['epochs']:.0%}"]
        row = " | ".join(map(str, cells)).replace("%", " %")
        assert f"| {row} |" in text
        gains.append(100 * (halved["best_value"] - whole["best_value"]))
    share = record["summary"]["halving"]["share_of_epochs"]
    assert f"in {share:.0%} of its epochs".replace("%", " %") in text
    mean, deviation = statistics.mean(gains), statistics.stdev(gains)
    said = f"{mean:+.2f} ± {deviation:.2f} points".replace("-", "−")
    number = {2: "two", 3: "three"}[len(gains)]
    half = stats.t.ppf(0.975, len(gains) - 1) * deviation / len(gains) ** 0.5
    assert f"the interval of the mean of {number} is ± {half:.1f}" in text
    best = record["summary"]["halving"]["best_mean"]
    one = 100 * (best * (1 - best) / 2000) ** 0.5
    assert f"2,000 images tell {100 * best:.0f} % to {one:.1f} points" in text
    assert f"{said} from the unpruned search's" in text
    assert f"deviation of {number} differences" in text
    assert share <= 0.4
