"""Laws of soft targets: torch's integer-label loss, true areas, identities."""

import pytest
import torch
import torch.nn.functional as F

from resnet_se.training.mixing import Mixing, soft_targets
from resnet_se.utils.errors import UserError

K = 5


@pytest.fixture
def batch():
    """Images of one value each, 0..5, and their labels: (6, 3, 8, 10), (6,)."""
    torch.manual_seed(0)
    images = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 3, 8, 10).clone()
    return images, torch.tensor([0, 1, 2, 3, 4, 2])


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
def test_one_loss_is_torchs_integer_label_loss(batch, smoothing):
    images, labels = batch
    logits = torch.randn(6, K)
    same, targets = Mixing(smoothing)(images, labels, K)
    assert same is images
    expected = F.cross_entropy(logits, labels, label_smoothing=smoothing)
    torch.testing.assert_close(F.cross_entropy(logits, targets), expected)


def test_soft_targets_by_hand():
    expected = torch.tensor([[0.05, 0.85, 0.05, 0.05]])
    torch.testing.assert_close(soft_targets(torch.tensor([1]), 4, 0.2), expected)


def test_mixup_is_the_convex_combination_with_the_neighbour(batch):
    images, labels = batch
    targets = soft_targets(labels, K)
    mixed, soft = Mixing(mixup_alpha=1)(images, labels, K)
    keep = (mixed[1] - images[0]).mean() / (images[1] - images[0]).mean()
    assert 0 < keep < 1
    for i in range(6):
        expected = keep * images[i] + (1 - keep) * images[i - 1]
        torch.testing.assert_close(mixed[i], expected)
        expected = keep * targets[i] + (1 - keep) * targets[i - 1]
        torch.testing.assert_close(soft[i], expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cutmix_targets_weigh_the_true_share_of_pixels(batch, smoothing):
    images, labels = batch
    before = images.clone()
    targets = soft_targets(labels, K, smoothing)
    for _ in range(40):  # boxes cut off at the edges among them
        mixed, soft = Mixing(smoothing, cutmix_alpha=1)(images, labels, K)
        for i in range(6):
            foreign = mixed[i] == images[i - 1]
            assert (foreign | (mixed[i] == images[i])).all()
            share = foreign.float().mean()
            expected = (1 - share) * targets[i] + share * targets[i - 1]
            torch.testing.assert_close(soft[i], expected)
    assert torch.equal(images, before)


@pytest.mark.parametrize(
    "mixing",
    [
        Mixing(mixup_alpha=0.4),
        Mixing(cutmix_alpha=1.0),
        Mixing(smoothing=0.1, mixup_alpha=1, cutmix_alpha=1),
    ],
)
def test_targets_are_distributions_and_follow_torchs_generator(batch, mixing):
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(mixing(*batch, K))
        _, targets = draws[-1]
        assert (targets >= 0).all()
        torch.testing.assert_close(targets.sum(1), torch.ones(6))
    (a, s), (b, t), (c, u) = draws
    assert torch.equal(a, b)
    assert torch.equal(s, t)
    assert not torch.equal(a, c)
    assert not torch.equal(s, u)


def test_both_mixings_take_turns(batch):
    mixing, images = Mixing(mixup_alpha=1, cutmix_alpha=1), batch[0]
    kinds = set()
    for _ in range(20):
        mixed, _ = mixing(*batch, K)
        kinds.add(bool(torch.isin(mixed, images).all()))  # CutMix's values are old ones
    assert kinds == {True, False}


def test_a_batch_is_mixed_with_its_probability(batch):
    mixing, n = Mixing(mixup_alpha=1, probability=0.3), 1000
    mixed = sum(mixing(*batch, K)[0] is not batch[0] for _ in range(n))
    assert abs(mixed / n - 0.3) < 5 * (0.3 * 0.7 / n) ** 0.5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"smoothing": -0.1}, "smoothing: .* got -0.1"),
        ({"smoothing": 1.0}, "smoothing: .* got 1.0"),
        ({"mixup_alpha": -1}, "mixup_alpha: .* got -1"),
        ({"cutmix_alpha": -0.5}, "cutmix_alpha: .* got -0.5"),
        ({"probability": 1.5}, r"probability: expected 0\.\.1, got 1.5"),
    ],
)
def test_value_out_of_range_is_named(options, words):
    with pytest.raises(UserError, match=words):
        Mixing(**options)
