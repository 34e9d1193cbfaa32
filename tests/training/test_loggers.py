"""wandb, TensorBoard and CSV: one run a job, closed truly, whatever the network does.

What wandb is told is noted on the way to it; a small server of our own stands in for
its backend where one is needed.
"""

from __future__ import annotations

import csv
import json
import os
import struct
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import OmegaConf

from resnet_se.config import CONF
from resnet_se.config.validate import validate
from resnet_se.training import loggers
from resnet_se.training.metrics import METRICS
from resnet_se.training.module import Classifier
from resnet_se.training.wandb_file import BLOCK, read_rows
from tests.conftest import TINY

KEY = "5ec2e7" * 8  # of the length that wandb wants


@pytest.fixture
def wandb(monkeypatch, tmp_path):
    """wandb as on a machine where nobody ever used it."""
    import wandb

    for name in list(os.environ):
        if name.startswith("WANDB_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    for name in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setattr(loggers, "_offline", [])
    wandb.teardown()  # it reads its variables once a session
    yield wandb
    wandb.finish()
    wandb.teardown()


class Watched:
    """A wandb run as a test sees it: what it was asked for, told, and closed with."""

    def __init__(self, options: dict[str, Any], run: Any):
        self.options, self.run = options, run
        self.rows: dict[str, list] = {}
        self.artifacts: list[Any] = []
        self.exit_code: int | None = None
        run.log = self.log
        run.log_artifact = lambda artifact, **_: self.artifacts.append(artifact)

    def log(self, values: dict[str, Any], **_: Any) -> None:
        for name, value in values.items():
            self.rows.setdefault(name, []).append(value)


@pytest.fixture
def runs(wandb, monkeypatch):
    """The runs that are started, in order; nothing of them leaves this process."""
    started: list[Watched] = []
    init, finish = wandb.init, wandb.finish

    def watched_init(**options: Any) -> Any:
        started.append(Watched(options, init(**(options | {"mode": "disabled"}))))
        return started[-1].run

    def watched_finish(exit_code: int | None = None) -> None:
        if started and started[-1].exit_code is None:
            started[-1].exit_code = exit_code
        finish(exit_code=exit_code)

    monkeypatch.setattr(wandb, "init", watched_init)
    monkeypatch.setattr(wandb, "finish", watched_finish)
    return started


def all_bytes(folder: Path) -> bytes:
    return b"".join(p.read_bytes() for p in folder.rglob("*") if p.is_file())


# --- runs --------------------------------------------------------


def fail_at(monkeypatch, error: BaseException, epoch: int, seed: int = 0):
    """A training that ends with `error`, until the returned function is called."""
    start = Classifier.on_train_epoch_start

    def fail(self):
        if (self.seed, self.current_epoch) == (seed, epoch):
            raise error
        start(self)

    monkeypatch.setattr(Classifier, "on_train_epoch_start", fail)
    return lambda: monkeypatch.setattr(Classifier, "on_train_epoch_start", start)


@pytest.mark.slow
def test_two_jobs_one_failing_leave_two_runs_in_their_true_states(
    runs, wandb, train, run_dirs, monkeypatch, capsys
):
    fail_at(monkeypatch, RuntimeError("a broken wire"), epoch=1, seed=1)
    overrides = (
        "logger=wandb",
        "tags=[a]",
        "plots=true",
    )
    assert train("-m", *overrides, "logger.wandb.log_model=true", "seed=0,1") == 1
    assert capsys.readouterr().err.count("no account on this machine") == 1
    assert wandb.run is None

    finished, failed = runs
    result, _ = run_dirs().values()
    for run, seed, code in ((finished, 0, 0), (failed, 1, 1)):
        assert run.options["name"] == f"custom seed{seed}"
        (sweep,) = Path("runs/sweeps").iterdir()
        assert run.options["group"] == f"sweep-{sweep.name[-6:]}"
        assert run.options["tags"] == ["a"]
        assert run.options["project"] == "resnet-se"
        assert run.options["mode"] == "offline"
        assert run.run.config["seed"] == seed
        assert run.run.config["model"]["widths"] == [8, 8, 16]
        assert run.run.config["experiment"] == "custom"
        assert run.run.config["parameters"] == result["model"]["total"]
        assert run.exit_code == code
    assert finished.run.config["config_hash"] == result["config_hash"]
    for name in ("experiment", "config_hash"):
        assert finished.run.summary[name] == result[name]
    assert finished.run.summary["parameters"] == result["model"]["total"]
    speed = result["train"]["images_per_second"]
    assert finished.run.summary["images_per_second"] == speed

    rows, epochs = finished.rows, result["history"]
    for name in ("train/loss", "train/lr", "val/acc", "val/loss"):
        assert rows[name] == pytest.approx(epochs[name], rel=1e-5)
        assert len(failed.rows[name]) == 1
    assert rows["test/acc"] == pytest.approx([result["test"]["acc"]], rel=1e-5)
    (table,) = rows["test/samples"]
    assert (len(table.data), len(table.columns)) == (48, 4)
    assert len(rows["test/confusion"]) == 1
    for name in ("curves", "confusion", "mistakes", "reliability", "augmented"):
        assert [type(shown) for shown in rows[f"plots/{name}"]] == [wandb.Image]
    (model,) = finished.artifacts
    assert (model.type, list(model.manifest.entries)) == ("model", ["best.ckpt"])
    assert not failed.artifacts


@pytest.mark.slow
def test_a_resumed_job_goes_on_in_its_wandb_run(runs, train, run_dirs, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    mend = fail_at(monkeypatch, KeyboardInterrupt(), epoch=1)
    assert train("logger=wandb") == 130
    mend()
    assert train("logger=wandb") == 0
    (run_dir,) = run_dirs()
    first, second = runs
    assert first.options["id"] == second.options["id"]
    assert first.options["id"] == (run_dir / "wandb/id").read_text()
    assert first.options["resume"] == "allow"
    assert first.options["group"] == "custom"
    assert [run.exit_code for run in runs] == [255, 0]
    # The second finds no file of the first, and tells all of it.
    assert [len(run.rows["train/loss"]) for run in runs] == [1, 2]


def level_db(records: list[bytes]) -> bytes:
    """A log of LevelDB's format after wandb's mark, by its specification."""
    content = bytearray(b":W&B\x00\x00\x00")
    for record in records:
        rest, first = record, True
        while first or rest:
            room = BLOCK - len(content) % BLOCK
            if room < 7:
                content += bytes(room)
                continue
            part, rest = rest[: room - 7], rest[room - 7 :]
            kind = (1 if not rest else 2) if first else (3 if rest else 4)
            content += struct.pack("<IHB", 0, len(part), kind) + part
            first = False
    return bytes(content)


def test_rows_of_a_wandb_file_are_read_up_to_where_it_was_cut(tmp_path):
    from wandb.proto.wandb_internal_pb2 import Record

    rows = [{"_step": n, "text": "x" * (40_000 if n == 1 else n)} for n in range(4)]
    records = []
    for row in rows:
        record = Record()
        for key, value in row.items():
            record.history.item.add(key=key, value_json=json.dumps(value))
        records.append(record.SerializeToString())
    file = tmp_path / "run.wandb"
    content = level_db([Record(num=1).SerializeToString(), *records])
    file.write_bytes(content)
    assert list(read_rows(file)) == rows
    for end in range(len(content)):  # a moment of `kill -9`
        if end % 997 and end < len(content) - 40:
            continue
        file.write_bytes(content[:end])
        left = list(read_rows(file))
        assert left == rows[: len(left)]
    file.write_bytes(content[:7])
    assert not list(read_rows(file))


def test_a_row_that_an_earlier_start_has_logged_is_not_logged_again(runs, tmp_path):
    logger = loggers.WandbRun(tmp_path / "e/seed0-1", "p", offline=True)
    logger.logged, logger.next_row = {(5, "val/loss"), (5, "epoch")}, 7
    logger.log_metrics({"val/loss": 2.0, "epoch": 0}, 5)
    logger.log_metrics({"train/loss": 1.0, "epoch": 0}, 5)
    logger.log_metrics({"val/loss": 3.0, "epoch": 1}, 11)
    (run,) = runs
    assert run.rows["val/loss"] == [3.0]
    assert run.rows["train/loss"] == [1.0]
    assert run.options["settings"]["x_transaction_log_flush_interval"] <= 1


@pytest.mark.slow
def test_every_epoch_is_in_every_dashboard_once_after_kills(
    wandb, train, tmp_path, run_dirs, monkeypatch
):
    events = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    monkeypatch.setenv("WANDB_MODE", "offline")
    options = ("logger=many", "trainer.max_epochs=8", "data.source.num_train=600")
    line = [sys.executable, "-m", "resnet_se.train", *TINY, *options]
    for epoch in (1, 4):  # killed somewhere after it
        process = subprocess.Popen(line, cwd=tmp_path, stdout=subprocess.DEVNULL)
        while not any(
            len(p.read_text().splitlines()) > epoch
            for p in tmp_path.glob("runs/*/*/metrics.csv")
        ):
            time.sleep(0.05)
            assert process.poll() is None
        process.kill()
        process.wait()
    assert train(*options) == 0
    ((run_dir, result),) = run_dirs().items()
    expected = pytest.approx(result["history"]["train/loss"], rel=1e-5)

    files = sorted(run_dir.glob("wandb/offline-run-*/*.wandb"))
    rows = [row for file in files for row in read_rows(file)]
    assert len(files) == 3
    steps = [row["_step"] for row in rows]
    assert steps == sorted(set(steps))
    for name in ("train/loss", "val/loss"):
        assert [r[name] for r in rows if name in r] == pytest.approx(
            result["history"][name], rel=1e-5
        )
    found = events.EventAccumulator(str(run_dir / "tensorboard"))
    found.Reload()
    assert [e.value for e in found.Scalars("train/loss")] == expected
    newest = max(run_dir.glob("csv/version_*/metrics.csv"), key=os.path.getmtime)
    lines = csv.DictReader(newest.read_text().splitlines())
    told = [line["train/loss"] for line in lines if line["train/loss"]]
    assert list(map(float, told)) == expected


@pytest.mark.slow
def test_a_sweep_that_is_typed_again_keeps_its_group(runs, train, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    again = ("-m", "logger=wandb", "trainer.max_epochs=1", "seed=0", "force=true")
    for line in (again, again[::-1], (*again, "optimizer.lr=0.2")):
        assert train(*line) == 0
    first, second, other = (run.options["group"] for run in runs)
    assert first == second != other


def test_another_directory_is_another_run(runs, tmp_path):
    for name in ("a/seed0-1234", "b/seed0-1234"):
        loggers.WandbRun(tmp_path / name, "p", offline=True)
        loggers.finish("finished")
    assert len({run.options["id"] for run in runs}) == 2


def compose_logger(*overrides: str, run_dir: Path | None = None):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", list(overrides))
    validate(cfg)
    cfg.run_dir = run_dir and str(run_dir)
    return cfg


@pytest.mark.slow
def test_the_variables_of_wandb_keep_their_meaning(wandb, monkeypatch, tmp_path):
    for name in ("PROJECT", "RUN_GROUP", "NAME", "RUN_ID", "TAGS"):
        monkeypatch.setenv(f"WANDB_{name}", f"my-{name.lower()}")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    cfg = compose_logger("logger=wandb", run_dir=tmp_path / "e/seed0-1")
    run = instantiate(cfg.logger.wandb, offline=True).experiment
    assert (run.project, run.group, run.name, run.id, run.tags) == (
        "my-project", "my-run_group", "my-name", "my-run_id", ("my-tags",),
    )  # fmt: skip
    assert not (tmp_path / "e").exists()


def test_an_agent_of_a_sweep_decides_on_id_and_project(runs, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep1")
    monkeypatch.setenv("WANDB_RUN_ID", "drawn7")
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    loggers.WandbRun(tmp_path / "e/seed0-1", "ours", offline=True)
    (run,) = runs
    assert {"id", "project", "group"} & set(run.options) == set()


def test_other_ranks_write_nothing(runs, monkeypatch, tmp_path):
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    logger = loggers.WandbRun(tmp_path / "e/seed0-1", "p")
    logger.log_metrics({"a": 1.0}, step=1)
    logger.experiment.log({"a": 1})
    assert runs == []
    assert not (tmp_path / "e").exists()


# --- the network -------------------------------------------------


@pytest.mark.slow
def test_an_unreachable_server_costs_seconds_and_is_said_once(
    wandb, monkeypatch, capsys, tmp_path
):
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "2")
    began = time.perf_counter()
    run_dirs = [tmp_path / "e" / name for name in ("seed0-1", "seed1-1")]
    for run_dir in run_dirs:
        run = loggers.WandbRun(run_dir, "p").experiment
        assert run.offline
        loggers.finish("finished")
    # One attempt, of wandb.init alone: wandb.login's check waits 10 s and more.
    assert time.perf_counter() - began < 10
    for run_dir in run_dirs:
        assert list(run_dir.glob("wandb/offline-run-*/*.wandb"))
    shown = capsys.readouterr()
    assert shown.err.count("Runs stay in their directories") == 1
    assert "127.0.0.1:9" in shown.err
    assert KEY not in shown.out + shown.err
    assert KEY.encode() not in all_bytes(tmp_path)


class Backend(BaseHTTPRequestHandler):
    """As much of wandb's server as starts a run."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        query = json.loads(body) if self.path == "/graphql" else {}
        self.server.asked.append((query.get("operationName"), body))
        entity = {"id": "e", "name": "e"}
        project = {"id": "p", "name": "resnet-se", "entity": entity}
        viewer = {"id": "u", "entity": "e", "username": "u", "flags": "{}"}
        answers = {
            "Viewer": {"viewer": viewer | {"teams": {"edges": []}}},
            "RunResumeStatus": {"model": project | {"bucket": None}},
        }
        if query.get("operationName") == "UpsertBucket":
            name = query["variables"]["name"]
            bucket = {"id": "b", "name": name, "displayName": name, "config": "{}"}
            bucket |= {"historyLineCount": 0, "project": project}
            answers["UpsertBucket"] = {
                "upsertBucket": {"bucket": bucket, "inserted": True}
            }
        known = self.path != "/graphql" or query.get("operationName") in answers
        reply = json.dumps(
            {"data": answers.get(query.get("operationName"), {})}
        ).encode()
        self.send_response(200 if known else 400)
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *_) -> None:
        pass


@pytest.mark.slow
def test_a_server_that_dies_in_the_middle_stops_nothing(
    wandb, train, run_dirs, monkeypatch, capsys, tmp_path
):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Backend)
    server.asked = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "3")
    start, finish = Classifier.on_train_epoch_start, loggers.finish

    def die(self):
        if self.current_epoch == 1:
            server.shutdown()
            server.server_close()
        start(self)

    monkeypatch.setattr(Classifier, "on_train_epoch_start", die)
    took = []

    def timed(status):
        began = time.perf_counter()
        finish(status)
        took.append(time.perf_counter() - began)

    monkeypatch.setattr(loggers, "finish", timed)
    assert train("logger=wandb", "plots=true") == 0
    assert max(took) < 15
    ((run_dir, result),) = run_dirs().items()
    assert result["status"] == "finished"
    assert len((run_dir / "metrics.csv").read_text().splitlines()) == 3
    assert list(run_dir.glob("wandb/run-*/*.wandb"))  # on disk all the same
    upsert = next(json.loads(b) for name, b in server.asked if name == "UpsertBucket")
    assert upsert["variables"]["name"] == (run_dir / "wandb/id").read_text()
    assert upsert["variables"]["groupName"] == "custom"
    shown = capsys.readouterr()
    assert "tables or model not logged" in shown.err
    assert KEY not in shown.out + shown.err
    assert KEY.encode() not in all_bytes(tmp_path)


# --- the other loggers -------------------------------------------


def test_csv_of_an_earlier_start_stays(tmp_path):
    cfg = compose_logger("logger=csv", run_dir=tmp_path)
    for loss in (2.0, 1.0):
        logger = instantiate(cfg.logger.csv)
        logger.log_metrics({"loss": loss}, step=1)
        logger.finalize("success")
    found = sorted(tmp_path.glob("csv/*/metrics.csv"))
    assert [p.read_text().split() for p in found] == [
        ["loss,step", "2.0,1"],
        ["loss,step", "1.0,1"],
    ]


def test_tensorboard_missing_names_the_install_command(train, monkeypatch, capsys):
    from lightning.fabric.loggers import tensorboard

    monkeypatch.setattr(tensorboard, "_TENSORBOARD_AVAILABLE", False)
    monkeypatch.setattr(tensorboard, "_TENSORBOARDX_AVAILABLE", False)
    assert train("logger=tensorboard") == 2
    error = capsys.readouterr().err
    assert "uv sync --extra tensorboard" in error
    assert "Traceback" not in error


@pytest.mark.slow
def test_all_loggers_at_once(wandb, train, run_dirs, monkeypatch):
    events = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="needs the extra: tensorboard",
    )
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert train("logger=many", "plots=true") == 0
    ((run_dir, result),) = run_dirs().items()
    found = events.EventAccumulator(str(run_dir / "tensorboard"))
    found.Reload()
    assert [e.value for e in found.Scalars("train/loss")] == pytest.approx(
        result["history"]["train/loss"], rel=1e-5
    )
    pictures = {f"plots/{path.stem}" for path in (run_dir / "plots").glob("*.png")}
    assert {"plots/curves", "plots/confusion", "plots/mistakes"} <= pictures
    assert set(found.Tags()["images"]) == pictures
    for logger in ("tensorboard", "csv/version_0"):
        config = yaml.safe_load((run_dir / logger / "hparams.yaml").read_text())
        assert config["model"]["widths"] == [8, 8, 16]


# --- the sweep file ----------------------------------------------


@pytest.mark.parametrize("end", ["min", "max"])
def test_the_sweep_file_gives_commands_that_train_understands(end):
    sweep = yaml.safe_load((CONF / "wandb_sweep.yaml").read_text())
    assert sweep["metric"] == {"name": "val/acc", "goal": "maximize"}
    assert sweep["metric"]["name"] in METRICS
    assert sweep["method"] in ("bayes", "random", "grid")
    *command, drawn = sweep["command"]
    assert command[:4] == ["${env}", "python", "-m", "resnet_se.train"]
    assert drawn == "${args_no_hyphens}"  # name=value of each parameter
    values = {
        name: many.get(end, many.get("values", [0])[-1])
        for name, many in sweep["parameters"].items()
    }
    args = [f"{name}={value}" for name, value in values.items()]
    cfg = compose_logger(*command[4:], *args)
    assert cfg.logger.wandb._target_ == "resnet_se.training.loggers.WandbRun"
    for name, value in values.items():
        assert OmegaConf.select(cfg, name) == value
