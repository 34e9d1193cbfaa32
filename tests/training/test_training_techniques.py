"""The means of a better training: each against its definition, all of them together."""

from __future__ import annotations

import copy
import shutil
from itertools import combinations, islice, pairwise

import lightning as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from torch import nn
from torch.optim.swa_utils import AveragedModel, update_bn

from resnet_se.commands.app import filter_warnings
from resnet_se.commands.model_table import counts
from resnet_se.config import CONF
from resnet_se.config.build import build_datamodule, build_module, build_trainer
from resnet_se.config.validate import validate
from resnet_se.inference.distillation import Distillation, make_criterion
from resnet_se.inference.pretrained import load
from resnet_se.training.callbacks.sam import SAM, perturbation
from resnet_se.utils.errors import UserError
from resnet_se.utils.lightning_private import batches_done
from resnet_se.utils.random_streams import derive_seed
from tests.commands.test_train import Stopped, assert_same_run, interrupt, only
from tests.conftest import TINY


@pytest.fixture
def build(tmp_path):
    """The tiny configuration's data, classifier and trainer, its teacher found."""

    def call(*overrides: str):
        filter_warnings()
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("train", [*TINY, *overrides])
        recipe = validate(cfg).at(tmp_path)
        data = build_datamodule(recipe)
        data.setup()
        criterion = make_criterion(
            recipe["distill"],
            data,
            recipe["distill_weight"],
            recipe["distill_temperature"],
        )
        model = build_module(recipe, data.num_classes, criterion=criterion)
        return data, model, build_trainer(recipe)

    return call


# --- SAM ---------------------------------------------------------


def test_the_perturbation_by_hand():
    w, v = (torch.tensor(x, requires_grad=True) for x in ([3.0, -1.0], [[2.0]]))
    w.grad, v.grad = torch.tensor([2.0, 1.0]), torch.tensor([[-2.0]])  # of norm 3
    first, second = perturbation([w, v], 0.6, adaptive=False)
    torch.testing.assert_close(first, torch.tensor([0.4, 0.2]))
    torch.testing.assert_close(second, torch.tensor([[-0.4]]))

    first, second = perturbation([w, v], 0.6, adaptive=True)
    size = np.array([3.01, 1.01, 2.01])
    gradient = np.array([2.0, 1.0, -2.0])
    expected = 0.6 * size**2 * gradient / np.linalg.norm(size * gradient)
    found = torch.cat([first, second[0]]).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-6)


class Steps(L.Callback):
    """Keeps the weights and buffers after every step."""

    def __init__(self):
        self.states = []

    def on_train_batch_end(self, trainer, module, *_):
        self.states.append(copy.deepcopy(module.net.state_dict()))


@pytest.mark.parametrize("adaptive", [False, True])
def test_its_steps_are_those_of_two_gradients_by_hand(build, adaptive):
    """The second step is plain (`every=2`); mixing and dropout are those of the first
    pass, and so are BatchNorm's statistics."""
    more = ("mixing=mixup", "model.dropout=0.3", "optimizer.momentum=0")
    sam = (f"callbacks.sam.adaptive={adaptive}", "callbacks.sam.every=2")
    data, model, trainer = build("callbacks=sam", *sam, *more, "trainer.max_epochs=1")
    steps = Steps()
    trainer.callbacks.insert(0, steps)
    net, lr = copy.deepcopy(model.net).train(), 0.1
    batches = list(islice(data.train_dataloader(), 2))
    trainer.fit(model, datamodule=data)

    def gradients(step):
        torch.manual_seed(derive_seed("step", 0, 0, 0, step))
        images, targets = model.mixing(*batches[step], 10)
        net.zero_grad()
        F.cross_entropy(net(images), targets).backward()
        return [p.grad.clone() for p in net.parameters()]

    for step in range(2):
        weights = [p.detach().clone() for p in net.parameters()]
        grads = gradients(step)
        statistics = {k: v.clone() for k, v in net.named_buffers()}
        if step == 0:
            norm = torch.cat(
                [
                    (g * (w.abs() + 0.01 if adaptive else 1)).flatten()
                    for g, w in zip(grads, weights, strict=True)
                ]
            ).norm()
            with torch.no_grad():
                for p, g in zip(net.parameters(), grads, strict=True):
                    scale = (p.abs() + 0.01) ** 2 if adaptive else 1
                    p += 0.05 * scale * g / norm
            grads = gradients(step)
        with torch.no_grad():
            for p, w, g in zip(net.parameters(), weights, grads, strict=True):
                p.copy_(w - lr * g)
            for name, buffer in net.named_buffers():
                buffer.copy_(statistics[name])
        found = {k: v for k, v in steps.states[step].items() if v.is_floating_point()}
        expected = {k: v for k, v in net.state_dict().items() if k in found}
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("accumulate", "precision", "answer"),
    [
        (
            2,
            "32-true",
            r"accumulate_grad_batches: expected 1 with SAM.*make data.batch",
        ),
        (
            1,
            "16-mixed",
            "precision: SAM needs gradients .* bf16-mixed and 32-true work",
        ),
    ],
)
def test_where_a_batch_has_no_second_pass_it_is_refused(accumulate, precision, answer):
    SAM().check_trainer(1, "bf16-mixed")
    with pytest.raises(UserError, match=answer):
        SAM().check_trainer(accumulate, precision)


def test_a_batch_counts_once_in_the_training_figures(build):
    data, model, trainer = build("callbacks=sam", "trainer.max_epochs=1")
    trainer.fit(model, datamodule=data)
    assert sum(size for *_, size in model.train_batches.values()) == 6 * 32
    assert trainer.global_step == 6


# --- averages ----------------------------------------------------


class Averaged(L.Callback):
    """torch's own average of the ends of epochs 2 and later, compared at validation."""

    def __init__(self):
        self.average = None
        self.compared = 0

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        if index + 1 == trainer.num_training_batches and trainer.current_epoch >= 2:
            self.average = self.average or AveragedModel(module.net)
            self.average.update_parameters(module.net)

    def on_validation_batch_start(self, trainer, module, *_):
        if trainer.current_epoch < 3:
            return
        net = self.average.module
        update_bn(trainer.datamodule.shuffled(5000), net)
        ours = [t for t in module.net.state_dict().values() if t.is_floating_point()]
        theirs = [t for t in net.state_dict().values() if t.is_floating_point()]
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
        self.compared += 1


def test_stochastic_weight_averaging_is_torchs(build):
    data, model, trainer = build(
        "callbacks=swa", "trainer.max_epochs=5", "callbacks.weight_average.start=0.5"
    )
    reference = Averaged()
    trainer.callbacks.append(reference)
    trainer.fit(model, datamodule=data)
    assert reference.compared == 2


# --- distillation ------------------------------------------------


def test_the_distilled_loss_is_hintons():
    torch.manual_seed(0)
    mean, std = torch.rand(3), torch.rand(3) + 0.5
    images, z, v = torch.randn(6, 3, 4, 4), torch.randn(6, 5), torch.randn(6, 5)
    targets = torch.rand(6, 5).softmax(1)
    seen = []

    class Teacher(nn.Module):
        def forward(self, pixels):
            seen.append(pixels)
            return v

    loss = Distillation(Teacher(), (mean, std), weight=0.7, temperature=3.0)
    found = loss(images, z, targets)
    hard = -(targets * z.log_softmax(1)).sum(1).mean()
    kl = F.kl_div(
        (z / 3).log_softmax(1), (v / 3).softmax(1), reduction="batchmean"
    )  # and the entropy of the teacher's, which has no gradient
    p = (v / 3).softmax(1)
    entropy = -(p * p.log()).sum(1).mean()
    torch.testing.assert_close(found, 0.3 * hard + 0.7 * 9 * (kl + entropy))
    torch.testing.assert_close(
        seen[0], images * std[:, None, None] + mean[:, None, None]
    )


def test_the_teacher_sees_the_students_images(build, finished):
    data, model, _ = build(f"distill={finished.folder}", "augment=none")
    teacher = load(finished.folder)
    part = data.train_part[0][:8]
    normalised = (part / 255 - data.mean[:, None, None]) / data.std[:, None, None]
    targets = F.one_hot(data.train_part[1][:8], 10).float()
    z = torch.zeros(8, 10)
    found = model.criterion(normalised, z, targets)
    soft = (teacher(part) / 4).softmax(1)
    expected = 0.1 * np.log(10) + 0.9 * 16 * F.cross_entropy(z / 4, soft)
    torch.testing.assert_close(found, expected)
    assert not any("teacher" in name for name in model.state_dict())


@pytest.mark.slow
def test_a_bundle_teaches_and_its_content_is_hashed(
    train, command, finished, run_dirs, tmp_path
):
    assert command("bundle", f"run={finished.folder}", "out=taught") == 0
    assert train("distill=taught", "trainer.max_epochs=1") == 0
    ((_, result),) = run_dirs().items()
    assert len(result["setting"]["distill.content"]) == 16
    shutil.move(tmp_path / "taught", tmp_path / "moved")
    assert train("distill=moved", "trainer.max_epochs=1") == 0
    assert len(run_dirs()) == 1  # skipped


@pytest.mark.parametrize(
    ("change", "answer"),
    {
        "data.source.num_classes=7": r"10 classes|7 classes",
        "data.source.size=24": "distill: expected a teacher of images of 24 × 24",
        "distill=nowhere": "distill: nowhere: No such file or directory",
        "distill_weight=1.5": "distill_weight: expected 0..1, got 1.5",
    }.items(),
)
def test_a_teacher_that_does_not_fit_is_refused(
    train, finished, run_dirs, capsys, change, answer
):
    assert train(f"distill={finished.folder}", change) == 2
    error = capsys.readouterr().err
    assert any(words in error for words in answer.split("|"))
    assert not [r for r in run_dirs().values() if "train" in r]


# --- a frozen stem -----------------------------------------------

FROZEN = (
    "model.whiten=true",
    "+callbacks.freeze._target_=resnet_se.training.callbacks.freeze_stem.FreezeStem",
    "+callbacks.freeze.epochs=1",
)


def test_a_frozen_stem_is_a_stem_without_gradients(build):
    """From the second epoch on; the rest of the network as by hand."""
    data, model, trainer = build(*FROZEN, "trainer.max_epochs=2")
    net, steps = copy.deepcopy(model.net).train(), Steps()
    trainer.callbacks.insert(0, steps)
    trainer.fit(model, datamodule=data)
    a_step = len(steps.states) // 2
    biases = [state["stem.conv.bias"] for state in steps.states]
    assert not torch.equal(biases[0], biases[a_step - 1])
    assert all(torch.equal(bias, biases[a_step - 1]) for bias in biases[a_step:])
    weights = [state["stem.conv.weight"] for state in steps.states]
    assert torch.equal(weights[0], weights[-1])
    heads = [state["head.weight"] for state in steps.states]
    assert not any(torch.equal(a, b) for a, b in pairwise(heads))
    assert [p.requires_grad for p in model.net.parameters()] == [
        p.requires_grad for p in net.parameters()
    ]


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
def test_a_frozen_stem_goes_on_bit_for_bit(
    train, run_dirs, monkeypatch, tmp_path, optimizer
):
    """From the middle of an epoch in which it is frozen."""
    every = (*FROZEN, f"optimizer={optimizer}", "+callbacks.checkpoint.every_n_steps=3")
    assert train("runs_dir=whole", *every) == 0
    Stopped(monkeypatch, (1, 4), interrupt)
    assert train(*every) == 130
    assert train(*every) == 0
    (reference,) = tmp_path.glob("whole/*/*")
    assert_same_run(only(run_dirs())[0], reference)


def test_a_network_without_a_whitening_stem_has_nothing_to_freeze(train, capsys):
    assert train(*FROZEN[1:]) == 2
    assert "model.whiten=true" in capsys.readouterr().err


@pytest.mark.slow
def test_ranks_freeze_the_stem_too(train, run_dirs):
    assert train(*FROZEN, "data.batch_size=16", "trainer=ddp_sim") == 0
    checkpoints = only(run_dirs())[0] / "checkpoints"
    biases = [
        torch.load(checkpoints / name)["state_dict"]["net.stem.conv.bias"]
        for name in ("previous.ckpt", "last.ckpt")
    ]
    assert torch.equal(*biases)


# --- all of them together ----------------------------------------

# By group, so that no pair sets one key twice.
MEANS = {
    "randaugment": ("augment=randaugment",),
    "erasing": ("augment.erase=0.5",),
    "cutmix": ("mixing=both",),
    "stochastic depth": ("model.drop_path=0.3",),
    "zero init": ("model.zero_init=true",),
    "sam": ("+callbacks.sam._target_=resnet_se.training.callbacks.sam.SAM",),
    "ema": ("callbacks=ema",),
    "distillation": ("distill=TEACHER",),
    "repeats": ("data.repeats=2",),
    "accumulation": ("+trainer.accumulate_grad_batches=2",),
    "spared decay": ("optimizer.decay_norm_and_bias=false",),
    "one cycle": ("scheduler=one_cycle",),
    "torchvision": ("data.engine=torchvision",),
    "muon": ("optimizer=muon",),
    "swa": ("callbacks=swa",),
    "plain network": ("model.residual=false", "model.activation=gelu"),
    "frozen stem": FROZEN,
    "small images first": ("data.resolution=[[16,0.5]]",),
}
APART = {  # and the answer
    ("sam", "accumulation"): "accumulate_grad_batches: expected 1 with SAM",
    ("spared decay", "muon"): None,  # which has rates and decays of its own
    ("ema", "swa"): None,  # one key
    ("stochastic depth", "plain network"): "drop_path: expected 0 with residual=false",
    ("zero init", "plain network"): "zero_init: expected false with residual=false",
}


TOGETHER = (
    "augment=trivial", "augment.erase=0.5", "mixing=both", "mixing.probability=0.7",
    "model.drop_path=0.3", "model.dropout=0.2", "model.zero_init=true",
    "callbacks=ema", "+callbacks.sam._target_=resnet_se.training.callbacks.sam.SAM",
    "+callbacks.sam.every=2", "data.repeats=2", "scheduler=one_cycle",
    "optimizer.decay_norm_and_bias=false", "optimizer.weight_decay=0.01",
    "data.resolution=[[16,0.5]]",
)  # fmt: skip


@pytest.mark.parametrize(
    "engine", ["batched", pytest.param("torchvision", marks=pytest.mark.slow)]
)
def test_all_together_go_on_bit_for_bit(
    train, finished, run_dirs, monkeypatch, tmp_path, engine
):
    """From a checkpoint between a step of SAM and a plain one."""
    every = (*TOGETHER, f"distill={finished.folder}", f"data.engine={engine}")
    every += ("+callbacks.checkpoint.every_n_steps=3",)
    assert train("runs_dir=whole", *every) == 0
    stopped = Stopped(monkeypatch, (1, 4), interrupt)
    assert train(*every) == 130
    before = len(stopped.steps)
    assert train(*every) == 0
    assert stopped.steps[before:] == [(1, 3), (1, 4), (1, 5)]
    (reference,) = tmp_path.glob("whole/*/*")
    assert_same_run(only(run_dirs())[0], reference)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["trainer=ddp_sim", "trainer.compile=default"])
def test_all_together_train_on_ranks_and_compiled(train, finished, run_dirs, way):
    every = (*TOGETHER, f"distill={finished.folder}", "data.batch_size=16", way)
    assert train(*every) == 0
    ((_, result),) = run_dirs().items()
    assert result["status"] == "finished"
    assert result["train"]["steps"] == 2 * (220 // (32 if "ddp" in way else 16))


def one_step(build, *overrides: str) -> float:
    """The loss of one optimizer step."""
    step = ("trainer.max_epochs=1", "trainer.limit_train_batches=1")
    data, model, trainer = build(*overrides, *step)
    trainer.fit(model, datamodule=data)
    assert trainer.global_step == 1
    metrics = trainer.callback_metrics
    return float(metrics["train/loss"] + metrics["val/loss"])


@pytest.fixture
def settings(finished):
    """{mean: its overrides}."""
    teacher = str(finished.folder)
    return {
        mean: tuple(o.replace("TEACHER", teacher) for o in overrides)
        for mean, overrides in MEANS.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("pair", list(combinations(MEANS, 2)), ids=" and ".join)
def test_two_means_make_a_step_or_are_refused(build, settings, pair):
    overrides = [o for mean in pair for o in settings[mean]]
    if pair not in APART:
        assert np.isfinite(one_step(build, *overrides))
    elif APART[pair]:
        with pytest.raises(  # which Hydra wraps where a constructor has raised it
            (UserError, InstantiationException), match=APART[pair]
        ):
            one_step(build, *overrides)


# --- what they make together -------------------------------------


@pytest.mark.parametrize(("experiment", "epochs"), [("best", 3), ("best_cpu", 1)])
def test_the_best_networks_dry_run(command, run_dirs, experiment, epochs):
    """Every part but the size: as configured, epochs of two batches."""
    small = ("data=synthetic", "data.source.num_train=240", "data.source.num_test=60")
    small += ("data.batch_size=16", "model.widths=[8,8,16]", "model.reduction=4")
    small += ("trainer.precision=32-true", "trainer.accelerator=cpu", "plots=false")
    assert command("train", f"experiment={experiment}", "budget=smoke", *small) == 0
    ((_, result),) = run_dirs().items()
    assert (result["status"], result["train"]["steps"]) == ("finished", 2 * epochs)
    means = (
        {"augment.policy": "trivial"}
        if experiment == "best"
        else {"augment.cutout": 12}
    )
    assert means.items() <= result["setting"].items()


@pytest.mark.parametrize("name", ["best", "best_cpu"])
def test_the_best_networks_are_small(name):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [f"experiment={name}"])
    size = counts(cfg.model)
    text = (CONF / f"experiment/{name}.yaml").read_text()
    assert size["total"] < 5_000_000
    assert f"{size['macs'] / 1e6:.1f} MMAC" in text
    if name == "best":
        assert "not measured" in text
        images = 49_000 * cfg.trainer.max_epochs
        flop = size["macs"] * 2 * 3 * 2 * images  # two a MAC, backward twice, SAM
        assert f"{flop / 1e15:.0f} PFLOP" in text
        assert f"{flop / 989e12 * 10 / 60:.0f} minutes" in text  # dense bf16, a tenth


def test_a_schedule_counts_optimizer_steps(build):
    accumulate = ("+trainer.accumulate_grad_batches=2", "scheduler=cosine")
    data, model, trainer = build(*accumulate)
    trainer.fit(model, datamodule=data)
    assert len(data.train_dataloader()) == 6
    assert trainer.global_step == 2 * 3
    schedule = model.lr_schedulers()
    assert schedule.last_epoch == 6
    assert schedule.get_lr() == pytest.approx([0, 0])  # at its end, not half-way


def test_no_checkpoint_is_written_while_gradients_are_being_summed(build, tmp_path):
    accumulate = ("+trainer.accumulate_grad_batches=2", "trainer.max_epochs=1")
    data, model, trainer = build(*accumulate, "+callbacks.checkpoint.every_n_steps=1")
    done, save = [], trainer.save_checkpoint

    def noted(*args, **kwargs):
        done.append(batches_done(trainer))
        save(*args, **kwargs)

    trainer.save_checkpoint = noted
    trainer.fit(model, datamodule=data)
    assert done == [2, 4, 6, 6]  # best and last at the end
