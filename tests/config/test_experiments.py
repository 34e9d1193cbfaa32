"""The 22 experiments: headers that hold, comparisons that vary what they say."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from resnet_se.commands.model_table import counts
from resnet_se.config import CONF
from resnet_se.config.compose import plain_values
from resnet_se.config.schema import HASH_RULES
from resnet_se.config.validate import validate

BEYOND = sorted(path.stem for path in CONF.glob("experiment/x*.yaml"))
THE_22 = sorted(path.stem for path in CONF.glob("experiment/e*.yaml"))
ALL = sorted(path.stem for path in CONF.glob("experiment/*.yaml"))
ALIASES = {f"rival_{name}": f"baseline_{name}" for name in ("e14", "resnet18")}
OTHERS = sorted({*ALL} - {*THE_22, *BEYOND, *ALIASES})
FAMILIES = {"sgd_fixed": (1, 11), "sgd_scheduled": (12, 13), "final": (14, 22)}


def composed(name: str, *overrides: str) -> DictConfig:
    cfg = compose("train", [f"experiment={name}", *overrides])
    cfg.run_dir = ""
    return cfg


def settings(cfg: DictConfig) -> dict[str, Any]:
    """{dotted key: value} of what can change a result."""
    flat: dict[str, Any] = {}

    def walk(node: Any, path: str) -> None:
        if isinstance(node, dict):
            for key, value in node.items():
                walk(value, f"{path}.{key}".lstrip("."))
        else:
            flat[path] = node

    walk(plain_values(cfg), "")
    watched = [name for name in HASH_RULES.unhashed if name != "data.batch_size"]
    return {
        key: value
        for key, value in flat.items()
        if not any(key == name or key.startswith(f"{name}.") for name in watched)
    }


Budgets = dict[str, dict[str, DictConfig]]


@pytest.fixture(scope="module")
def configs() -> Budgets:
    """{budget: {experiment: configuration}}"""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return {
            budget: {
                name: composed(name, f"budget={budget}") for name in THE_22 + BEYOND
            }
            for budget in ("paper", "small")
        }


def differences(configs: dict[str, DictConfig], one: str, other: str) -> set[str]:
    a, b = settings(configs[one]), settings(configs[other])
    missing = object()
    return {k for k in a | b if a.get(k, missing) != b.get(k, missing)}


def pairs(configs: dict[str, DictConfig]) -> list[tuple[str, str, str]]:
    """(experiment, the one it is against, question)"""
    return [
        (name, entry.experiment, entry.question)
        for name, cfg in configs.items()
        for entry in cfg.against
    ]


@functools.cache
def _mmac(model: str) -> str:
    return f"{counts(OmegaConf.create(model))['macs'] / 1e6:.1f}"


def mmac(model: DictConfig) -> str:
    return _mmac(OmegaConf.to_yaml(model, resolve=True))


def cost(name: str) -> str:
    """Return what an experiment's header says, or the model's that it refers to."""
    text = (CONF / f"experiment/{name}.yaml").read_text()
    model = re.search(
        r"^# Cost:      that of its model, (conf/.+)$", text, re.MULTILINE
    )
    if model:
        assert f"  - override /model: {Path(model[1]).stem}\n" in text
        text = (CONF.parent / model[1]).read_text()
    found = re.search(r"^# Cost: +(.+)$", text, re.MULTILINE)
    assert found, name
    return found[1]


@pytest.mark.parametrize("name", OTHERS)
def test_the_header_of_the_others_says_what_is_counted(name):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        found = cost(name)
        same = re.fullmatch(r"that of (\w+)\.", found)
        assert mmac(composed(name).model) in (cost(same[1]) if same else found)


def test_there_are_22():
    assert [name[:3] for name in THE_22] == [f"e{i:02}" for i in range(1, 23)]


def test_every_experiment_composes(configs):
    for cfg in configs["paper"].values():
        validate(cfg)
    for cfg in configs["small"].values():
        OmegaConf.resolve(cfg)


@pytest.mark.parametrize("name", THE_22 + BEYOND)
def test_the_header_says_what_is_counted(configs, name):
    text = (CONF / f"experiment/{name}.yaml").read_text()
    headings = re.findall(r"^# (\w+): ", text, re.MULTILINE)
    assert headings[:4] == ["Question", "Expected", "Cost", "Command"]
    macs = [mmac(configs[budget][name].model) for budget in ("paper", "small")]
    assert cost(name) == f"{macs[0]} MMAC an image, {macs[1]} in budget=small"
    command = f"python -m resnet_se.train experiment={name} budget=short"
    assert f"# Command:   {command}\n" in text
    assert ("beyond the 22" in text) == (name in BEYOND)


@pytest.mark.parametrize(
    "path", sorted(CONF.glob("experiment/*.yaml")), ids=lambda path: path.stem
)
def test_the_command_in_the_header_is_the_experiments(path):
    command = f"# Command:   python -m resnet_se.train experiment={path.stem}"
    assert re.search(rf"^{re.escape(command)}( |$)", path.read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", THE_22 + BEYOND)
def test_what_it_is_against_stands_in_its_own_file(name):
    """Not inherited: e15 has not e14's comparisons."""
    assert "against" in OmegaConf.load(CONF / f"experiment/{name}.yaml")


def test_against_names_another_experiment(configs):
    made = pairs(configs["paper"])
    for name, other, question in made:
        assert other in configs["paper"]
        assert other != name
        assert question
    assert len({(name, other) for name, other, _ in made}) == len(made)
    # None of the 22 stands alone; one is the side that another names.
    named = {name for pair in made for name in pair[:2]}
    assert set(THE_22) <= named


def test_a_comparison_varies_one_part_or_says_that_it_is_several(configs):
    for name, other, question in pairs(configs["paper"]):
        keys = differences(configs["paper"], name, other)
        assert keys, name
        parts = {key.partition(".")[0] for key in keys}
        assert (len(parts) > 1) == ("at once" in question), (name, other, parts)


def test_the_small_twins_differ_in_what_the_experiments_differ(configs):
    """The law of budget=small: every question keeps its factors."""
    for name, other, _ in pairs(configs["paper"]):
        paper = differences(configs["paper"], name, other)
        assert differences(configs["small"], name, other) == paper, (name, other)


def test_se_is_added_alone(configs):
    for se, plain in (
        ("e05", "e01"),
        ("e06", "e02"),
        ("e07", "e03"),
        ("e08", "e04"),
        ("e14", "e21"),
    ):
        one, other = (
            next(name for name in THE_22 if name.startswith(prefix))
            for prefix in (se, plain)
        )
        assert differences(configs["paper"], one, other) == {"model.reduction"}


# --- how deep, and how many files --------------------------------


def bases(name: str) -> list[str]:
    """Return the experiments that an experiment's file names in its defaults."""
    entries = OmegaConf.load(CONF / f"experiment/{name}.yaml").get("defaults") or []
    return [entry for entry in entries if f"experiment/{entry}" in EXPERIMENT_FILES]


EXPERIMENT_FILES = {f"experiment/{name}" for name in ALL}


@functools.cache
def files(name: str) -> frozenset[str]:
    """Return all files of `conf/` that Hydra reads for an experiment."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        found = loader.compute_defaults_list(
            "train", [f"experiment={name}"], RunMode.RUN
        )
    read = {str(default.config_path) for default in found.defaults}
    return frozenset(f for f in read if (CONF / f"{f}.yaml").is_file())


def tree(name: str, folder: str) -> list[str]:
    return sorted(f for f in files(name) if f.startswith(f"{folder}/"))


@pytest.mark.parametrize("name", ALL)
def test_no_experiment_is_more_than_one_deep(name):
    assert len(bases(name)) <= 1
    assert all(bases(base) == [] for base in bases(name))
    assert {*tree(name, "experiment")} == {
        f"experiment/{n}" for n in (name, *bases(name))
    }
    assert len(tree(name, "recipe")) <= 1


@pytest.mark.parametrize("name", THE_22 + BEYOND)
def test_an_experiment_is_a_recipe_a_model_and_its_delta(name):
    """A reader follows it in three files; the groups' defaults stand in train.yaml."""
    experiment, recipe, model, *overrides = (
        CONF / f"experiment/{name}.yaml",
        *(str(e) for e in OmegaConf.load(CONF / f"experiment/{name}.yaml").defaults),
    )
    assert (bases(name), tree(name, "recipe")) == ([], [str(recipe).lstrip("/")])
    assert "override /model" in str(model)
    assert len(overrides) <= 1, experiment


@pytest.mark.parametrize("name", ALL)
def test_an_experiment_reads_few_files(name):
    """All that Hydra composes: train.yaml, the choice of every group, and its bases."""
    assert len(files(name)) <= (22 if name in THE_22 + BEYOND else 28)
    assert len(tree(name, "experiment") + tree(name, "recipe")) <= 3


def test_an_se_network_inherits_no_vanilla_file():
    for name in THE_22:
        models = tree(name, "model")
        vanilla = [path for path in models if "vanilla" in path]
        assert bool(vanilla) == ("vanilla" in name), models
        assert not [path for path in tree(name, "experiment") if name not in path]


@pytest.mark.parametrize(("old", "new"), ALIASES.items())
def test_a_former_name_composes_the_same(old, new):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        assert composed(old) == composed(new)
    assert OmegaConf.load(CONF / f"experiment/{old}.yaml") == {"defaults": [new]}


def test_the_whole_configuration_can_be_seen(command, capsys, tmp_path):
    assert command("train", "experiment=e13_plateau", "--cfg", "job") == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["model"]["depths"] == "${depths:20,6,13}"
    assert shown["model"]["dropout"] == 0.5
    assert shown["optimizer"]["cls"]["path"] == "torch.optim.SGD"
    assert shown["scheduler"]["warmup_epochs"] == 1
    assert shown["scheduler"]["plateau"]["factor"] == 0.5
    assert shown["augment"]["crop_padding"] == 4
    assert {"data", "trainer", "callbacks", "tta", "budget", "seed"} < set(shown)
    assert not [*tmp_path.iterdir()]  # nothing is trained


def test_noise_families(configs):
    for name in THE_22:
        low, high = FAMILIES[configs["paper"][name].noise_family]
        assert low <= int(name[1:3]) <= high
    assert {configs["paper"][name].noise_family for name in BEYOND} == {"final"}


def test_sgd_at_full_rate_warms_up(configs):
    for budget in configs.values():
        for name, cfg in budget.items():
            if OmegaConf.select(cfg, "optimizer.cls.path") == "torch.optim.SGD":
                assert cfg.scheduler.warmup_epochs == 1, name
                assert cfg.scheduler.warmup_start == 0.1
                [recipe] = tree(name, "recipe")
                assert "warm-up" in (CONF / f"{recipe}.yaml").read_text()


def test_the_scaled_pair_keeps_rate_times_steps(configs):
    final, *scaled = (
        configs["paper"][name]
        for name in ("e14_final", "x15_batch64_scaled", "x16_batch256_scaled")
    )
    for cfg in scaled:
        assert cfg.data.batch_size != final.data.batch_size
        ratio = cfg.optimizer.lr / cfg.data.batch_size
        assert ratio == pytest.approx(final.optimizer.lr / final.data.batch_size)
