"""The configuration: where it lies, how it is composed, run, saved and explained.

Hydra composes `conf/`; this module adds what it leaves open: every key is checked
against the signature it is meant for, an unknown name gets its nearest valid one, and a
mistake prints one clear message instead of a traceback.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import inspect
import json
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.utils import get_object
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from resnet_se.config import CONF
from resnet_se.config.migration import answer
from resnet_se.runs.run_hash import canonical
from resnet_se.utils.errors import UserError, nearest
from resnet_se.utils.files import read_regular

# Stands in a saved configuration for the run directory, which may move.
RUN_DIR = "<run_dir>"

EXTRAS = ("joblib", "submitit", "ray")  # launchers that pyproject.toml offers
NO_CHOICE = "Config group override must be"  # of Hydra's ValueError: model=null
TWICE = r"Multiple values for ([^\s.]+)\.|An item is already at '([^']+)'"
# What an answer to something typed begins with.
TYPED = (
    r"unknown key '([^']+)'|(\S+=\S+): no such choice|(logger\.aim|trainer\.fast\w+)"
)
EXPECTED = (UserError, HydraException, OmegaConfBaseException, yaml.YAMLError)
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
HYDRA_KEYS = {"_target_", "_partial_", "_convert_", "_recursive_", "_args_"}


# --- resolvers ---------------------------------------------------


def _epochs(value: float, *, _root_: DictConfig) -> float:
    """`${epochs:N}`: N of the paper's epochs under the chosen budget."""
    return round(float(value) * _root_.budget.scale, 4)


def _whole_epochs(value: float, least: int = 1, *, _root_: DictConfig) -> int:
    """`${whole_epochs:N,M}`: the same as an integer of at least M, 1 by default."""
    return max(least, round(float(value) * _root_.budget.scale))


def _depths(*blocks: int, _root_: DictConfig) -> ListConfig:
    """`${depths:A,B,…}`: blocks of each stage × budget.depth, at least one."""
    factor = _root_.budget.get("depth", 1.0)
    return ListConfig([max(1, round(n * factor)) for n in blocks])


def _widths(*channels: int, _root_: DictConfig) -> ListConfig:
    """`${widths:A,B,…}`: channels of each stage × budget.width, at least one."""
    factor = _root_.budget.get("width", 1.0)
    return ListConfig([max(1, round(n * factor)) for n in channels])


def _reduction(ratio: int, *, _root_: DictConfig) -> int:
    """`${reduction:R}`: R × budget.width, so that a gate keeps its hidden units."""
    return max(1, round(ratio * _root_.budget.get("width", 1.0)))


def _typed() -> str:
    """`${typed:}`: six hex digits of the command line, alike when it is typed again."""
    words = sorted(word for word in sys.argv[1:] if word not in ("-m", "--multirun"))
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()[:6]


OmegaConf.register_new_resolver("depths", _depths, replace=True)
OmegaConf.register_new_resolver("epochs", _epochs, replace=True)
OmegaConf.register_new_resolver("pid", os.getpid, replace=True, use_cache=True)
OmegaConf.register_new_resolver("reduction", _reduction, replace=True)
OmegaConf.register_new_resolver("typed", _typed, replace=True, use_cache=True)
OmegaConf.register_new_resolver("whole_epochs", _whole_epochs, replace=True)
OmegaConf.register_new_resolver("widths", _widths, replace=True)


# --- a saved configuration ---------------------------------------


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """A composed configuration as plain values, `RUN_DIR` for its run directory."""
    cfg = OmegaConf.create(OmegaConf.to_container(cfg))
    cfg.run_dir = RUN_DIR
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def saved_config(run_dir: Path) -> dict[str, Any]:
    """The configuration in a run directory, as `resolved` made it.

    Raises:
        UserError: there is none, or it is not readable.
    """
    path = run_dir / "config.yaml"
    try:
        plain = _parsed(read_regular(path, 16 << 20).decode())
    except FileNotFoundError:
        raise UserError(f"run: expected a run directory, got {run_dir}") from None
    except Exception as error:
        raise UserError(f"{path}: not a configuration of a run: {error}") from None
    if not isinstance(plain, dict):
        raise UserError(f"{path}: not a configuration of a run")
    return plain


def _parsed(text: str) -> Any:
    """YAML without references, a few of which could stand for billions of values."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    depth = 0
    for event in yaml.parse(text, loader):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent) or depth > 64:
            raise ValueError("references, or more than 64 levels")
    return yaml.load(text, loader)


def load_config(run_dir: Path) -> DictConfig:
    """The same, composed, wherever the directory lies now; raises as `saved_config`."""
    return OmegaConf.create(_at_home(saved_config(run_dir), str(run_dir.resolve())))


def with_current_targets(config: dict[str, Any]) -> dict[str, Any]:
    """Return a saved configuration with the names that its targets have today."""
    return {key: _at_home(value, RUN_DIR) for key, value in config.items()}


@functools.cache
def _homes() -> dict[str, str]:
    """{canonical name: today's `_target_`} of all of ours that `conf/` names."""
    texts = (path.read_text(encoding="utf-8") for path in CONF.rglob("*.yaml"))
    targets = {t for text in texts for t in re.findall(r"\bresnet_se(?:\.\w+)+", text)}
    return {canonical(target): target for target in sorted(targets)}


def _at_home(node: Any, place: str) -> Any:
    """A saved configuration whose targets, and whose run directory, are today's."""
    if isinstance(node, dict):
        return {
            key: _homes().get(canonical(value), value)
            if key == "_target_" and isinstance(value, str)
            else _at_home(value, place)
            for key, value in node.items()
        }
    if isinstance(node, list):
        return [_at_home(item, place) for item in node]
    return node.replace(RUN_DIR, place) if isinstance(node, str) else node


def experiment_name() -> str:
    """The experiment that was chosen on the command line, or `custom`."""
    return HydraConfig.get().runtime.choices.get("experiment") or "custom"


# --- running -----------------------------------------------------


def own_conf() -> list[str]:
    """The override that adds a `conf/` in the working directory to Hydra's search path.

    Empty where there is none, or the command line says where to look.  Of two files of
    the same name ours wins; a notice says so.
    """
    folder = Path("conf").resolve()
    told = any(
        a.startswith(("hydra.searchpath", "--config-dir", "-cd")) for a in sys.argv
    )
    if told or not folder.is_dir() or folder == CONF.resolve():
        return []
    for path in sorted(folder.glob("*/*.yaml")):
        name = path.relative_to(folder)
        if (CONF / name).is_file():
            said = f"conf/{name}: resnet_se has one of that name, which is taken"
            print(said, file=sys.stderr)  # where the shell's completion does not look
    return [f"hydra.searchpath=[file://{folder}]"]


def run(task: Callable[[DictConfig], Any], config_name: str) -> None:
    """Runs `task` under Hydra; a user's mistake is one message and exit status 2.

    Any other exception shows its traceback and gives status 1, Ctrl-C gives 130.
    """
    show_all = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises, the lines below print
    errors: list[Exception] = []

    def job(cfg: DictConfig) -> Any:
        try:
            if config_name != "train":  # whose jobs record what is found
                from resnet_se.config.validate import check_keys

                check_keys(cfg, config_name)
            return task(cfg)
        except Exception as error:  # the other jobs of a sweep go on
            errors.append(error)
            if show_all or not _needs_no_traceback(error):
                traceback.print_exc()
            print(f"error: {explain(error, config_name)}", file=sys.stderr)

    own = own_conf()
    sys.argv += own
    if "query=bash" in sys.argv:  # of Hydra's completion, which reads its words there
        name, _, rest = os.environ.get("COMP_LINE", "").partition(" ")
        os.environ["COMP_LINE"] = " ".join([name, *own, rest])
    try:
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(
            job
        )()
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # nothing is left to stop
        again = "; the same command goes on from here" if config_name == "train" else ""
        print(f"interrupted{again}", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if show_all:
            raise
        if _needs_no_traceback(error):  # before any job: it does not compose
            print(f"error: {explain(error, config_name)}", file=sys.stderr)
            sys.exit(2 if isinstance(error, (*EXPECTED, ValueError)) else 1)
        traceback.print_exc()  # no job's: the launcher has lost a worker
        print("stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(1)
    if errors:
        sys.exit(2 if isinstance(errors[-1], EXPECTED) else 1)


def explain(error: BaseException, config_name: str = "train") -> str:
    """What went wrong, in the user's terms, with the nearest valid name.

    Where another framework's habit was typed, what does the same here instead.
    """
    said = _explain(error, config_name)
    typed = re.match(TYPED, said)
    meant = answer(next(filter(None, typed.groups()))) if typed else None
    return f"{said.partition(';')[0]}; {meant}" if meant else said


def _explain(error: BaseException, config_name: str) -> str:
    if isinstance(error, InstantiationException):
        key = re.search(r"full_key: (\S+)", str(error))
        cause = error.__cause__ or error
        # Our constructors name the argument, the configuration knows whose it is.
        between = "." if isinstance(cause, UserError) else ": "
        if key is None or str(cause).startswith((f"{key[1]}.", f"{key[1]}:")):
            return str(cause)  # some know it themselves
        return f"{key[1]}{between}{cause}"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        extra = name.partition("_")[0]  # submitit_local, submitit_slurm
        if group == "hydra/launcher" and extra in EXTRAS:
            return f"launcher={name}: not installed; uv sync --extra {extra}"
        choices = [option for option in error.options or [] if option]
        hint = nearest(name, choices)
        return f"{group or '--config-name'}={name}: no such choice; {hint}"
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return f"{error}; the same command goes on once the run directory has room"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, OmegaConfBaseException):
        said = str(error).strip().splitlines()[0]
        key = error.full_key
        return f"{key}: {said}" if key and key not in said else said
    if NO_CHOICE in str(error):
        return _explain_group()
    if twice := re.search(TWICE, str(error)):
        key = twice[1] or twice[2]
        return f"{key}: there is one already; write {key}=… without the +"
    if isinstance(error, OverrideParseException):
        said = [line for line in str(error).splitlines() if "http" not in line]
        return f"{error.override}: {' '.join(said)}"
    override = re.search(r"Could not override '([^']+)'", str(error))
    if isinstance(error, ConfigCompositionException) and override:
        key = re.search(r"full_key: (\S+)", str(error))
        return _explain_key(key[1] if key else override[1], config_name)
    return str(error)


def _needs_no_traceback(error: BaseException) -> bool:
    """Whether a sentence says it all: a mistake, or the fault of a file or a disk."""
    if isinstance(error, EXPECTED) or NO_CHOICE in str(error):
        return True
    return isinstance(error, OSError) and (
        error.filename is not None or error.errno in NO_ROOM
    )


def _explain_group() -> str:
    """Which `group=value` of the command line gives a group no name."""
    for typed in sys.argv[1:]:
        group, _, value = typed.lstrip("+").partition("=")
        no_name = re.fullmatch(r"null|true|false|[\d.]*", value, re.IGNORECASE)
        if (CONF / group).is_dir() and no_name:
            choices = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
            return f"{typed}: no such choice; {nearest(value, choices)}"
    return "a group takes a name of its choices"


def _is_choice(typed: str) -> bool:
    """Whether it is `group=name` of a group that others do not depend on."""
    group, _, name = typed.partition("=")
    several = group in ("experiment", "debug", "launcher", "hparams_search")
    return (
        not several
        and name.isidentifier()
        and (CONF / group / f"{name}.yaml").is_file()
    )


def _explain_key(dotted: str, config_name: str) -> str:
    """Where a dotted key of the command line leaves the configuration."""
    if dotted.startswith("hydra."):
        return f"{dotted}: not in Hydra's own configuration; +{dotted}=… would add it"
    typed = [word for word in sys.argv[1:] if _is_choice(word)]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        node = hydra.compose(config_name, typed if config_name == "train" else [])
    path: list[str] = []
    for part in dotted.split("."):
        if not isinstance(node, DictConfig) or node._is_none():
            break
        if part not in node:
            where = ".".join([*path, part])
            choices = {str(key) for key in node} - HYDRA_KEYS
            if target := node.get("_target_"):
                known = inspect.signature(get_object(target)).parameters
                if part in known:
                    return f"{dotted} is not set in conf/: write +{dotted}=… to add it"
                choices |= set(known)
            elif not path:
                choices |= {folder.name for folder in CONF.iterdir() if folder.is_dir()}
            return f"unknown key {where!r}; {nearest(part, choices)}"
        path.append(part)
        node = node[part]
    return f"{dotted}: not in this configuration; write +{dotted}=… to add it"
