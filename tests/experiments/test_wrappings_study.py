"""The page on the wrappings of CIFAR-10 holds what its JSON does."""

import json
import runpy
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "experiments/data"
ROWS = json.loads((FOLDER / "wrappings.json").read_text())


def test_the_page_has_the_table_of_the_record():
    table = runpy.run_path(str(FOLDER / "wrappings.py"))["table"]
    assert table(ROWS) in (FOLDER / "README.md").read_text()


def test_the_record_holds_the_laws():
    """One split and key by order, and memory near that of the Python batches."""
    cifar = {n: row for n, row in ROWS.items() if row["typed"] == "data=cifar10"}
    orders = {row["split"]: row["order"] for row in cifar.values()}
    for name, row in cifar.items():
        if row["order"] == "files":
            assert row["key"] == ROWS["archive"]["key"], name
            assert row["split"] == ROWS["archive"]["split"], name
    mixed = [cifar[name] for name in ("binary mixed", "fastai")]
    assert len({(row["key"], row["split"]) for row in mixed}) == 1
    assert set(orders.values()) >= {"files", "content"}
    for name in ("parquet", "csv"):
        assert ROWS[name]["peak_mb"] <= 1.3 * ROWS["python"]["peak_mb"], name
