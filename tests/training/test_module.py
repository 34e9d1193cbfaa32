"""The Lightning module: its figures, averaged weights, what a step waits for."""

from __future__ import annotations

from itertools import pairwise

import lightning as L
import pytest
import torch
from hydra import compose, initialize_config_dir
from torch.utils._python_dispatch import TorchDispatchMode
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from resnet_se.commands.app import filter_warnings
from resnet_se.config import CONF
from resnet_se.config.build import build_datamodule, build_module, build_trainer
from resnet_se.training.callbacks.averaging import WeightAverage
from resnet_se.training.module import Diverged, _figures, _sums
from resnet_se.utils.errors import UserError
from tests.conftest import TINY, recipe_of


@pytest.fixture
def build(tmp_path):
    """The tiny configuration's data, classifier and trainer."""

    def call(*overrides: str):
        filter_warnings()
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("train", [*TINY, *overrides])
        recipe = recipe_of(cfg).at(tmp_path)
        data = build_datamodule(recipe)
        data.setup()
        model = build_module(recipe, data.num_classes)
        return data, model, build_trainer(recipe)

    return call


def one_hot(images, labels, num_classes):
    """Mixing's targets; torch's own `one_hot` looks at the labels where it may."""
    return images, (labels[:, None] == torch.arange(num_classes)).float()


def test_figures_of_uneven_batches_are_torchmetrics():
    torch.manual_seed(0)
    loss, acc = MeanMetric(), MulticlassAccuracy(4, average="micro")
    batches = []
    for size in (7, 7, 2):
        logits, labels = torch.randn(size, 4), torch.randint(4, (size,))
        value = torch.nn.functional.cross_entropy(logits, labels)
        loss.update(value, weight=size)
        acc.update(logits, labels)
        batches.append(_figures(value, logits, labels))
    sums = _sums(batches)
    torch.testing.assert_close(
        (sums[:2] / sums[2]).float(), torch.stack([loss.compute(), acc.compute()])
    )


# --- what a step waits for ---------------------------------------


class Within(L.Callback):
    """Calls `enter` at a warm epoch's first step and `leave` before its last."""

    def __init__(self, enter, leave):
        self.enter, self.leave = enter, leave
        self.steps = 0

    def on_train_batch_start(self, trainer, module, batch, index):
        if trainer.current_epoch == 1:
            if index == 0:
                self.enter()
            if index == trainer.num_training_batches - 1:
                self.leave()
            self.steps += 1


class Waits(TorchDispatchMode):
    """Counts, while `on`, what would have to wait for a GPU's answer."""

    WAITING = (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero)

    def __init__(self):
        super().__init__()
        self.on, self.found = False, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.found += self.on and func.overloadpacket in self.WAITING
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("spoil", [False, True])
def test_no_step_asks_for_a_value(build, spoil):
    data, model, trainer = build("augment=none", "callbacks=ema")
    model.mixing = one_hot
    if spoil:  # the test can fail
        step = model.training_step

        def asking(batch, batch_idx):
            loss = step(batch, batch_idx)
            float(loss.detach())
            return loss

        model.training_step = asking
    waits = Waits()
    within = Within(
        lambda: setattr(waits, "on", True), lambda: setattr(waits, "on", False)
    )
    trainer.callbacks.append(within)
    with waits:
        trainer.fit(model, datamodule=data)
    assert within.steps == 6
    assert waits.found == (5 if spoil else 0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_no_step_waits_for_the_gpu(build, precision):
    data, model, trainer = build(
        "trainer.accelerator=gpu", f"trainer.precision={precision}", "callbacks=ema"
    )
    within = Within(
        lambda: torch.cuda.set_sync_debug_mode("error"),
        lambda: torch.cuda.set_sync_debug_mode("default"),
    )
    trainer.callbacks.append(within)
    try:
        trainer.fit(model, datamodule=data)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert within.steps == 6


# --- the schedule's length, divergence ---------------------------


def test_max_steps_does_not_squeeze_the_schedule(build):
    rates = []
    for more in ((), ("+trainer.max_steps=6",)):
        data, model, trainer = build(*more)
        trainer.fit(model, datamodule=data)
        schedule = model.lr_schedulers()
        rates.append([schedule.factor(step) for step in range(12)])
    assert trainer.global_step == 6
    assert rates[0] == rates[1]


def test_an_infinite_validation_loss_stops_before_its_checkpoint(build, tmp_path):
    data, model, trainer = build("trainer.max_epochs=3")
    step = model.validation_step

    def spoiled(batch, batch_idx):
        step(batch, batch_idx)
        if model.current_epoch == 1:
            loss, *rest = model.val_batches[-1]
            model.val_batches[-1] = (loss * float("inf"), *rest)

    model.validation_step = spoiled
    with pytest.raises(Diverged, match=r"validation loss .* batch 1 of epoch 2"):
        trainer.fit(model, datamodule=data)
    last = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)
    assert last["epoch"] == 0


# --- averaged weights --------------------------------------------


class ByHand(L.Callback):
    """The average in double precision, compared with what is validated."""

    def __init__(self, decay):
        self.decay = decay
        self.compared = 0

    @staticmethod
    def weights(module):
        state = module.state_dict().items()
        return {k: v.double().clone() for k, v in state if v.is_floating_point()}

    def on_train_start(self, trainer, module):
        self.average = self.weights(module)

    def on_train_batch_end(self, trainer, module, *_):
        for name, value in self.weights(module).items():
            old = self.average[name]
            self.average[name] = self.decay * old + (1 - self.decay) * value

    def on_validation_start(self, trainer, module):
        self.trained = self.weights(module)

    def on_validation_batch_start(self, trainer, module, *_):
        torch.testing.assert_close(
            self.weights(module), self.average, rtol=1e-5, atol=1e-6
        )
        assert not torch.equal(
            self.trained["net.head.weight"], self.average["net.head.weight"]
        )
        self.compared += 1

    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch:  # what is trained on is what was trained
            torch.testing.assert_close(self.weights(module), self.trained)


def test_the_average_is_the_one_computed_by_hand(build):
    data, model, trainer = build("callbacks=ema", "callbacks.weight_average.decay=0.8")
    reference = ByHand(0.8)
    trainer.callbacks.append(reference)
    trainer.fit(model, datamodule=data)
    assert reference.compared == 2
    after = ByHand.weights(model)  # training ends with the average
    torch.testing.assert_close(after, reference.average, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("decay", [0, 1, -0.5, float("nan")])
def test_a_decay_that_averages_nothing_is_refused(decay):
    with pytest.raises(UserError, match="decay"):
        WeightAverage(decay)


def test_sums_of_an_epoch_cut_in_two_are_those_of_the_whole():
    torch.manual_seed(0)
    batches = [(torch.rand(()) * 7, torch.tensor(n), n) for n in range(3, 400)]
    whole = _sums(batches)
    for cut in range(1, len(batches), 11):
        assert torch.equal(_sums(batches[cut:], _sums(batches[:cut])), whole)


class Softmaxed(torch.nn.Module):
    """A network whose logits are probabilities."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, images):
        return self.net(images).softmax(dim=1)


def test_logits_that_look_like_probabilities_are_logits(build):
    data, model, trainer = build()
    model.net = Softmaxed(model.net)
    (figures,) = trainer.test(model, datamodule=data, verbose=False)
    logits, labels = model.predictions["logits"], model.predictions["labels"]
    assert 0 <= logits.min() <= logits.max() <= 1
    # One bin holds all: softmax of 10 numbers in 0 … 1 is at most e / (e + 9).
    confidence = logits.double().softmax(1).amax(1)
    edges = torch.linspace(0, 1, 16, dtype=torch.float64)
    expected = 0.0
    for low, high in pairwise(edges):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            right = (logits.argmax(1) == labels)[inside].double()
            expected += abs(float((right - confidence[inside]).sum())) / len(labels)
    assert figures["test/ece"] == pytest.approx(expected, abs=1e-6)


def test_a_test_computes_in_float32(build):
    data, model, trainer = build("trainer.precision=bf16-mixed")
    trainer.test(model, datamodule=data, verbose=False)
    logits = model.predictions["logits"]
    assert not torch.equal(logits, logits.bfloat16().float())
    data, model, trainer = build("trainer.precision=32-true")
    trainer.test(model, datamodule=data, verbose=False)
    assert torch.equal(model.predictions["logits"], logits)


def test_a_test_without_numbers_is_none(build):
    data, model, trainer = build()
    model.net.head.weight.data[3] = float("inf")
    with pytest.raises(Diverged, match="no finite logits"):
        trainer.test(model, datamodule=data, verbose=False)


def test_sums_keep_float32_under_autocast():
    losses = [torch.tensor(2.302585), torch.tensor(1.234567)]
    batches = [(loss, torch.tensor(3), 100) for loss in losses]
    expected = 100 * (2.302585 + 1.234567)
    with torch.autocast("cpu", torch.bfloat16):
        assert float(_sums(batches)[0]) == pytest.approx(expected, rel=1e-6)
