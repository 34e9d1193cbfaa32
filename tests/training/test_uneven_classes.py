"""Sets of uneven classes, and transfer: weights, balanced epochs, a frozen body."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from resnet_se.data.loaders import ShuffledBatches, balanced_order
from resnet_se.training.callbacks.freeze_body import FreezeBody
from resnet_se.training.class_weights import WeightedCrossEntropy, class_weights
from resnet_se.training.mixing import Mixing
from resnet_se.training.module import Classifier
from resnet_se.utils.errors import UserError

LABELS = torch.tensor([0] * 12 + [1] * 6 + [2] * 2)


def test_balanced_weights_are_those_of_scikit_learn():
    """`compute_class_weight('balanced')`: N / (K n_k)."""
    weights = class_weights("balanced", LABELS, 3)
    torch.testing.assert_close(weights, torch.tensor([20 / 36, 20 / 18, 20 / 6]))
    assert weights[LABELS].mean() == pytest.approx(1)
    assert class_weights([1, 2, 0.5], LABELS, 3).tolist() == [1, 2, 0.5]
    for wrong in ([1, 2], "even"):
        with pytest.raises(UserError, match="expected balanced or 3 weights"):
            class_weights(wrong, LABELS, 3)
    with pytest.raises(UserError, match="class 3 has none"):
        class_weights("balanced", LABELS, 4)


def test_the_weighted_loss_of_hard_and_of_mixed_targets_by_hand():
    logits = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    weights = torch.tensor([1.0, 2.0, 5.0])
    loss = WeightedCrossEntropy(weights)
    hard = F.one_hot(LABELS, 3).float()
    each = F.cross_entropy(logits, LABELS, reduction="none") * weights[LABELS]
    torch.testing.assert_close(loss(logits, logits, hard), each.mean())
    mixed = 0.3 * hard + 0.7 * hard.roll(5, 0)
    byhand = -(weights * mixed * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(loss(logits, logits, mixed), byhand)
    ones = WeightedCrossEntropy(torch.ones(3))
    torch.testing.assert_close(
        ones(logits, logits, mixed), F.cross_entropy(logits, mixed)
    )


def test_a_balanced_epoch_has_as_many_images_of_each_class():
    generator = torch.Generator().manual_seed(0)
    chosen = balanced_order(LABELS, generator)
    assert len(chosen) == 20
    assert sorted(torch.bincount(LABELS[chosen]).tolist()) == [6, 7, 7]
    times = torch.bincount(chosen, minlength=20)
    assert times[LABELS == 0].max() == 1  # a part of the frequent class, none twice
    assert times[LABELS == 2].min() == 3  # the rare one wholly, again and again
    epochs = [
        ShuffledBatches(20, 5, seed=1, epoch=epoch, balance=LABELS).indices()
        for epoch in (0, 0, 1)
    ]
    assert torch.equal(epochs[0], epochs[1])
    assert not torch.equal(epochs[0], epochs[2])
    parts = [
        ShuffledBatches(20, 5, 1, rank, 2, balance=LABELS).indices() for rank in (0, 1)
    ]
    both = torch.stack([part.view(-1, 5) for part in parts], dim=1).flatten()
    assert torch.equal(both, epochs[0])  # ranks share one order


def test_a_frozen_body_trains_the_head_alone():
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, 3),
    )  # fmt: skip
    module = Classifier(net, None, None, 3, Mixing(), None, 0)
    callback = FreezeBody()
    callback.setup(None, module, "fit")
    trained = [name for name, p in net.named_parameters() if p.requires_grad]
    assert trained == ["4.weight", "4.bias"]
    net.train()
    callback.on_train_epoch_start(None, module)
    before = net[1].running_mean.clone()
    net(torch.randn(8, 3, 8, 8)).sum().backward()
    assert torch.equal(net[1].running_mean, before)
    assert net[0].weight.grad is None
    assert net[4].weight.grad is not None
    callback.on_train_end(None, module)
    assert all(p.requires_grad for p in net.parameters())
    with pytest.raises(UserError, match="FreezeBody trains a last linear layer"):
        callback.setup(None, Classifier(net, None, None, 5, Mixing(), None, 0), "fit")
