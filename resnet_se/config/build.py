"""Building: finished objects from a recipe.  Nothing takes a configuration after it."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from torch import nn

from resnet_se.config.recipe import Recipe, check_saved, load_recipe
from resnet_se.config.targets import (
    build_network,
    build_target,
    located,
    signature_of,
)
from resnet_se.data.augmentation.pipeline import Augmentation
from resnet_se.data.datamodule import ImageDataModule
from resnet_se.data.decode import decoders_differ
from resnet_se.data.image_set import DataNotFound, DatasetInfo
from resnet_se.models.layers import sync_batchnorm
from resnet_se.runs.record import read_result
from resnet_se.training.callbacks.checkpointing import CheckpointFiles
from resnet_se.training.callbacks.sam import SAM
from resnet_se.training.loggers import sweep_group
from resnet_se.training.loop import Job
from resnet_se.training.metrics import direction
from resnet_se.training.mixing import Mixing
from resnet_se.training.module import Classifier, Criterion, cross_entropy
from resnet_se.training.param_groups import make_optimizer, set_mode
from resnet_se.utils import distributed
from resnet_se.utils.errors import UserError

if TYPE_CHECKING:
    from resnet_se.config.settle import Run


# --- network, optimizer, schedule --------------------------------


def build_optimizer(
    node: Any, lr: float
) -> Callable[[nn.Module], torch.optim.Optimizer]:
    """A function from network to optimizer: `make_optimizer`, or a class alone."""
    make = build_target("optimizer", node, lr=lr, _partial_=True)
    if isinstance(make.func, type):
        return functools.partial(make_optimizer, cls=make.func, **make.keywords)
    return make


def rehearse(recipe: Recipe) -> None:
    """Build mixing and TTA, and step an optimizer with its schedule on three layers.

    Raises:
        UserError: what they refuse; so it shows before the data are read.
    """
    build_target("mixing", recipe["mixing"])
    if recipe["tta"]:
        build_target("tta", recipe["tta"])
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    node = recipe["optimizer"]
    optimizer = build_optimizer(node, node["lr"])(net)
    make_schedule = build_target("scheduler", recipe["scheduler"], _partial_=True)
    make_schedule(optimizer, 1, recipe.trainer["max_epochs"])
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    set_mode(optimizer, training=True)
    name = type(optimizer).__name__
    try:
        optimizer.step(closure=lambda: 0.0)
    except Exception as error:
        hint = "; Lightning hands every step its closure" * ("closure" in str(error))
        raise UserError(f"optimizer: {name}: {error}{hint}") from error


def build_module(
    recipe: Recipe,
    num_classes: int,
    training: bool = True,
    criterion: Criterion = cross_entropy,
) -> Classifier:
    """Network, loss, optimizer, schedule, mixing and TTA as one LightningModule.

    Args:
        training: else network and TTA alone, all that a test needs.

    Raises:
        UserError: `model.num_classes` is set and is not the data's.
    """
    asked = recipe["model"].get("num_classes", num_classes)
    if asked != num_classes:
        raise UserError(
            f"model.num_classes: the data have {num_classes} classes, got {asked}"
        )
    L.seed_everything(recipe["seed"], workers=True, verbose=False)
    net = build_network(recipe["model"], num_classes)
    tta = build_target("tta", recipe["tta"]) if recipe.get("tta") else None
    if not training:
        return Classifier(net, None, None, num_classes, Mixing(), tta, recipe["seed"])
    if not any(p.requires_grad for p in net.parameters()):
        raise UserError(f"model: {type(net).__name__} has no parameters to train")
    lr = recipe["optimizer"]["lr"]
    if recipe.trainer.get("scale_lr"):  # Goyal et al. 2017, arXiv 1706.02677
        lr *= distributed.world_size()
    return Classifier(
        net,
        build_optimizer(recipe["optimizer"], lr),
        build_target("scheduler", recipe["scheduler"], _partial_=True),
        num_classes,
        build_target("mixing", recipe["mixing"]),
        tta,
        recipe["seed"],
        criterion=criterion,
    )


# --- data --------------------------------------------------------


def build_datamodule(recipe: Recipe, training: bool = True) -> ImageDataModule:
    """The data module of a recipe; reads nothing yet.

    Args:
        training: else without augmentation: no part of `augment` is built.
    """
    # Partial: Hydra would turn the dataclass into a configuration again.
    make = build_target("data", recipe["data"], _partial_=True)
    augment = build_target("augment", recipe["augment"]) if training else Augmentation()
    if not isinstance(augment, Augmentation):  # a transform alone, of one's own
        augment = Augmentation(own=augment)
    # A typed batch size is meant; a preset's may give way to a small set.
    exact = "data.batch_size" in recipe.typed_keys
    epochs = recipe.trainer.get("max_epochs") or 1
    return make(
        augment=augment, seed=recipe["seed"], exact_batch_size=exact, epochs=epochs
    )


def run_data(
    run_dir: Path,
    fingerprint: str | None = None,
    training: bool = False,
    recipe: Recipe | None = None,
) -> ImageDataModule:
    """The data of a run that has been trained, read, found by their content.

    They are looked for where they were and, if they have moved, below RESNET_SE_DATA;
    what is neither is downloaded, where the run may.  Never a fallback.

    Args:
        fingerprint: of the pixels it was trained on, where they must be the same.
        training: as `build_datamodule`.
        recipe: the run's, where it has been read.

    Raises:
        UserError: no run directory, the data are not there, or are others.
    """
    recipe = recipe or load_recipe(run_dir)
    problems: list[UserError] = []
    for source in _places(recipe["data"]["source"]):
        recipe = recipe.replaced("data", source=source, fallback=None)
        data = build_datamodule(recipe, training)
        try:
            data.setup()
        except UserError as error:
            problems.append(error)
            continue
        found = data.images.fingerprint
        if not fingerprint or found == fingerprint:
            return data
        problems.append(
            UserError(
                f"{run_dir}: trained on data with fingerprint {fingerprint}, these "
                f"have {found}{_how_they_differ(run_dir, data.images)}"
            )
        )
    # Others' data say more than none.
    raise next((p for p in problems if not isinstance(p, DataNotFound)), problems[-1])


def _how_they_differ(run_dir: Path, found: DatasetInfo) -> str:
    """Return the end of a sentence on a run's data and others: order, or decoder."""
    then = (read_result(run_dir) or {}).get("data") or {}
    if then.get("set_fingerprint") == found.set_fingerprint:
        return (
            f"; the same images in another order ({then.get('order')}, {found.order})"
        )
    return decoders_differ(then.get("decoder"))


def _places(source: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """A saved source, the same below RESNET_SE_DATA, and with leave to download."""
    moved = os.environ.get("RESNET_SE_DATA")
    if "root" not in source:
        return [source]
    places: list[Mapping[str, Any]] = [dict(source)]
    if moved and Path(moved).resolve() != Path(source["root"]).resolve():
        places.append({**source, "root": moved})
    if not source.get("download"):
        return places
    # Nothing is downloaded that lies in the next place.
    return [{**place, "download": False} for place in places] + [source]


# --- trainer -----------------------------------------------------


def build_trainer(
    recipe: Recipe, run_name: str = "", precision: str | None = None, **more: Any
) -> L.Trainer:
    """Lightning's Trainer with the configured callbacks and loggers.

    Args:
        run_name: what checkpoints say of whose they are.
        precision: in place of the recipe's.
        more: other arguments of the Trainer.

    Raises:
        UserError: a callback monitors a metric that is never logged; gradients cannot
            be clipped as they should.
    """
    options = dict(recipe.trainer)
    precision = precision or str(options["precision"])
    callbacks = [
        build_target(f"callbacks.{name}", _directed(f"callbacks.{name}", node))
        for name, node in recipe["callbacks"].items()
        if node is not None
    ]
    for callback in callbacks:
        if isinstance(callback, SAM):
            accumulate = options.get("accumulate_grad_batches", 1)
            callback.check_trainer(accumulate, precision)
    mixed = precision.endswith("-mixed")
    if mixed and options.get("gradient_clip_val") and recipe["optimizer"].get("fused"):
        raise UserError(
            f"trainer.gradient_clip_val: Lightning does not clip for a fused optimizer "
            f"at precision {precision}; add optimizer.fused=false"
        )
    loggers = [
        build_target(f"logger.{name}", _grouped(f"logger.{name}", node, recipe.sweep))
        for name, node in (recipe.get("logger") or {}).items()
        if node is not None
    ]
    for key in ("compile", "scale_lr"):  # read elsewhere
        options.pop(key, None)
    if distributed.on_cpu(recipe.trainer):
        options.pop("sync_batchnorm", None)  # ours, see `layers.sync_batchnorm`
    options |= {"precision": precision, **more}
    return build_target(
        "trainer",
        options,
        callbacks=callbacks,
        logger=loggers or False,
        plugins=[CheckpointFiles(run_name)],
    )


def _directed(path: str, node: Mapping[str, Any]) -> Mapping[str, Any]:
    """The node of a callback with the `mode` of the metric that it monitors.

    Raises:
        UserError: no metric of a training, or a mode that is not its own.
    """
    if not isinstance(node, Mapping) or node.get("monitor") is None:
        return node
    mode = direction(node["monitor"], node.get("mode"), path)
    return {**node, "mode": mode} if _takes(path, node, "mode") else node


def _grouped(path: str, node: Mapping[str, Any], sweep: Path | None) -> Any:
    """The node of a logger with the group that the jobs of a sweep share."""
    if sweep is None or node.get("group") or not _takes(path, node, "group"):
        return node
    return {**node, "group": sweep_group(sweep)}


def _takes(path: str, node: Mapping[str, Any], argument: str) -> bool:
    """Return True where the node's target has an argument of that name."""
    target = located(f"{path}._target_", node["_target_"])
    try:
        return argument in signature_of(target, node).parameters
    except (TypeError, ValueError):  # Python cannot tell
        return False


# --- the whole ---------------------------------------------------


def build(run: Run, criterion: Criterion = cross_entropy) -> Job:
    """All that a training needs, from a run whose data have been read.

    Raises:
        UserError: parts that do not fit each other, the data or the machine.
    """
    recipe = run.recipe.at(run.directory.resolve())
    trainer = build_trainer(recipe, run.name)
    module = build_module(recipe, run.data.num_classes, criterion=criterion)
    on_cpu = trainer.strategy.root_device.type == "cpu"
    if recipe.trainer.get("sync_batchnorm") and on_cpu:
        sync_batchnorm(module.net)
    return Job(
        name=run.name,
        directory=run.directory,
        module=module,
        data=run.data,
        trainer=trainer,
        learning_rate=recipe["optimizer"]["lr"],
        scale_lr=bool(recipe.trainer.get("scale_lr")),
        compile_mode=recipe.trainer.get("compile") or "off",  # YAML's off is false
        ckpt_path=_path(recipe.get("ckpt_path")),
        init_from=_path(recipe.get("init_from")),
        hyperparameters=run.recipe.values,
    )


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None


def saved_run(run_dir: Path) -> Recipe:
    """The recipe of a run directory, with the parts checked that its readers build."""
    recipe = load_recipe(run_dir)
    check_saved(recipe)
    return recipe
