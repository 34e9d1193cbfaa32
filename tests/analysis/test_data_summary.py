"""A look at images and labels: duplicates, likely label errors, the command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from resnet_se.analysis.duplicates import find_pairs
from resnet_se.analysis.label_errors import held_out, likely_errors
from resnet_se.config.build import run_data
from resnet_se.utils.errors import UserError
from tests.conftest import Run, call


def photographs(n: int, side: int = 32) -> torch.Tensor:
    """Images with structure of all sizes, no two alike: uint8 (n, 3, side, side)."""
    generator = torch.Generator().manual_seed(0)
    layers = [
        F.interpolate(
            torch.randn(n, 3, s, s, generator=generator), (side, side), mode="bilinear"
        )
        for s in (2, 4, 8)
    ]
    x = torch.stack(layers).sum(0)
    return ((x - x.min()) / (x.max() - x.min()) * 255).to(torch.uint8)


IMAGES = photographs(40)


def pairs_with(image: torch.Tensor) -> list[tuple[int, int, bool]]:
    images = torch.cat([IMAGES, image.clamp(0, 255).to(torch.uint8)[None]])
    return [(p.first, p.second, p.exact) for p in find_pairs(images)]


def test_different_images_are_no_pair():
    assert find_pairs(IMAGES) == []


def test_the_same_pixels_are_exact():
    assert pairs_with(IMAGES[7]) == [(7, 40, True)]


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.flip(-1),
        lambda x: 0.6 * x + 80,  # paler
        lambda x: F.pad(x[:, 3:-3, 3:-3], (3, 3, 3, 3), value=255),  # framed
        lambda x: x[[2, 1, 0]],  # another hue
        lambda x: x + 12 * torch.randn(x.shape, generator=torch.manual_seed(1)),
    ],
)
def test_a_changed_copy_is_a_near_match(change):
    assert pairs_with(change(IMAGES[7].float())) == [(7, 40, False)]


def test_three_of_a_kind_are_three_pairs_and_clear_skies_none():
    sky = torch.full((3, 3, 32, 32), 200, dtype=torch.uint8)
    sky[1], sky[2] = 90, 91
    same = IMAGES[[3, 3, 3]]
    found = find_pairs(torch.cat([IMAGES[:5], sky, same]))
    assert {(p.first, p.second) for p in found if p.exact} == {
        (3, 8), (3, 9), (3, 10), (8, 9), (8, 10), (9, 10),
    }  # fmt: skip
    assert len(found) == 6


def test_images_of_one_colour_are_exact_duplicates_all_the_same():
    black = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    [pair] = find_pairs(torch.cat([IMAGES, black]))
    assert (pair.first, pair.second, pair.exact) == (40, 41, True)


def test_blocks_change_nothing(monkeypatch):
    images = torch.cat([IMAGES, IMAGES.flip(-1)])
    whole = find_pairs(images)
    monkeypatch.setattr("resnet_se.analysis.duplicates.ROWS", 7)
    assert len(whole) == 40
    assert {p[:2] for p in find_pairs(images)} == {p[:2] for p in whole}


def test_confident_learning_finds_the_labels_that_were_changed():
    pytest.importorskip("cleanlab")
    generator = torch.Generator().manual_seed(0)
    true = torch.arange(300) % 3
    logits = 6 * F.one_hot(true, 3) + 0.1 * torch.randn(300, 3, generator=generator)
    labels = true.clone()
    wrong = [3, 76, 140, 222]  # one or more given as each class
    labels[wrong] = (labels[wrong] + 1) % 3
    assert sorted(likely_errors(labels, logits.softmax(1))) == wrong


@pytest.mark.slow
def test_held_out_images_are_those_that_a_run_did_not_train_on(finished: Run):
    data = run_data(finished.folder)
    parts = (data.train_part, data.val_part, data.test_part)
    images, labels = (torch.cat([p[i] for p in parts]) for i in (0, 1))
    indices, p = held_out([finished.folder] * 2, images, labels)
    cut = len(data.train_part[0])
    assert indices.tolist() == list(range(cut, len(images)))
    with np.load(finished.folder / "predictions.npz") as saved:
        logits = np.concatenate([saved["val_logits"], saved["logits"]])
    wanted = torch.from_numpy(logits).double().softmax(1)
    assert torch.allclose(p, wanted, atol=1e-6)
    with pytest.raises(UserError, match="tested on other images"):
        held_out([finished.folder], images[:50], labels[:50])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Class folders whose name is awkward; one picture lies in both classes."""
    root = tmp_path / "it's mine"
    for i, image in enumerate(photographs(24, 20)):
        path = root / ("ant", "bee")[i % 2] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    (root / "bee/99.png").write_bytes((root / "ant/00.png").read_bytes())
    return root


def test_one_s_own_folder_is_looked_at_by_its_path(tmp_path, folder, capsys):
    assert call(tmp_path, "data", folder.name) == 0
    summary = json.loads((tmp_path / "data_summary/summary.json").read_text())
    parts = summary["parts"]
    counts = [
        sum(part["by_class"][name] for part in parts.values())
        for name in ("ant", "bee")
    ]
    assert counts == [12, 13]
    assert summary["size"] == [20, 20]
    found = summary["duplicates"]["counts"].values()
    assert sum(c["exact"] for c in found) == sum(c["other_label"] for c in found) == 1
    assert "near" in capsys.readouterr().out
    pictures = {p.name for p in (tmp_path / "data_summary").glob("*.png")}
    assert pictures == {"classes.png", "duplicates.png"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["data=cifar11"], "data=cifar11: no such choice; did you mean"),
        (["nowhere"], "nowhere"),
        (["data=synthetic", "near=2"], "near: expected"),
        (["data=synthetic", "data.source.num_test=0"], "data.source.num_test: "),
        (["data=synthetic", "run=nowhere"], "run: no predictions in"),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path, capsys, options, message):
    assert call(tmp_path, "data", *options) in (1, 2)
    error = capsys.readouterr().err
    assert message in error
    assert error.strip().count("\n") <= 1
    assert not (tmp_path / "data_summary").exists()


def test_a_validation_part_of_its_own_is_looked_at_too(tmp_path, folder):
    """As `train/ valid/ test/` have it."""
    root = tmp_path / "three"
    for part in ("train", "valid", "test"):
        shutil.copytree(folder, root / part)
    assert call(tmp_path, "data", "three") == 0
    summary = json.loads((tmp_path / "data_summary/summary.json").read_text())
    assert [part["images"] for part in summary["parts"].values()] == [25] * 3
    counts = summary["duplicates"]["counts"]
    # 23 pictures lie once in each part; one lies twice, with both labels.
    assert counts["within val"] == {"exact": 1, "near": 0, "other_label": 1}
    for between in ("train and val", "train and test", "val and test"):
        assert counts[between] == {"exact": 27, "near": 0, "other_label": 2}
    assert summary["duplicates"]["test_images_in_train"] == list(range(25))
