"""Laws of the schedules: rates computed by hand, torch's own schedulers."""

import io
from functools import partial

import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR, ReduceLROnPlateau

from resnet_se.training.schedules import (
    Schedule,
    constant,
    cosine,
    multistep,
    one_cycle,
    triangular,
    warmup,
)
from resnet_se.utils.errors import UserError

PAPER = {
    "decay": partial(multistep, milestones=[100, 250], gamma=0.1),
    "warmup_epochs": 5,
    "warmup_start": 0.1,
}


def sgd(lr=1.0):
    return SGD([torch.zeros(1)], lr=lr)


def rate(optimizer):
    [group] = optimizer.param_groups
    return group["lr"]


def advance(optimizer, schedule, steps):
    for _ in range(steps):
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize(
    ("factor", "points"),
    [
        (constant, {0: 1, 7.5: 1, 10: 1}),
        (cosine, {0: 1, 2.5: 0.853553, 5: 0.5, 7.5: 0.146447, 10: 0, 11: 0}),
        (partial(cosine, final=0.2), {0: 1, 5: 0.6, 10: 0.2, 12: 0.2}),
        (
            partial(multistep, milestones=[3, 6.5], gamma=0.1),
            {0: 1, 2.99: 1, 3: 0.1, 6.49: 0.1, 6.5: 0.01, 10: 0.01},
        ),
        (
            partial(triangular, peak=0.2, final=0.1),
            {0: 0, 1: 0.5, 2: 1, 6: 0.55, 10: 0.1, 11: 0.1},
        ),
        (partial(triangular, peak=0.0), {0: 1, 5: 0.5, 10: 0}),
    ],
)
def test_decay_at_points_computed_by_hand(factor, points):
    found = [factor(t, 10) for t in points]
    assert found == pytest.approx(list(points.values()), abs=1e-6)


def test_warmup_at_points_computed_by_hand():
    found = [warmup(t, 5, 0.1) for t in (0, 2.5, 4, 5, 6)]
    assert found == pytest.approx([0.1, 0.55, 0.82, 1, 1])
    assert warmup(0, 0) == 1  # none


def test_schedule_steps_in_fractions_of_an_epoch():
    optimizer = sgd(lr=2.0)
    schedule = Schedule(optimizer, steps_per_epoch=4, epochs=3, warmup_epochs=1)
    found = []
    for _ in range(6):
        found.append(rate(optimizer))
        advance(optimizer, schedule, 1)
    assert found == pytest.approx([0, 0.5, 1, 1.5, 2, 2])


def test_paper_schedule_by_hand():
    optimizer = sgd(lr=0.01)
    schedule = Schedule(optimizer, steps_per_epoch=2, epochs=300, **PAPER)
    at = {0: 0.1, 2.5: 0.55, 5: 1, 99.5: 1, 100: 0.1, 249.5: 0.1, 250: 0.01, 299: 0.01}
    for t, factor in at.items():
        advance(optimizer, schedule, int(2 * t) - schedule.last_epoch)
        assert rate(optimizer) == pytest.approx(0.01 * factor), t


def test_warmup_decay_and_plateau_multiply():
    optimizer = sgd()
    plateau = {"factor": 0.5, "patience": 0}
    schedule = Schedule(optimizer, 1, 300, **PAPER, plateau=plateau)
    schedule.observe(1.0)
    schedule.observe(1.0)  # no better: halves, within the warm-up
    assert rate(optimizer) == pytest.approx(0.5 * 0.1)
    advance(optimizer, schedule, 2)  # and stays halved in the steps that follow
    assert rate(optimizer) == pytest.approx(0.5 * 0.46)
    advance(optimizer, schedule, 98)
    assert rate(optimizer) == pytest.approx(0.5 * 0.1)
    schedule.observe(2.0)
    assert rate(optimizer) == pytest.approx(0.25 * 0.1)
    advance(optimizer, schedule, 150)
    assert rate(optimizer) == pytest.approx(0.25 * 0.01)


def test_every_group_keeps_its_own_base_rate():
    a, b = torch.zeros(1), torch.zeros(1)
    optimizer = SGD([{"params": [a], "lr": 1.0}, {"params": [b], "lr": 0.1}])
    schedule = Schedule(optimizer, 1, 10, decay=cosine, plateau={"patience": 0})
    advance(optimizer, schedule, 5)
    for loss in (1.0, 1.0):
        schedule.observe(loss)
    rates = [group["lr"] for group in optimizer.param_groups]
    assert rates == pytest.approx([0.5 * 0.1, 0.05 * 0.1])


@pytest.mark.parametrize(
    "options",
    [
        {"factor": 0.5, "patience": 3},
        {"factor": 0.3, "patience": 1, "cooldown": 2, "threshold": 0.05},
        {"factor": 0.9, "patience": 0, "threshold": 0.1, "threshold_mode": "abs"},
    ],
)
def test_plateau_alone_is_torchs(options):
    ours, theirs = sgd(lr=0.1), sgd(lr=0.1)
    schedule = Schedule(ours, steps_per_epoch=3, epochs=40, plateau=options)
    reference = ReduceLROnPlateau(theirs, **options)
    losses = 1 + 0.2 * torch.randn(40, generator=torch.Generator().manual_seed(0))
    seen = set()
    for loss in losses.tolist():
        advance(ours, schedule, 3)
        schedule.observe(loss)
        reference.step(loss)
        assert rate(ours) == pytest.approx(rate(theirs), rel=1e-12)
        seen.add(rate(ours))
    assert len(seen) > 3


def test_cosine_is_torchs_at_whole_epochs():
    ours, theirs = sgd(lr=0.3), sgd(lr=0.3)
    schedule = Schedule(ours, 5, 12, decay=partial(cosine, final=0.1))
    reference = CosineAnnealingLR(theirs, T_max=12, eta_min=0.03)
    for _ in range(12):
        advance(ours, schedule, 5)
        advance(theirs, reference, 1)
        assert rate(ours) == pytest.approx(rate(theirs))


def test_one_cycle_is_torchs():
    optimizer, n = sgd(lr=0.3), 50
    theirs = OneCycleLR(optimizer, max_lr=0.3, total_steps=n, cycle_momentum=False)
    for step in range(n):
        # Its last step has the last rate; its peak is a step before the share 0.3.
        factor = one_cycle(step, n - 1, peak=(0.3 * n - 1) / (n - 1))
        assert 0.3 * factor == pytest.approx(rate(optimizer))
        advance(optimizer, theirs, step < n - 1)


def test_state_survives_a_checkpoint():
    def make():
        optimizer = sgd()
        plateau = {"factor": 0.5, "patience": 2}
        return optimizer, Schedule(optimizer, 2, 300, **PAPER, plateau=plateau)

    def epoch(optimizer, schedule, loss):
        advance(optimizer, schedule, 2)
        schedule.observe(loss)
        return rate(optimizer)

    whole = make()
    for loss in (1.0, 1.1, 1.2, 1.3, 0.9, 1.0):  # one reduction, one bad epoch since
        epoch(*whole, loss)
    file = io.BytesIO()
    torch.save([part.state_dict() for part in whole], file)
    file.seek(0)
    resumed = make()
    for part, state in zip(resumed, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    assert resumed[1].get_last_lr() == pytest.approx([rate(whole[0])])
    losses = (1.0, 1.0, 1.0, 1.0, 0.8, 0.9)  # the next reduction comes two epochs on
    going_on = [epoch(*whole, loss) for loss in losses]
    assert [epoch(*resumed, loss) for loss in losses] == going_on
    assert going_on[1] == pytest.approx(0.25)


def test_a_checkpoint_without_a_plateau_starts_one():
    optimizer = sgd()
    schedule = Schedule(optimizer, 1, 10, plateau={"patience": 0, "factor": 0.5})
    schedule.load_state_dict(Schedule(sgd(), 1, 10).state_dict() | {"last_epoch": 3})
    assert schedule.last_epoch == 3
    for loss in (1.0, 1.0):
        schedule.observe(loss)
    assert rate(optimizer) == 0.5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"warmup_epochs": 11}, "warmup_epochs: expected 0..10 .* got 11"),
        ({"warmup_epochs": -1}, "warmup_epochs: .* got -1"),
        ({"warmup_start": 1.5}, "warmup_start: expected 0..1, got 1.5"),
        (
            {"decay": partial(multistep, milestones=[5, 3], gamma=0.1)},
            r"milestones: expected ascending, got \[5, 3\]",
        ),
        (
            {"decay": partial(multistep, milestones=[4], gamma=-1)},
            "decay: .* got -1 after 4 epochs",
        ),
        ({"decay": partial(cosine, final=float("nan"))}, "decay.final: .* got nan"),
        ({"decay": lambda t, total: float("inf")}, "decay: .* inf after 0 epochs"),
        ({"plateau": {"factor": 1.5}}, "plateau"),
        ({"plateau": {"factor": -0.5}}, "plateau.factor"),  # a negative rate
        ({"plateau": {"patiense": 3}}, "plateau.patiense: .* 'patience'"),
    ],
)
def test_impossible_schedule_is_refused_before_training(options, words):
    with pytest.raises(UserError, match=words):
        Schedule(sgd(), 1, 10, **options)


@pytest.mark.parametrize("decay", [triangular, one_cycle])
@pytest.mark.parametrize("peak", [-0.5, 1.0, 2.0])
def test_a_peak_lies_within_training(decay, peak):
    with pytest.raises(UserError, match="peak"):
        Schedule(sgd(), 1, 10, decay=partial(decay, peak=peak))
