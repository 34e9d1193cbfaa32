"""experiments/robustness: its page says what its JSON says."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "experiments/robustness"
TEXT = (FOLDER / "README.md").read_text()
WORDS = " ".join(TEXT.split())
PAGE = runpy.run_path(str(FOLDER / "tables.py"))
RESULT = PAGE["RESULT"]


@pytest.mark.parametrize("table", PAGE["TABLES"], ids=lambda table: table.__name__)
def test_a_table_is_that_of_the_records(table):
    assert table(RESULT) in TEXT


def test_sentences_have_the_records_figures():
    r = RESULT
    cifair, people = r["cifair"], r["people"]
    said = [
        f"seed {r['run']['seed']}, `{r['run']['hardware']['precision']}`",
        f"{r['seconds'] / 60:.0f} minutes",
        f"mean corruption error is {r['corrupted']['mean_corruption_error']:.2%}",
        f"{cifair['found']} of the {cifair['listed']} pairs",
        f"{cifair['found_same_shot']} of the {cifair['same_shot']} of one shot",
        f"{len(cifair['unlisted'])} test images that the list has not",
        f"cross-entropy against people {people['cross_entropy']:.3f}, their entropy "
        f"{people['entropy']:.3f}",
        f"{r['likely_errors_of_cifar10']} of {r['looked_at']:,} images",
    ]
    for words in said:
        assert words in WORDS, words


def test_the_mean_is_that_of_its_cells():
    here = RESULT["corrupted"]
    cells = [f["acc"] for n in here["averaged"] for f in here["by"][n].values()]
    assert len(cells) == 75
    assert here["acc"] == pytest.approx(sum(cells) / 75, abs=1e-5)


def test_no_name_of_a_machine_s_folders_is_kept():
    assert not re.search(r"/(tmp|home|root|work)/", TEXT + str(RESULT))
