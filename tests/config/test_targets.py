"""Laws of targets: old paths of ours still lead to the same class."""

from __future__ import annotations

import pytest

from resnet_se.config.targets import located, present_path
from resnet_se.runs.run_hash import canonical

# Of the version before the packages: all that its conf/ and its scripts named.
FORMER = [
    "resnet_se.averaging.WeightAverage",
    "resnet_se.callbacks.Checkpoints",
    "resnet_se.callbacks.FreezeStem",
    "resnet_se.callbacks.History",
    "resnet_se.callbacks.SaveOnSigterm",
    "resnet_se.dashboard.WandbRun",
    "resnet_se.dashboard.tensorboard",
    "resnet_se.data.augment.Augmentation",
    "resnet_se.data.module.ImageDataModule",
    "resnet_se.data.sources.CIFAR10",
    "resnet_se.data.sources.CIFAR100",
    "resnet_se.data.sources.ImageFolder",
    "resnet_se.data.synthetic.Synthetic",
    "resnet_se.mixing.Mixing",
    "resnet_se.muon.make_muon",
    "resnet_se.optim.Schedule",
    "resnet_se.optim.constant",
    "resnet_se.optim.cosine",
    "resnet_se.optim.make_optimizer",
    "resnet_se.optim.multistep",
    "resnet_se.optim.one_cycle",
    "resnet_se.optim.triangular",
    "resnet_se.progress.Forecast",
    "resnet_se.progress.progress",
    "resnet_se.pruning.Pruner",
    "resnet_se.resnet.ResNet",
    "resnet_se.sam.SAM",
    "resnet_se.tta.TTA",
]


@pytest.mark.parametrize("target", FORMER)
def test_a_former_path_leads_to_the_same_name(target):
    found = located("here", target)
    assert found.__name__ == target.rpartition(".")[2]
    assert found.__module__.startswith("resnet_se.")
    assert canonical(target) == canonical(present_path(target))


def test_of_two_functions_of_one_name_the_configured_one_is_meant():
    assert located("x", "resnet_se.progress.progress").__module__.endswith(
        "callbacks.progress"
    )


@pytest.mark.parametrize(
    "target", ["torch.nn.Linear", "mine.ResNet", "resnet_se.a.b.c.ResNet", "ResNet", ""]
)
def test_other_names_stay_as_they_are(target):
    assert present_path(target) == target


def test_todays_paths_stay_as_they_are():
    for target in map(present_path, FORMER):
        assert present_path(target) == target
