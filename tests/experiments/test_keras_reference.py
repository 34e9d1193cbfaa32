"""Figures of Keras in docs and conf are those of experiments/keras/reference.json."""

import json
import statistics
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.optim import SGD

from resnet_se.config import CONF
from resnet_se.training.schedules import Schedule, multistep
from tests.keras_reference import KERAS, TF_KERAS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/pages/keras.md").read_text()


def row_of(name: str) -> str:
    """The line of the page's table about a row of the JSON."""
    return next(line for line in PAGE.splitlines() if line.startswith(f"| `{name}`"))


def test_versions():
    assert f"keras {KERAS['versions']['keras']} on {KERAS['backend']}" in PAGE
    assert f"tf_keras {TF_KERAS['versions']['tf_keras']}" in PAGE


def test_every_row_is_on_the_page():
    rows = set(KERAS) - {"versions", "backend"}
    assert {name for name in rows if f"`{name}`" not in PAGE} == set()


def test_fill():
    row = KERAS["fill_of_real_images"]
    share, black = f"{100 * row['filled_share']:.1f} %", f"{row['constant_mean']:.1f}"
    plain, nearest = f"{row['plain_mean']:.1f}", f"{row['nearest_mean']:.1f}"
    for text in (share, black, plain, f"{plain} → {nearest}", f"{plain} → {black}"):
        assert text in row_of("fill_of_real_images")
    preset = (CONF / "augment" / "paper.yaml").read_text()
    assert share in preset
    assert f"{plain} to {black}" in preset.replace("\n#   ", " ")


def test_penalty_and_counts():
    row = KERAS["networks"]["se_resnet80"]
    for key in ("penalty", "penalty_of_convolutions"):
        assert f"{row[key]:.3f}" in row_of("l2")
    counts = f"{row['trainable']:,} + {row['non_trainable']:,}"
    assert counts in row_of("early_stopping")


def test_steps():
    steps = KERAS["steps_per_epoch"]["steps"]
    assert f"kept: {steps} of" in row_of("steps_per_epoch")
    loaders = (CONF / "data_module.yaml").read_text()
    assert f"{steps} steps for {steps - 1}" in loaders


def test_the_variance_without_an_option():
    n = 128 * 8 * 8
    assert f"{n / (n - 1):.5f} at most" in PAGE


def test_adam():
    [small, _] = KERAS["adam"]["rows"]
    assert f"{-small['weights'][0] / KERAS['adam']['rate']:.3f} of" in row_of("adam")


def test_rates():
    row = KERAS["schedule_and_plateau"]
    optimizer = SGD([torch.zeros(1)], lr=1e-3)
    decay = partial(multistep, milestones=[100, 250], gamma=0.1)
    plateau = {"factor": 0.5, "patience": 20}
    schedule = Schedule(optimizer, 1, 300, decay, 5, 0.1, plateau)
    ours = []
    for loss in row["losses"]:
        ours.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
        schedule.observe(loss)
    assert row["of_epoch"][150] == row["of_epoch"][249] == pytest.approx(1e-4)
    text = row_of("schedule_and_plateau")
    assert "1e-4 at epochs 150 and 249" in text
    assert f"{ours[150]:.1e} and {ours[249]:.1e}".replace("e-0", "e-") in text


def test_round_trip():
    text = (ROOT / "experiments" / "keras" / "round_trip.json").read_text()
    for side in ("read", "written"):
        difference = json.loads(text)[side]["largest_difference"]
        assert difference < 1e-5
        assert f"within {difference:g}" in PAGE


def test_the_variance_of_batchnorm_is_biased_in_keras_3_alone():
    x = torch.tensor(KERAS["batch_norm"]["x"]).flatten(0, 2)  # (B·H·W, C)
    for library, unbiased in ((KERAS, False), (TF_KERAS, True)):
        expected = 0.99 + 0.01 * x.var(dim=0, unbiased=unbiased)
        kept = torch.tensor(library["batch_norm"]["variance"])
        torch.testing.assert_close(kept, expected, rtol=1e-5, atol=0)
        mean = torch.tensor(library["batch_norm"]["mean"])
        torch.testing.assert_close(mean, 0.01 * x.mean(dim=0), rtol=1e-4, atol=1e-7)


def test_the_cost_of_the_options():
    folder = ROOT / "experiments/keras"
    cases = json.loads((folder / "augmentation_cost.json").read_text())["cases"]
    assert {len(column) for row in cases.values() for column in row.values()} == {7}
    median = {
        name: {key: statistics.median(column) for key, column in row.items()}
        for name, row in cases.items()
    }

    def share(key: str, name: str, of: str) -> float:
        return median[name][key] / median[of][key]

    speed = "images_per_second"
    longer = share(speed, "paper, before", "paper")
    memory = share("peak_mb", "paper", "paper, before")
    crop = share(speed, "crop and flip, before", "crop and flip")
    shifts = share(speed, "paper, fractional shifts", "paper, before")
    keras = share(speed, "paper, as Keras", "paper, before")
    text = (folder / "README.md").read_text()
    for words in (
        f"takes {longer:.2f} times as long",
        f"{memory:.2f} times the memory, `crop_flip` {crop:.2f} times",
        f"gives {shifts:.2f} of the images a second",
        f"sets {keras:.2f}.",
    ):
        assert words in text
    assert max(longer, memory, crop) <= 1.05
    assert shifts >= 0.8
