"""Laws of the checks: what passes, what never does, and in what order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf, open_dict
from pydantic import Field
from torch import nn

from resnet_se.config import CONF, build
from resnet_se.config.build import (
    build_module,
    build_network,
    build_optimizer,
    build_target,
    saved_run,
)
from resnet_se.config.compose import plain_values
from resnet_se.config.messages import EXPECTED
from resnet_se.config.schema import TARGET_SLOTS
from resnet_se.config.targets import check_kind
from resnet_se.config.validate import validate
from resnet_se.models.resnet import ResNet
from resnet_se.runs.record import read_result
from resnet_se.utils import validation
from resnet_se.utils.errors import UserError
from resnet_se.utils.validation import Count, Unit, check_value, validated
from tests.conftest import Run, call

EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
HARMFUL = (
    "pathlib.Path.write_text",
    "torch.load",
    "os.system",
    "builtins.exec",
    "torch.hub.load",
    "torch.utils.cpp_extension.load",
    "resnet_se.utils.files.Path.write_text",
    "resnet_se.config.build.torch.load",
    "resnet_se.utils.files.atomic_file",
    "hydra.utils.instantiate",
    "hydra.utils.get_class",
)


@pytest.fixture
def composed() -> Any:
    """Composes as `train` does; Hydra's own part stands in `HydraConfig`."""

    def with_overrides(*overrides: str) -> DictConfig:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("train", list(overrides), return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
        with open_dict(cfg):
            del cfg.hydra
        return cfg

    yield with_overrides
    HydraConfig.instance().cfg = None


# --- what passes -------------------------------------------------


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_passes(composed, experiment):
    cfg = composed(f"experiment={experiment}")
    before = OmegaConf.to_container(cfg)
    recipe = validate(cfg)
    assert OmegaConf.to_container(cfg) == before  # nothing is written to it
    assert recipe.values == plain_values(cfg)  # no preset was replaced


@pytest.mark.parametrize(
    "group", ["optimizer", "scheduler", "mixing", "tta", "augment"]
)
def test_every_choice_passes(composed, group):
    for path in sorted((CONF / group).glob("*.yaml")):
        validate(composed(f"{group}={path.stem}"))


@pytest.mark.parametrize(
    ("target", "more"),
    [
        ("timm.create_model", ("+model.model_name=resnet10t",)),
        ("torchvision.models.resnet18", ()),
        ("torchvision.models.mobilenet_v3_small", ("+model.width_mult=0.5",)),
    ],
)
def test_a_network_of_a_named_package_replaces_a_preset(composed, target, more):
    cfg = composed(f"model._target_={target}", *more)
    recipe = validate(cfg)
    net = build_network(recipe["model"], 7)
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


def test_an_optimizer_class_replaces_a_preset(composed):
    cfg = composed("optimizer._target_=torch.optim.NAdam", "optimizer.lr=0.25")
    node = validate(cfg)["optimizer"]
    assert "cls" not in node  # of the preset
    optimizer = build_optimizer(node, node["lr"])(nn.Linear(2, 2))
    assert type(optimizer) is torch.optim.NAdam
    assert optimizer.param_groups[0]["lr"] == 0.25
    assert isinstance(optimizer.param_groups[0]["betas"], list | tuple)


def test_another_class_of_optimizer_drops_what_it_does_not_take(composed):
    cfg = composed("optimizer.cls.path=torch.optim.NAdam")
    node = validate(cfg)["optimizer"]
    assert "fused" not in node
    assert node["eps"] == 1e-7  # NAdam takes it
    typed = composed("optimizer.cls.path=torch.optim.NAdam", "optimizer.fused=true")
    with pytest.raises(UserError, match=r"optimizer\.fused: NAdam has no such"):
        validate(typed)


# --- what never passes -------------------------------------------


@pytest.mark.parametrize("place", [p for p in TARGET_SLOTS if p != "optimizer.cls"])
@pytest.mark.parametrize("target", HARMFUL)
def test_nothing_harmful_passes_anywhere(place, target, monkeypatch):
    monkeypatch.setattr("resnet_se.config.targets.instantiate", _never)
    node = OmegaConf.create({"_target_": target})
    with pytest.raises(UserError, match="expected"):
        build_target(place, node)
    with pytest.raises(UserError, match="expected"):  # nor deeper in it
        build_target(place, OmegaConf.create({"_target_": "nn", "x": [node]}))


def _never(*_: Any, **__: Any) -> None:
    raise AssertionError("called before it was checked")


@pytest.mark.parametrize(
    ("name", "instead"),
    {
        "LearningRateFinder": "hparams_search=optuna",
        "BatchSizeFinder": "data.batch_size",
        "BackboneFinetuning": "init_from",
    }.items(),
)
def test_callbacks_that_cannot_work_here_name_what_does(name, instead):
    node = OmegaConf.create({"_target_": f"lightning.pytorch.callbacks.{name}"})
    with pytest.raises(UserError, match=f"{name} does not work here.*{instead}"):
        check_kind("callbacks.x", node)


def test_each_place_refuses_the_kind_of_another():
    kinds = {
        "model": "torch.nn.Linear",
        "data.source": "resnet_se.data.synthetic.Synthetic",
        "mixing": "resnet_se.training.mixing.Mixing",
        "tta": "resnet_se.models.tta.TTA",
        "scheduler": "resnet_se.training.schedules.Schedule",
        "callbacks.x": "lightning.pytorch.callbacks.Timer",
        "logger.x": "lightning.pytorch.loggers.CSVLogger",
        "trainer": "lightning.Trainer",
    }
    for place in kinds:
        for other, target in kinds.items():
            node = OmegaConf.create({place: {"_target_": target}})[place]
            if other == place:
                check_kind(place, node)
            else:
                with pytest.raises(UserError, match="expected"):
                    check_kind(place, node)


def test_a_module_of_the_standard_library_is_not_even_imported():
    import sys

    sys.modules.pop("this", None)  # importing it prints
    node = OmegaConf.create({"_target_": "this.Net"})
    with pytest.raises(UserError, match="expected a network"):
        build_target("model", node)
    assert "this" not in sys.modules


def test_there_is_one_way_from_a_target_to_an_object():
    package = Path(build.__file__).parent
    users = {
        path.name
        for path in package.rglob("*.py")
        if "import instantiate" in path.read_text()
    }
    assert users == {"targets.py"}


# --- an untrusted run directory -----------------------------------


@pytest.fixture
def stranger(finished: Run, tmp_path: Path) -> Callable[..., Path]:
    """A copy of a finished run with another configuration in it."""
    import shutil

    def with_config(change: Callable[[DictConfig], None]) -> Path:
        folder = tmp_path / "stranger"
        shutil.copytree(finished.folder, folder)
        cfg = OmegaConf.load(folder / "config.yaml")
        assert isinstance(cfg, DictConfig)
        change(cfg)
        OmegaConf.save(cfg, folder / "config.yaml")
        return folder

    return with_config


WRITE = {"_target_": "pathlib.Path.write_text", "self": "x", "data": "x"}


@pytest.mark.parametrize("place", ["model", "data.source", "tta", "data.fallback"])
def test_evaluate_calls_nothing_of_an_untrusted_run(stranger, capsys, tmp_path, place):
    folder = stranger(lambda cfg: OmegaConf.update(cfg, place, WRITE, merge=False))
    assert call(tmp_path, "evaluate", f"run={folder}") == 2
    error = capsys.readouterr().err
    assert f"error: {place}._target_: expected" in error
    assert "Traceback" not in error


@pytest.mark.parametrize("place", ["mixing", "optimizer", "scheduler", "augment"])
def test_evaluate_builds_only_what_it_needs(stranger, capsys, tmp_path, place):
    folder = stranger(lambda cfg: OmegaConf.update(cfg, place, WRITE, merge=False))
    assert call(tmp_path, "evaluate", f"run={folder}") == 0


# --- hints -------------------------------------------------------


@given(st.floats() | st.integers() | st.text() | st.booleans() | st.none())
def test_a_range_is_held_and_no_other_type_passes(value):
    number = isinstance(value, int | float) and not isinstance(value, bool)
    try:
        check_value("x", value, Unit)
    except UserError as error:
        assert str(error).startswith("x: expected 0..1, got ")  # noqa: PT017
        assert not (number and 0 <= value <= 1)
    else:
        assert number
        assert 0 <= value <= 1


def test_the_item_of_a_list_is_named():
    with pytest.raises(UserError, match=r"x\[1\]: expected an integer >= 1, got 0"):
        check_value("x", [1, 0], Sequence[Count] | None)
    check_value("x", None, Sequence[Count] | None)
    check_value("x", (1, 2), Sequence[Count])


def test_what_only_code_can_give_is_no_alternative():
    check_value("x", [0.9, 0.999], tuple[float | torch.Tensor, float | torch.Tensor])
    with pytest.raises(UserError, match="expected a number, got 'fast'"):
        check_value("x", "fast", float | torch.Tensor)
    check_value("x", object(), nn.Module)  # not ours to judge


def test_a_constructor_meets_its_hints():
    class Net:
        @validated
        def __init__(self, size: Count, kind: Literal["avg", "max"] = "avg", **_: int):
            self.size = size

    assert Net(3, other=-1).size == 3
    with pytest.raises(UserError, match=r"^size: expected an integer >= 1, got 2.5"):
        Net(2.5)
    with pytest.raises(UserError, match="did you mean 'max'"):
        Net(1, kind="mux")
    with pytest.raises(TypeError):  # a missing argument stays Python's to say
        Net()


def test_ranges_in_words():
    for hint, words in {
        Annotated[int, Field(ge=0, le=16)]: "an integer 0..16",
        Annotated[float, Field(gt=0, lt=1)]: "a number > 0 and < 1",
        Count | None: "an integer >= 1 or null",
        Literal["a", False]: "one of a, false",
        Sequence[str]: "a list, each a text",
    }.items():
        with pytest.raises(UserError, match=f"x: expected {words}, got"):
            check_value("x", {}, hint)


# --- readers never end in a traceback ----------------------------

LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
ANYTHING = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text("abc_$.{}", max_size=6), inner, max_size=3)
    ),
    max_leaves=8,
)
SMALL = settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
LARGE = settings(SMALL, max_examples=10_000)


def _record(tmp_path: Path, finished: Run, data: st.DataObject) -> None:
    import json

    record = dict(finished.result)
    keys = st.sampled_from([*record, "error"])
    record[data.draw(keys)] = data.draw(ANYTHING)
    (tmp_path / "result.json").write_text(json.dumps(record))
    try:
        read_result(tmp_path)
    except EXPECTED as error:
        assert str(tmp_path) in str(error)  # noqa: PT017


def _configuration(tmp_path: Path, finished: Run, data: st.DataObject) -> None:
    import yaml

    plain = yaml.safe_load((finished.folder / "config.yaml").read_text())
    place = data.draw(st.sampled_from([*plain, "model.depths", "data.source", "."]))
    value = data.draw(ANYTHING)
    if place == ".":
        plain = value
    else:
        group, _, key = place.partition(".")
        if key:
            plain[group][key] = value
        else:
            plain[group] = value
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(plain))
    try:
        recipe = saved_run(tmp_path)
        with torch.device("meta"):
            build_module(recipe, 10, training=False)
    except EXPECTED as error:
        assert str(error)  # noqa: PT017


@SMALL
@given(st.data())
def test_any_record_is_read_or_refused(tmp_path, finished, data):
    _record(tmp_path, finished, data)


@SMALL
@given(st.data())
def test_any_configuration_is_read_or_refused(tmp_path, finished, data):
    _configuration(tmp_path, finished, data)


@pytest.mark.soak
@LARGE
@given(st.data())
def test_ten_thousand_records(tmp_path, finished, data):
    _record(tmp_path, finished, data)


@pytest.mark.soak
@LARGE
@given(st.data())
def test_ten_thousand_configurations(tmp_path, finished, data):
    _configuration(tmp_path, finished, data)


def test_a_class_that_is_checked_again_leaves_nothing_behind():
    """Annotations are texts: each reading makes new hints, and so new validators."""
    sizes = []
    for _ in range(3):
        for name, hint in validation.hints_of(ResNet).items():
            if name == "reduction":
                validation.check_value(name, 4, hint)
            validation.configurable_hint(hint)
        sizes.append(validation.configurable_hint.cache_info().currsize)
    assert sizes[0] == sizes[2]
