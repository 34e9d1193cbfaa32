"""Untrusted files at random: every reader ends in a result or in one sentence.

Records, checkpoints, bundles and configurations (image trees and archives stand in
`test_archives`): whole ones with some places changed, or damaged bytes.  No other
exception, no hang, no file that was not there, no code of theirs run.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import os
import signal
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import (
    contextmanager,
    nullcontext,
    redirect_stderr,
    redirect_stdout,
    suppress,
)
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
import yaml
from hydra.errors import InstantiationException
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf.errors import OmegaConfBaseException
from PIL import Image

from resnet_se.analysis.report.runs import load, load_runs
from resnet_se.commands import record as record_command
from resnet_se.commands import train
from resnet_se.commands.evaluate import _print_table
from resnet_se.config import build
from resnet_se.config.recipe import (
    RUN_DIR,
    Recipe,
    check_saved,
    load_recipe,
    saved_config,
)
from resnet_se.config.settle import Run as SettledRun
from resnet_se.data.datamodule import ImageDataModule
from resnet_se.inference import pretrained
from resnet_se.runs import bundle, checkpoint, record
from resnet_se.runs.record import Outcome
from resnet_se.runs.run_hash import Environment
from resnet_se.training import evaluation, loop
from resnet_se.utils import console
from resnet_se.utils.errors import UserError
from tests.config.test_config_errors import tiny_beside
from tests.conftest import Run, call, records

SOAK = int(os.environ.get("SOAK_EXAMPLES", "10000"))
SECONDS = 20  # of computing; longer than that is a hang, as is 15 times that of waiting
pytestmark = pytest.mark.filterwarnings("ignore:Generating overly large repr")
FACTS = Environment("data", "32-true", 1)
# What a command prints as a sentence (`config.run`).
SAID = (UserError, InstantiationException, OmegaConfBaseException)

# --- what is untrusted ------------------------------------------

TRAP = "trapped"  # a file that only code of theirs would make
CALLS = [
    {"_target_": "os.system", "command": f"touch {TRAP}"},
    {"_target_": "pathlib.Path.write_text", "_args_": [{"_target_": "x"}, "y"]},
    {"_target_": "builtins.eval", "_args_": [f"open({TRAP!r}, 'w')"]},
    {"_target_": "torch.load", "f": TRAP, "weights_only": False},
    {"_target_": "tests.commands.test_fuzz.spring"},
    {"_target_": "resnet_se.data.image_tree.cache_file", "x": 3},
    {"_target_": 3},
    {"_target_": "resnet_se.models.resnet.ResNet"},
]
TEXTS = st.sampled_from(
    ["", "x", "${oc.env:HOME}", "${run_dir}", "${nope}", "${", "???", "/etc/passwd",
     "<run_dir>", "../../x", "\x00", "é" * 300, "adam", "auto"]
)  # fmt: skip
NUMBERS = st.one_of(
    st.integers(-(2**70), 2**70), st.integers(-2, 40), st.floats(), st.booleans()
)
LEAVES = st.one_of(st.none(), NUMBERS, TEXTS, st.sampled_from(CALLS).map(copy.deepcopy))
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)
    ),
    max_leaves=6,
)
GONE = object()
DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def edits(values: Any) -> Any:
    """[(path as numbers, new value or `GONE`)], more often deep than shallow."""
    path = st.lists(st.integers(0, 40), min_size=1, max_size=5)
    return st.lists(st.tuples(path, values | st.just(GONE)), min_size=1, max_size=3)


def edited(tree: Any, changes: list) -> Any:
    """The tree with some of its places changed or gone."""
    tree = copy.deepcopy(tree)
    for path, value in changes:
        node = tree
        for depth, number in enumerate(path):
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            if not keys:
                break
            key = keys[number % len(keys)]
            if depth + 1 == len(path) or not isinstance(node[key], dict | list):
                if value is GONE:
                    del node[key]
                else:
                    node[key] = copy.deepcopy(value)
                break
            node = node[key]
    return tree


DAMAGE = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=3)


def damaged(content: bytes, damage: list) -> bytes:
    """Some bytes are others; of 0 the rest is cut off."""
    data = bytearray(content)
    for place, value in damage:
        at = int(place * (len(data) - 1)) if data else 0
        if value == 0:
            del data[at:]
        elif data:
            data[at] ^= value
    return bytes(data)


def spring(**_: Any) -> None:
    """Importable, and never to be called."""
    Path(TRAP).touch()


class Evil:
    """What unpickles into a call."""

    def __reduce__(self) -> tuple[Callable, tuple]:
        return os.system, (f"touch {TRAP}",)

    def __deepcopy__(self, memo: Any) -> Evil:  # that would call it here
        return self


@contextmanager
def watched(folder: Path) -> Iterator[None]:
    """In `folder`, silent: ends in time, in a sentence at worst, with no new file."""

    def hang(*_: Any) -> None:
        raise TimeoutError("hangs")

    before, where = sorted(folder.rglob("*")), Path.cwd()
    timers = {signal.ITIMER_PROF: SECONDS, signal.ITIMER_REAL: 15 * SECONDS}
    for number in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(number, hang)
    for timer, seconds in timers.items():
        signal.setitimer(timer, seconds)
    os.chdir(folder)
    try:
        silent = redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO())
        with silent[0], silent[1], warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for timer in timers:
            signal.setitimer(timer, 0)
        os.chdir(where)
    assert sorted(folder.rglob("*")) == before


@contextmanager
def folder_of(**files: bytes) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        for path, content in files.items():
            Path(name, path).parent.mkdir(parents=True, exist_ok=True)
            Path(name, path).write_bytes(content)
        yield Path(name)


def json_of(tree: Any) -> bytes:
    return json.dumps(tree, default=str).encode()


def some(n: int) -> settings:
    few = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(
        max_examples=n, deadline=None, database=None, suppress_health_check=few
    )


# --- records -----------------------------------------------------


def read_as_record(content: bytes) -> None:
    with folder_of(**{"run/result.json": content}) as folder, watched(folder):
        loaded = load([str(folder)])
        assert len(loaded.runs) + len(loaded.problems) <= 2
        load_runs(folder, history=True, predictions=True)
        with suppress(UserError):
            record_command._setting(str(folder / "run"))
        with suppress(UserError):
            result = record.read_result(folder / "run")
            assert result is not None
            if result["status"] == "finished":
                record.check_finished(result, folder)
                console.print_closing_table(result, folder)
                console.print_closing_line(result, folder)
            figures = {"val": {"acc": 0.5, "loss": 1}, "test": dict.fromkeys(
                ("acc", "acc_tta", "loss", "ece"), 0.5)}  # fmt: skip
            _print_table("run, best.ckpt", figures, result)


STATUS = st.sampled_from(["finished", *record.STATUSES])


def check_record(whole: dict, status: str, changes: list, damage: list) -> None:
    whole = whole | {"status": status}
    read_as_record(damaged(json_of(edited(whole, changes)), damage))


@some(30)
@given(STATUS, edits(VALUES), DAMAGE)
def test_random_records(finished: Run, status, changes, damage):
    check_record(finished.result, status, changes, damage)


@pytest.mark.soak
@some(SOAK)
@given(STATUS, edits(VALUES), DAMAGE)
def test_ten_thousand_records(finished: Run, status, changes, damage):
    check_record(finished.result, status, changes, damage)


# --- checkpoints -------------------------------------------------

TENSORS = st.sampled_from(
    [torch.zeros(()), torch.zeros(3), torch.full((10,), float("nan")), torch.ones(2, 2),
     torch.zeros(10, dtype=torch.int64), torch.zeros(0), Evil()]
)  # fmt: skip


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """A finished run of a network of one block: little to write and to read."""
    folder = tmp_path_factory.mktemp("small")
    net = ["model.depths=[1]", "model.widths=[4]", "model.strides=[1]"]
    few = ["data.source.num_train=72", "data.source.num_test=10"]
    more = [*net, *few, "trainer.max_epochs=1"]
    assert call(folder, "train", *tiny_beside(more), *more) == 0
    ((run, _),) = records(folder).items()
    return run


@pytest.fixture(scope="module")
def trained(small: Path) -> SimpleNamespace:
    """The parts of a reader that a checkpoint is poured into, and a whole one."""
    cfg = load_recipe(small)
    data = build.build_datamodule(cfg, training=False)
    data.setup()
    model = build.build_module(cfg, data.num_classes, training=False)
    whole = checkpoint.read(small / "checkpoints/best.ckpt")
    config = (small / "config.yaml").read_bytes()
    return SimpleNamespace(model=model, data=data, cfg=cfg, whole=whole, config=config)


def once(read: Callable[[Path], Any]) -> Callable[[Path], Any]:
    """`read` of one input: later calls give what it gave, or its refusal."""
    ends: list[tuple[Any, Exception | None]] = []

    def reader(path: Path) -> Any:
        if not ends:
            try:
                ends.append((read(path), None))
            except SAID as error:
                ends.append((None, error))
        content, refusal = ends[0]
        if refusal:
            raise refusal
        return content

    return reader


def check_checkpoint(trained: Any, changes: list, damage: list) -> None:
    buffer = io.BytesIO()
    torch.save(edited(trained.whole, changes), buffer)
    content = damaged(buffer.getvalue(), damage)
    files = {"run/config.yaml": trained.config, "run/checkpoints/best.ckpt": content}
    with (
        folder_of(**files) as folder,
        watched(folder),
        patch.object(checkpoint, "read", once(checkpoint.read)),
        patch.object(pretrained, "load_recipe", lambda _: trained.cfg),
    ):
        path = folder / "run/checkpoints/best.ckpt"
        with suppress(UserError):
            checkpoint.choose(path.parent, "seed0-00000000")
        with suppress(UserError):
            evaluation.load_weights(trained.model, trained.data, path)
        with suppress(UserError):
            pretrained.read(folder / "run")


CHECKPOINT_EDITS = edits(st.one_of(TENSORS, VALUES))


@some(15)
@given(CHECKPOINT_EDITS, DAMAGE)
def test_random_checkpoints(trained, changes, damage):
    check_checkpoint(trained, changes, damage)


@pytest.mark.soak
@some(SOAK)
@given(CHECKPOINT_EDITS, DAMAGE)
def test_ten_thousand_checkpoints(trained, changes, damage):
    check_checkpoint(trained, changes, damage)


# --- a checkpoint to go on from ----------------------------------

STATES = ("optimizer_states", "lr_schedulers", "loops", "callbacks", checkpoint.DATA)
MADE = {"checkpoints", "metrics.csv", "predictions.npz", "result.json"}


@pytest.fixture(scope="module", params=["adam", "sgd"])
def interrupted(request, tmp_path_factory) -> SimpleNamespace:
    """The configuration of two epochs, its checkpoint after the first."""
    folder = tmp_path_factory.mktemp("interrupted")
    more = ["callbacks=ema", "scheduler=plateau", f"optimizer={request.param}"]
    more += ["data.source.num_train=72", "data.source.num_test=10"]
    more.append("trainer.max_epochs=1")
    line = [*tiny_beside(more), *more]
    assert call(folder, "train", *line) == 0
    ((run, result),) = records(folder).items()
    plain = saved_config(run)
    plain["trainer"]["max_epochs"] = 2
    whole = checkpoint.read(run / "checkpoints/last.ckpt")
    return SimpleNamespace(plain=plain, result=result, whole=whole)


def outcome_of(result: dict[str, Any]) -> Outcome:
    names = {field.name for field in fields(Outcome)}
    return Outcome(**{k: v for k, v in result.items() if k in names})


def go_on(interrupted: Any, states: dict) -> None:
    """Trains the second epoch from a checkpoint with untrusted `states` in it."""
    buffer = io.BytesIO()
    torch.save({**interrupted.whole, **states}, buffer)
    files = {"theirs.ckpt": buffer.getvalue()}
    with folder_of(**files) as folder, tempfile.TemporaryDirectory() as out:
        plain = json.loads(json.dumps(interrupted.plain).replace(RUN_DIR, out))
        plain["ckpt_path"] = str(folder / "theirs.ckpt")
        recipe = Recipe(plain)
        with watched(folder):
            data = build.build_datamodule(recipe)
            data.locate()
            data.setup()
            result = interrupted.result
            run = SettledRun(recipe, Path(out), {}, result["config_hash"], FACTS, data)
            loop.fit(build.build(run), outcome_of(result))
        assert {path.name for path in Path(out).iterdir()} <= MADE


def check_states(interrupted: Any, changes: list) -> None:
    """Training goes on from untrusted states, or says in a sentence why not."""
    states = {name: interrupted.whole[name] for name in STATES}
    with suppress(*SAID):
        go_on(interrupted, edited(states, changes))


STOPPING = "EarlyStopping{'monitor': 'val/loss', 'mode': 'min'}"
PLACE = (checkpoint.DATA, "place")
FIT = ("loops", "fit_loop")


@pytest.mark.parametrize("interrupted", ["adam"], indirect=True)
@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        # A fused step would read and write beyond the end of it.
        (
            ("optimizer_states", 0, "state", 0, "exp_avg"),
            torch.zeros(()),
            "another shape",
        ),
        (("optimizer_states", 0, "param_groups", 0, "lr"), "x", "the first epoch from"),
        (("optimizer_states", 0, "param_groups", 0, "params"), [], "the first epoch"),
        (
            ("callbacks", "History", "rows"),
            [{"x": "y"}],
            "History.rows: expected a num",
        ),
        (("callbacks", "History", "path"), "/tmp/x", None),
        (("callbacks", "Checkpoints", "best_score"), "x", "best_score: expected a num"),
        (("callbacks", STOPPING, "best_score"), 0, "the first epoch from there failed"),
        (("callbacks",), [], "its callbacks is no mapping"),
        (("lr_schedulers", 0, "last_epoch"), -1, "last_epoch: expected an integer"),
        (("lr_schedulers", 0, "plateau", "best"), [], "Schedule.plateau.best: got"),
        (("lr_schedulers", 0, "plateau", "factor"), "x", None),  # the configured one
        (
            (*FIT, "epoch_progress", "current", "completed"),
            -(10**9),
            "it counts epochs",
        ),
        ((*FIT, "epoch_loop.batch_progress", "current", "ready"), 2.5, "it counts"),
        ((*PLACE, "epoch"), "x", "it counts epochs and steps"),
        (PLACE, [], "its ImageDataModule.place is none"),
        (("epoch_so_far",), torch.zeros(2), "epoch_so_far is not what one writes"),
    ],
)
def test_what_untrusted_states_may_hold(interrupted, path, value, said):
    states = copy.deepcopy(interrupted.whole)
    node: Any = states
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    with nullcontext() if said is None else pytest.raises(UserError, match=said):
        go_on(interrupted, states)


STATE_EDITS = edits(st.one_of(TENSORS, NUMBERS, VALUES))


@some(5)
@given(STATE_EDITS)
def test_random_states(interrupted, changes):
    check_states(interrupted, changes)


@pytest.mark.soak
@some(SOAK)
@given(STATE_EDITS)
def test_ten_thousand_states(interrupted, changes):
    check_states(interrupted, changes)


# --- bundles -----------------------------------------------------


@pytest.fixture(scope="module")
def bundled(small: Path, tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("fuzz")
    assert call(folder, "bundle", f"run={small}", "out=b") == 0
    return {path.name: path.read_bytes() for path in (folder / "b").iterdir()}


BUNDLE_FILES = st.sampled_from([bundle.MANIFEST, bundle.CONFIG, bundle.RECORD])


def check_bundle(
    bundled: dict, name: str, changes: list, damage: list, zipped: bool
) -> None:
    """A file of it changed as anybody could, its checksum with it; then damage."""
    files = dict(bundled)
    files[name] = json_of(edited(json.loads(files[name]), changes))
    if name != bundle.MANIFEST:
        manifest = json.loads(files[bundle.MANIFEST])
        manifest["files"][name] = hashlib.sha256(files[name]).hexdigest()
        files[bundle.MANIFEST] = json_of(manifest)
    elif not zipped:
        weights = damaged(files[bundle.WEIGHTS], damage)
        files[bundle.WEIGHTS] = weights
    if zipped:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for path, content in files.items():
                archive.writestr(f"b/{path}", content)
        files = {"b.zip": damaged(buffer.getvalue(), damage)}
    else:
        files = {f"b/{path}": content for path, content in files.items()}
    with folder_of(**files) as folder, watched(folder), suppress(UserError):
        model = pretrained.read(folder / ("b.zip" if zipped else "b"))
        model.views(True)
        model.predict(Image.new("RGB", (8, 8)))


@some(30)
@given(BUNDLE_FILES, edits(VALUES), DAMAGE, st.booleans())
def test_random_bundles(bundled, name, changes, damage, zipped):
    check_bundle(bundled, name, changes, damage, zipped)


@pytest.mark.soak
@some(SOAK)
@given(BUNDLE_FILES, edits(VALUES), DAMAGE, st.booleans())
def test_ten_thousand_bundles(bundled, name, changes, damage, zipped):
    check_bundle(bundled, name, changes, damage, zipped)


# --- configurations ----------------------------------------------


@pytest.fixture(scope="module")
def configured(small: Path) -> SimpleNamespace:
    plain = saved_config(small)
    whole = checkpoint.read(small / "checkpoints/best.ckpt")
    return SimpleNamespace(plain=plain, cfg=Recipe(plain), whole=whole)


def check_configuration(configured: Any, changes: list, damage: list) -> None:
    text = yaml.dump(edited(configured.plain, changes), Dumper=DUMPER, sort_keys=False)
    files = {
        "run/config.yaml": damaged(text.encode(), damage),
        "run/checkpoints/best.ckpt": b"",
    }
    read = once(load_recipe)
    with (
        folder_of(**files) as folder,
        watched(folder),
        patch.object(checkpoint, "read", lambda _: configured.whole),
        patch.object(pretrained, "load_recipe", read),
    ):
        run = folder / "run"
        with suppress(*SAID):
            pretrained.read(run)
        with suppress(*SAID):  # as `train` does in a directory that it finds
            train._check_directory(
                SettledRun(configured.cfg, run, {}, "00000000", FACTS, data=None)
            )
        with suppress(*SAID):  # as `evaluate` does
            recipe = read(run)
            check_saved(recipe)
            data = build.build_datamodule(recipe, training=False)
            assert isinstance(data, ImageDataModule)
            build.build_module(recipe, 10, training=False)


@some(15)
@given(edits(VALUES), DAMAGE)
def test_random_configurations(configured, changes, damage):
    check_configuration(configured, changes, damage)


@pytest.mark.soak
@some(SOAK)
@given(edits(VALUES), DAMAGE)
def test_ten_thousand_configurations(configured, changes, damage):
    check_configuration(configured, changes, damage)


# --- the checks themselves ---------------------------------------


def test_the_checks_can_fail(finished: Run, monkeypatch):
    """Each property, once broken."""
    whole = json_of(finished.result)
    with monkeypatch.context() as broken:
        broken.setattr(record_command, "_setting", lambda run: {}["x"])
        with pytest.raises(KeyError):
            read_as_record(whole)
        broken.setattr(record_command, "_setting", lambda run: spring())
        with pytest.raises(AssertionError):
            read_as_record(whole)
        broken.setattr("tests.commands.test_fuzz.SECONDS", 0.05)
        broken.setattr(
            record_command, "_setting", lambda run: [0 for _ in iter(int, 1)]
        )
        with pytest.raises(TimeoutError):
            read_as_record(whole)
