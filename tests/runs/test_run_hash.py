"""The hash's promise: same hash, same result; what can change the result is in it.

And what the directory of a run is called by it: earlier versions, other commits.
"""

from __future__ import annotations

import copy
import json
import shutil
import sys
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir

from resnet_se.commands.record import difference
from resnet_se.config import CONF, settle
from resnet_se.config.build import build_datamodule
from resnet_se.config.compose import plain_values
from resnet_se.config.recipe import RUN_DIR, load_recipe, saved_config
from resnet_se.config.schema import HASH_RULES
from resnet_se.config.settle import resolve_precision
from resnet_se.config.targets import value_below
from resnet_se.runs.run_hash import (
    Environment,
    canonical,
    config_hash,
    hashed_config,
    own_sources,
)
from tests.conftest import TINY, recipe_of

HERE = Environment("pixels", "32-true", 1)


def setting(plain: dict[str, Any], facts: Environment) -> dict[str, Any]:
    return hashed_config(plain, facts, HASH_RULES)


DDP = ("trainer=ddp", "trainer.accelerator=cpu")


@pytest.fixture(scope="module")
def plain() -> Callable[..., dict[str, Any]]:
    """The tiny configuration with further overrides, as plain values."""

    def call(*overrides: str) -> dict[str, Any]:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return plain_values(compose("train", [*TINY, *overrides]))

    return call


@pytest.fixture(scope="module")
def kept(plain) -> Callable[..., dict[str, Any]]:
    """The setting that such a configuration has under some facts."""
    return lambda *overrides, facts=HERE: setting(plain(*overrides), facts)


@pytest.fixture(scope="module")
def base(kept) -> dict[str, Any]:
    return kept()


def shuffled(node: Any) -> Any:
    """The same mappings with their keys the other way round."""
    if isinstance(node, dict):
        return {key: shuffled(node[key]) for key in reversed(node)}
    return node


# --- what it does not depend on ----------------------------------


def test_the_order_of_keys(plain, base):
    turned = shuffled(plain())
    assert list(turned) != list(plain())
    assert config_hash(setting(turned, HERE)) == config_hash(base)


def test_the_module_that_something_of_ours_stands_in(plain, base):
    text = json.dumps(plain())
    for room in ("models.resnet", "data.datamodule", "training.mixing"):
        assert f'"resnet_se.{room}.' in text
        text = text.replace(f'"resnet_se.{room}.', '"resnet_se.another.room.')
    assert config_hash(setting(json.loads(text), HERE)) == config_hash(base)


WATCHING = {
    "workers": ("data.num_workers=3",),
    "seed": ("seed=7",),  # stands in the directory's name
    "place": ("runs_dir=elsewhere",),
    "run directory": ("run_dir=elsewhere/seed0",),
    "loggers": ("logger=many", "+trainer.profiler=simple"),
    "words": ("tags=[a]", "+notes.why=x", "plots=true"),
    "comparison": ("+against=[{experiment: e01, question: q}]", "noise_family=few"),
    "sweep": ("fail_fast=true", "launcher.jobs=4"),
    "speed": ("trainer.compile=default", "optimizer.fused=false"),
    "pace of logging": ("trainer.log_every_n_steps=1",),
    "devices by another word": ("trainer.devices=auto", "trainer.accelerator=auto"),
    "precision by another word": ("trainer.precision=auto",),
    "no progress": ("callbacks.progress=null",),
    "checkpoints": ("+callbacks.checkpoint.every_n_steps=5",),
    "norms": ("+callbacks.norm._target_=resnet_se.training.loggers.GradientNorm",),
    "a watcher of Lightning's in the run directory": (
        "+callbacks.mine._target_=lightning.pytorch.callbacks.ModelCheckpoint",
        "+callbacks.mine.dirpath=${run_dir}/mine",
    ),
    "another source of the same pixels": ("data.source.seed=1",),  # says `HERE`
    "one rank": (*DDP, "trainer.devices=1", "trainer.scale_lr=true"),
    "batchnorm of one rank": (*DDP, "trainer.devices=1", "trainer.sync_batchnorm=true"),
}  # fmt: skip


@pytest.mark.parametrize("what", WATCHING)
def test_what_cannot_change_the_result(kept, base, what):
    assert difference(base, kept(*WATCHING[what])) == {}


def test_a_configuration_that_was_written_and_read(plain, tmp_path):
    run_dir = tmp_path / "moved/seed0-1"
    run_dir.mkdir(parents=True)
    before = plain("+callbacks.mine={_target_: mine.Callback, path: '${run_dir}/mine'}")
    (run_dir / "config.yaml").write_text(yaml.safe_dump(before, sort_keys=False))
    assert saved_config(run_dir) == before
    assert before["callbacks"]["mine"]["path"] == f"{RUN_DIR}/mine"
    assert load_recipe(run_dir)["callbacks"]["mine"]["path"] == f"{run_dir}/mine"


def test_every_target_of_conf_has_a_canonical_name_of_its_own():
    def targets(node: Any) -> set[str]:
        if isinstance(node, dict):
            own = {node["_target_"]} if "_target_" in node else set()
            return own.union(*map(targets, node.values()))
        return set().union(*map(targets, node)) if isinstance(node, list) else set()

    texts = [path.read_text() for path in CONF.rglob("*.yaml")]
    every = set().union(*(targets(yaml.safe_load(text)) for text in texts))
    assert len(every) > 15
    assert len({canonical(target) for target in every}) == len(every)
    assert canonical("resnet_se.models.resnet.ResNet") == "resnet_se:ResNet"
    assert canonical("torch.optim.Adam") == "torch.optim.Adam"


def test_settings_that_came_later_do_nothing_unless_used(plain, base):
    whole = plain()
    for key, off in HASH_RULES.idle.items():
        assert key not in base
        earlier, changed = copy.deepcopy(whole), copy.deepcopy(whole)
        group, _, name = key.rpartition(".")
        nodes = [value_below(p, group) if group else p for p in (earlier, changed)]
        assert nodes[0].pop(name) == off
        assert setting(earlier, HERE) == base
        nodes[1][name] = "on"
        assert set(difference(base, setting(changed, HERE))) == {key}


# --- what it depends on ------------------------------------------

CHANGES = {
    "model.dropout=0.1": "model.dropout",
    "model.depths=[1,1,2]": "model.depths",
    "optimizer.lr=0.2": "optimizer.lr",
    "data.batch_size=16": "data.global_batch_size",
    "data.val_fraction=0.2": "data.val_fraction",
    "data.split_seed=1": "data.split_seed",
    "data.train_subset=100": "data.train_subset",
    "data.engine=torchvision": "data.engine",
    "augment.rotation=3": "augment.rotation",
    "mixing.smoothing=0.2": "mixing.smoothing",
    "scheduler.warmup_epochs=1": "scheduler.warmup_epochs",
    "trainer.max_epochs=3": "trainer.max_epochs",
    "trainer.limit_train_batches=2": "trainer.limit_train_batches",
    "+trainer.gradient_clip_val=1": "trainer.gradient_clip_val",
    "+callbacks.checkpoint.monitor=val/acc": "callbacks.checkpoint",
    "callbacks.early_stopping.patience=3": "callbacks.early_stopping.patience",
    "callbacks.early_stopping=null": "callbacks.early_stopping",
    "callbacks.checkpoint=null": "callbacks.checkpoint",
    "+callbacks.mine._target_=mine.Callback": "callbacks.mine",
    "tta.views=[{}]": "tta.views",
}


@pytest.mark.parametrize(("override", "key"), CHANGES.items(), ids=list(CHANGES))
def test_what_can_change_the_result(kept, base, override, key):
    other = kept(override)
    assert config_hash(other) != config_hash(base)
    assert {name for name in difference(base, other) if not name.startswith(key)} == (
        set()
    )


@pytest.mark.parametrize(
    ("facts", "key"),
    [
        (HERE._replace(data="other pixels"), "data.content"),
        (HERE._replace(precision="bf16-mixed"), "precision"),
    ],
)
def test_what_data_and_machine_have_settled(kept, base, facts, key):
    assert set(difference(base, kept(facts=facts))) == {key}


def test_the_world_and_its_global_batch(kept, base):
    four, eight = (kept(*DDP, facts=HERE._replace(world_size=n)) for n in (4, 8))
    assert config_hash(four) != config_hash(eight)
    assert set(difference(four, eight)) == {"world_size", "data.global_batch_size"}
    assert four["data.global_batch_size"] == 4 * 32
    # The same batch in all, yet each rank has its own BatchNorm and dropout.
    half = kept(*DDP, "data.batch_size=16", facts=HERE._replace(world_size=2))
    assert half["data.global_batch_size"] == base["data.global_batch_size"]
    assert config_hash(half) != config_hash(base)


def test_the_rate_in_force(kept):
    pair = HERE._replace(world_size=2)
    scaled = kept(*DDP, "optimizer.lr=0.1", "trainer.scale_lr=true", facts=pair)
    assert scaled["optimizer.lr"] == 0.2
    assert config_hash(scaled) == config_hash(
        kept(*DDP, "optimizer.lr=0.2", facts=pair)
    )
    assert config_hash(scaled) != config_hash(
        kept(*DDP, "optimizer.lr=0.1", facts=pair)
    )


def test_batchnorm_over_several_ranks(kept):
    pair = HERE._replace(world_size=2)
    synced = kept(*DDP, "trainer.sync_batchnorm=true", facts=pair)
    assert config_hash(synced) != config_hash(kept(*DDP, facts=pair))


def test_the_content_of_the_checkpoint_that_training_starts_from(kept, base, tmp_path):
    hashes = []
    for name, content in (("a", b"1"), ("b", b"1"), ("a", b"2")):
        path = tmp_path / f"{name}.ckpt"
        path.write_bytes(content)
        hashes.append(config_hash(kept(f"ckpt_path={path}")))
    assert hashes[0] == hashes[1] != hashes[2]
    assert config_hash(base) not in hashes


# --- parts of one's own ------------------------------------------


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """A module `own_part` and a package `own_room` that can be imported."""
    (tmp_path / "own_part.py").write_text("x = 1\n")
    (tmp_path / "own_room").mkdir()
    (tmp_path / "own_room/__init__.py").write_text("")
    (tmp_path / "own_room/net.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("target", "edited"),
    [("own_part.Net", "own_part.py"), ("own_room.Net", "own_room/net.py")],
)
def test_an_edit_of_ones_own_source_is_another_configuration(
    own_module, kept, target, edited
):
    override = f"+callbacks.mine._target_={target}"
    before, again = kept(override), kept(override)
    assert before == again
    (own_module / edited).write_text("x = 2\n")
    name = f"source of {target.partition('.')[0]}"
    assert set(difference(before, kept(override))) == {name}


def test_what_is_installed_is_no_source_of_ones_own():
    installed = ("torch.optim.Adam", "lightning.Trainer", "json.loads", "no_such.Name")
    assert own_sources([*installed, "resnet_se.models.resnet.ResNet"]) == {}


# --- the precision, settled once ---------------------------------


BF16 = "torch.ops.mkldnn._is_mkldnn_bf16_supported"


def test_every_seed_has_the_precision_that_was_timed_first(monkeypatch, tmp_path):
    monkeypatch.setattr(BF16, lambda: True, raising=False)
    monkeypatch.setenv("RESNET_SE_CACHE", str(tmp_path))
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [*TINY, "trainer.precision=auto"])
    recipe = recipe_of(cfg)
    data = build_datamodule(recipe)
    for seconds in ((2.0, 1.0), (1.0, 2.0)):  # float32, bf16
        monkeypatch.setattr(settle, "step_seconds", lambda *_, s=seconds: s)
        assert resolve_precision(recipe, data) == "bf16-mixed"
    # Another network is timed itself.
    recipe = recipe.replaced("model", widths=[8, 8, 8])
    assert resolve_precision(recipe, data) == "32-true"
    recipe = recipe.replaced("trainer", precision="64-true")
    assert resolve_precision(recipe, data) == "64-true"


def test_without_bf16_in_hardware_nothing_is_timed(monkeypatch, tmp_path):
    monkeypatch.setattr(BF16, lambda: False, raising=False)
    monkeypatch.setenv("RESNET_SE_CACHE", str(tmp_path))
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [*TINY, "trainer.precision=auto"])
    assert (
        resolve_precision(recipe_of(cfg), build_datamodule(recipe_of(cfg))) == "32-true"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("has_bf16", [False, True])
def test_an_emulated_bf16_is_said(has_bf16, monkeypatch, capsys):
    monkeypatch.setattr(BF16, lambda: has_bf16, raising=False)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [*TINY, "trainer.precision=bf16-mixed"])
    assert (
        resolve_precision(recipe_of(cfg), build_datamodule(recipe_of(cfg)))
        == "bf16-mixed"
    )
    assert ("trainer.precision=32-true" in capsys.readouterr().out) is not has_bf16


# --- directories -------------------------------------------------


def test_a_skipped_run_says_that_it_is_of_another_commit(
    finished, train, tmp_path, monkeypatch, capsys
):
    shutil.copytree(finished.folder.parents[1], tmp_path / "runs")
    commits = {"a" * 40, "b" * 40}
    (path,) = tmp_path.glob("runs/*/*/result.json")
    for commit in commits:
        state = {"commit": commit, "dirty": False}
        path.write_text(json.dumps(finished.result | {"git": state}))
        monkeypatch.setattr(
            sys.modules["resnet_se.utils.system"],
            "git_state",
            lambda _: {"commit": "a" * 40, "dirty": False},
        )
        assert train() == 0
        shown = capsys.readouterr().out
        assert "skipped" in shown
        assert ("trained at commit bbbbbbbb" in shown) == (commit[0] == "b")


def test_a_run_saved_before_a_module_moved_is_read_at_its_new_home(tmp_path):
    target = "resnet_se.models.resnet.ResNet"
    old = {"model": {"_target_": "resnet_se.networks.ResNet"}, "callbacks": []}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(old))
    assert load_recipe(tmp_path)["model"]["_target_"] == target
    theirs = {"model": {"_target_": "mynet.ResNet"}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(theirs))
    assert load_recipe(tmp_path)["model"]["_target_"] == "mynet.ResNet"
