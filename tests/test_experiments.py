"""What `experiments/` publishes: every number leads to a committed file."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from resnet_se.report import main

ROOT = Path(__file__).parent.parent
TITLE = "22 experiments, cpu budget"


def test_the_committed_report_is_what_the_committed_files_give(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    out = ["--out", str(tmp_path), "--name", TITLE]
    monkeypatch.setattr(sys, "argv", ["report", "experiments/cpu", *out])
    with pytest.raises(SystemExit, match="0"):
        main()
    made = (tmp_path / "REPORT.md").read_text()
    assert made == (ROOT / "experiments/report/REPORT.md").read_text()


def test_all_22_were_run_on_the_same_data_from_a_clean_commit():
    records = [json.loads(p.read_text()) for p in ROOT.glob("experiments/cpu/*.json")]
    assert len(records) == 22
    assert {r["status"] for r in records} == {"finished"}
    assert len({r["data"]["fingerprint"] for r in records}) == 1
    assert {r["git"]["dirty"] for r in records} == {False}
    assert len({r["git"]["commit"] for r in records}) == 1
