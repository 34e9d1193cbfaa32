"""A run's panel of the page: its answer on a picture, the evidence, its mistakes.

Near are two pictures whose features have a small angle: the features are what the last
linear layer reads, their cosine is 1 where they point the same way.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnet_se.config.build import run_data
from resnet_se.config.recipe import Recipe
from resnet_se.data.image_set import DataNotFound
from resnet_se.inference.pretrained import Pretrained
from resnet_se.models.resnet import ResNet
from resnet_se.models.se_gates import gate_values, grad_cam, stages
from resnet_se.runs import bundle
from resnet_se.runs.record import unpack_labels
from resnet_se.utils.errors import UserError

MAPS = 3  # classes whose evidence is shown
NAMED = 12  # classes that are named before the first picture
NEAREST = 6  # mistakes beside a picture
BATCH = 256


class TestSet(NamedTuple):
    """A test set: uint8 images (N, 3, H, W), labels (N,), and whose it is."""

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    fingerprint: str


class Mistake(NamedTuple):
    """A test image (3, H, W) that the network gets wrong; `cosine`: how near."""

    image: Tensor
    label: str
    predicted: str
    cosine: float = float("nan")


class Answer(NamedTuple):
    """A network's answer on a picture.

    `chances` {class: probability} of all classes; `maps` (class, (H, W) in 0..1) of the
    most probable ones; `gates` a list of stages, of blocks (C,); `nearest` mistakes,
    the nearest first.
    """

    chances: dict[str, float]
    picture: Tensor  # uint8 (3, H, W), as the network sees it
    maps: list[tuple[str, Tensor]]
    gates: list[list[Tensor]]
    nearest: list[Mistake]


def find_test_set(models: Sequence[Pretrained]) -> tuple[TestSet | None, str]:
    """Return the test set of the first run whose data are here; else None, and why.

    Of a bundle none: it brings no data, and an untrusted target is not called.
    """
    reason = "a bundle brings no data"
    for model in models:
        if bundle.is_bundle(model.source):
            continue
        recipe = Recipe(model.config)
        try:
            data = run_data(model.source, model.fingerprint, recipe=recipe)
        except (UserError, OSError) as error:
            print(f"note: no test images: {error}", file=sys.stderr)
            lost = isinstance(error, DataNotFound)
            reason = "its data are not here" if lost else "its data cannot be used"
            reason += "; the terminal says why"
            continue
        images, labels = data.test_part
        return TestSet(images, labels, data.images.classes, model.fingerprint), ""
    return None, reason


class ModelPanel:
    """A network, and its mistakes in the test set where that is at hand."""

    def __init__(self, model: Pretrained, tests: TestSet | None):
        self.model = model
        self.mistakes: list[Mistake] = []
        self.places = torch.empty(0)  # of the mistakes, unit vectors (M, F)
        if tests is not None and tests.fingerprint == model.fingerprint:
            self._find_mistakes(tests)

    @property
    def title(self) -> str:
        """The experiment and the directory or bundle."""
        return f"{self.model.experiment}, {self.model.source.resolve().name}"

    @property
    def facts(self) -> str:
        """One line on what is known of it."""
        record = self.model.record or {}
        facts = []
        if acc := (record.get("test") or {}).get("acc"):
            facts.append(f"{acc:.2%} of the test set right")
        if total := (record.get("model") or {}).get("total"):
            facts.append(f"{total:,} parameters")
        if self.model.note:
            facts.append("not finished")
        return ", ".join(facts)

    @property
    def classes(self) -> str:
        """One line on what it can tell apart."""
        names = self.model.classes
        more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
        return f"It knows {len(names):,} classes: {', '.join(names[:NAMED])}{more}"

    @torch.no_grad()  # no inference mode: Grad-CAM needs ordinary tensors
    def answer(self, picture: Tensor) -> Answer:
        """Return the answer on a picture, uint8 (3, H, W)."""
        model = self.model
        x = model.preprocess(picture[None].to(model.mean.device))  # (1, 3, H, W)
        features, logits = _features(model.net, x)
        chances, order = logits[0].softmax(0).sort(descending=True, stable=True)
        names = [model.classes[i] for i in order.tolist()]
        top = order[:MAPS]
        maps = grad_cam(model.net, x.expand(len(top), -1, -1, -1), self._layer, top)
        return Answer(
            dict(zip(names, chances.tolist(), strict=True)),
            picture,
            list(zip(names, maps.cpu(), strict=False)),
            self._gates(x),
            self._nearest(features[0], picture),
        )

    @property
    def _layer(self) -> str:
        """The last feature maps, whose places are still places of the picture."""
        if isinstance(self.model.net, ResNet):
            return "blocks"
        named = self.model.net.named_modules()
        return [name for name, m in named if isinstance(m, nn.Conv2d)][-1]

    def _gates(self, x: Tensor) -> list[list[Tensor]]:
        try:
            values = gate_values(self.model.net, [x])
        except UserError:  # no SE blocks
            return []
        parts = stages(self.model.net)
        return [[values[name][0] for name in stage.gates] for stage in parts]

    def _nearest(self, features: Tensor, picture: Tensor) -> list[Mistake]:
        """Without the picture itself, which may be one of them."""
        if not self.mistakes:
            return []
        cosines = self.places @ F.normalize(features, dim=0).cpu()
        values, order = cosines.topk(min(NEAREST + 1, len(cosines)))
        pairs = zip(order.tolist(), values.tolist(), strict=True)
        near = [self.mistakes[i]._replace(cosine=cosine) for i, cosine in pairs]
        return [m for m in near if not torch.equal(m.image, picture)][:NEAREST]

    @torch.inference_mode()
    def _find_mistakes(self, tests: TestSet) -> None:
        places = []
        for batch in _candidates(self.model, tests).split(BATCH):
            x = self.model.preprocess(tests.images[batch].to(self.model.mean.device))
            features, logits = _features(self.model.net, x)
            predicted = logits.argmax(1).cpu()
            wrong = predicted != tests.labels[batch]
            places.append(F.normalize(features.cpu()[wrong]))
            for i, guess in zip(batch[wrong], predicted[wrong], strict=True):
                label = tests.classes[tests.labels[i]]
                self.mistakes.append(
                    Mistake(tests.images[i], label, tests.classes[guess])
                )
        self.places = torch.cat(places) if places else self.places


def _candidates(model: Pretrained, tests: TestSet) -> Tensor:
    """Return the test images that may be wrong: by the record, or else all."""
    test = (model.record or {}).get("test") or {}
    if "predicted" in test:
        labels, predicted = map(unpack_labels, (test["labels"], test["predicted"]))
        if torch.equal(torch.from_numpy(labels), tests.labels):
            return torch.from_numpy(labels != predicted).nonzero()[:, 0]
    return torch.arange(len(tests.labels))


def _features(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the last linear layer's inputs (B, F), and the logits (B, K)."""
    inputs: list[Tensor] = []
    linear = [module for module in net.modules() if isinstance(module, nn.Linear)]
    hooks = [
        m.register_forward_pre_hook(lambda _, x: inputs.append(x[0])) for m in linear
    ]
    try:
        logits = net(x).float()
    finally:
        for hook in hooks:
            hook.remove()
    return (inputs[-1].flatten(1).float() if inputs else logits), logits
