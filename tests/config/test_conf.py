"""Laws of `conf/`: nothing stands twice, a budget scales all that it should."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

import resnet_se.config.compose  # noqa: F401  # registers the resolvers
from resnet_se.commands.model_table import counts
from resnet_se.config import CONF
from resnet_se.config.validate import validate

GROUPS = sorted(path.name for path in CONF.iterdir() if any(path.glob("*.yaml")))
# Small twins by hand: depths, widths, reduction; a sixth, a half, a half.
TWINS = {
    "se_resnet80": ([3, 1, 2], [16, 32, 64], 8),
    "se_resnet74": ([2, 2, 2], [16, 32, 64], 8),
    "se_resnet68": ([1, 3, 2], [16, 32, 64], 8),
    "se_resnet56": ([2, 2, 2], [8, 16, 32], 8),
    "se_resnet20": ([1, 1, 1], [8, 16, 32], 8),
    "se_resnet20w4": ([1, 1, 1], [32, 64, 128], 8),
    "se_resnet_table": ([1, 1, 1, 1], [32, 64, 128, 256], 8),
}


@pytest.fixture(scope="module", autouse=True)
def _conf() -> Iterator[None]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def composed(*overrides: str) -> DictConfig:
    cfg = compose("train", list(overrides))
    cfg.run_dir = ""
    return cfg


def plain_entries(path: Path) -> set[str]:
    """`key: value` of a file's own top level, comments and defaults aside."""
    body = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(body, dict)
    return {f"{key}: {value}" for key, value in body.items() if key != "defaults"}


@pytest.mark.parametrize("group", GROUPS)
def test_no_block_is_repeated(group):
    """Two files of a group share no four entries: one would derive from the other."""
    files = sorted((CONF / group).glob("*.yaml"))
    repeated = [
        (a.stem, b.stem, sorted(common))
        for a, b in combinations(files, 2)
        if len(common := plain_entries(a) & plain_entries(b)) >= 4
    ]
    assert repeated == []


def test_an_override_is_not_repeated():
    """Experiments that share their parts derive from one another."""
    blocks = []
    for path in sorted((CONF / "experiment").glob("*.yaml")):
        defaults = OmegaConf.load(path).get("defaults") or []
        blocks.append({str(entry) for entry in defaults if "override" in str(entry)})
    assert all(len(a & b) < 3 for a, b in combinations(blocks, 2))


def test_what_hydra_is_told_stands_once():
    """Every command includes it; none says it again."""
    commands = []
    for path in sorted(CONF.glob("*.yaml")):
        body = OmegaConf.load(path)
        if not isinstance(body, DictConfig) or "hydra_defaults" not in (
            body.get("defaults") or []
        ):
            continue
        commands.append(path.stem)
        own = set(body.get("hydra") or {})
        assert not own & {"output_subdir", "run"}, path
        cfg = compose(path.stem, return_hydra_config=True).hydra
        assert cfg.job.chdir is False
        assert (cfg.output_subdir, cfg.run.dir) == (None, ".")
        assert (cfg.job_logging, cfg.hydra_logging) == (
            {"root": None, "disable_existing_loggers": False, "version": 1},
        ) * 2
    assert {"train", "evaluate", "predict", "export", "demo"} < set(commands)
    texts = [path.read_text() for path in CONF.rglob("*.yaml")]
    assert sum("output_subdir" in text for text in texts) == 1
    assert sum("job_logging" in text for text in texts) == 1


def test_a_former_name_of_an_optimizer_composes_the_same():
    old, new = (composed(f"optimizer={n}") for n in ("muon_quick", "muon_quickstart"))
    assert old == new


@pytest.mark.parametrize("choice", ["~experiment", None])
def test_no_experiment_is_the_default(choice):
    cfg = composed(*([choice] if choice else []))
    validate(cfg)
    assert cfg.model.depths == [20, 6, 13]
    assert cfg.optimizer.cls.path == "torch.optim.Adam"
    assert cfg.data.batch_size == 128
    assert cfg.trainer.max_epochs == 300
    assert (cfg.against, cfg.noise_family) == ([], None)


@pytest.mark.parametrize(
    ("group", "name"),
    [
        (group, path.stem)
        for group in ("model", "optimizer", "scheduler", "budget", "callbacks", "debug")
        for path in sorted((CONF / group).glob("*.yaml"))
    ],
)
def test_every_choice_composes(group, name):
    cfg = composed(f"{group}={name}")
    validate(cfg)
    OmegaConf.resolve(cfg)


# --- budgets -----------------------------------------------------


@pytest.mark.parametrize("name", TWINS)
def test_the_small_twin(name):
    depths, widths, reduction = TWINS[name]
    twin = composed(f"model={name}", "budget=small").model
    assert (twin.depths, twin.widths, twin.reduction) == (depths, widths, reduction)
    full = composed(f"model={name}").model
    hidden = [width // full.reduction for width in full.widths]
    assert [width // reduction for width in widths] == hidden
    assert len(twin.strides) == len(depths)
    vanilla = composed(f"model={name.replace('se_', 'vanilla_')}", "budget=small").model
    twin.reduction = None
    assert vanilla == twin


def test_the_headline_twin_costs_what_is_said():
    names = ("se_resnet80", "se_resnet74", "se_resnet68", "se_resnet20w4")
    sizes = {n: counts(composed(f"model={n}", "budget=small").model) for n in names}
    headline = sizes.pop("se_resnet80")
    assert round(headline["macs"] / 1e6, 1) == 26.7
    text = (CONF / "budget/small.yaml").read_text()
    assert "3-1-2 blocks of 16/32/64, 26.7 MMAC" in text
    for name, size in sizes.items():
        more = size["trainable"] / headline["trainable"] - 1
        assert f"{100 * more:.0f} % {name}'s" in text


def test_what_is_typed_is_not_scaled():
    cfg = composed("budget=small", "model.depths=[4,4,4]", "model.reduction=4")
    assert (cfg.model.depths, cfg.model.reduction) == ([4, 4, 4], 4)
    cfg = composed("budget=small", "budget.depth=1", "trainer.precision=bf16-mixed")
    assert cfg.model.depths == [20, 6, 13]
    assert cfg.trainer.precision == "bf16-mixed"


def test_small_is_fixed_where_machines_would_differ():
    cfg = composed("budget=small", "experiment=e14_final")
    assert cfg.trainer.precision == "32-true"
    assert cfg.trainer.max_epochs == 10
    assert cfg.scheduler.decay.milestones == pytest.approx([7, 17.5])
    assert OmegaConf.to_container(cfg.tta.views) == [{}, {"flip": True}]


@pytest.mark.parametrize("callbacks", ["default", "ema"])
@pytest.mark.parametrize("budget", ["paper", "short", "small", "smoke"])
def test_early_stopping_is_the_papers_alone(budget, callbacks):
    cfg = composed(f"budget={budget}", f"callbacks={callbacks}")
    stopping = cfg.callbacks.early_stopping
    assert (stopping is not None) == (budget == "paper")
    if stopping is not None:
        assert stopping.patience == 200
    assert cfg.callbacks.checkpoint is not None


@pytest.mark.parametrize("scheduler", ["paper", "plateau"])
@pytest.mark.parametrize("scale", [1, 0.5, 0.1, 0.0666667, 0.001])
def test_a_plateau_is_waited_for_five_epochs_at_least(scheduler, scale):
    cfg = composed(f"scheduler={scheduler}", f"budget.scale={scale}")
    assert cfg.scheduler.plateau.patience == max(5, round(20 * scale))


def test_a_budget_of_ones_own_need_not_know_of_widths():
    budget: dict[str, Any] = {"scale": 0.5, "limit_batches": 1.0, "train_subset": None}
    cfg = composed()
    cfg.budget = budget
    assert cfg.model.widths == [32, 64, 128]
    assert cfg.model.reduction == 16


def test_multistep_is_the_decays_of_paper():
    paper, multistep = (
        composed(f"scheduler={s}").scheduler for s in ("paper", "multistep")
    )
    assert multistep.decay == paper.decay
    assert (multistep.warmup_epochs, multistep.plateau) == (0, None)
