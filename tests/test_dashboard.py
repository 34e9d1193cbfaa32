"""wandb, TensorBoard and CSV: one run a job, closed truly, whatever the network does.

What wandb keeps offline is read back from its files; a small server of our own stands
in for its backend where one is needed.
"""

from __future__ import annotations

import json
import os
import struct
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning.pytorch.utilities import rank_zero_only

from resnet_se import dashboard
from resnet_se.classifier import METRICS, Classifier
from resnet_se.config import CONF, check_config, config_hash

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
    monkeypatch.setattr(dashboard, "_offline", [])
    wandb.teardown()  # it reads its variables once a session
    yield wandb
    wandb.finish()
    wandb.teardown()


def offline_runs(run_dir: Path) -> list[list]:
    """The records of each start in a run directory, oldest first."""
    import wandb

    wandb.teardown()  # waits until they are written
    files = sorted(run_dir.glob("wandb/*run-*/*.wandb"))
    return [list(records(path.read_bytes())) for path in files]


def records(data: bytes):
    """A .wandb file: LevelDB's log format after seven bytes of header."""
    from wandb.proto.wandb_internal_pb2 import Record

    at, payload = 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # a block's end is padded
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        payload += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(payload)
            payload = b""


def of_kind(found: list, kind: str) -> list:
    return [getattr(r, kind) for r in found if r.WhichOneof("record_type") == kind]


def history(found: list) -> dict[str, list]:
    """The values that were logged under each name."""
    rows: dict[str, list] = {}
    for row in of_kind(found, "history"):
        for item in row.item:
            name = item.key or "/".join(item.nested_key)
            rows.setdefault(name, []).append(json.loads(item.value_json))
    return rows


def config_of(found: list) -> dict:
    """What was put into the run's config, at its start and later."""
    updates = [run.config.update for run in of_kind(found, "run")]
    updates += [config.update for config in of_kind(found, "config")]
    return {u.key: json.loads(u.value_json) for many in updates for u in many if u.key}


def all_bytes(folder: Path) -> bytes:
    return b"".join(p.read_bytes() for p in folder.rglob("*") if p.is_file())


# --- runs --------------------------------------------------------


def test_two_jobs_one_failing_leave_two_runs_in_their_true_states(
    wandb, train, run_dirs, monkeypatch, capsys
):
    start = Classifier.on_train_epoch_start

    def fail(self):
        if self.seed == 1 and self.current_epoch == 1:
            raise RuntimeError("a broken wire")
        start(self)

    monkeypatch.setattr(Classifier, "on_train_epoch_start", fail)
    overrides = (
        "+callbacks.gradient_norm._target_=resnet_se.dashboard.GradientNorm",
        "logger=wandb",
        "tags=[a]",
    )
    assert train("-m", *overrides, "logger.wandb.log_model=true", "seed=0,1") == 1
    assert capsys.readouterr().err.count("no account on this machine") == 1
    assert wandb.run is None

    (good, result), (bad, _) = run_dirs().items()
    ((finished,), (failed,)) = (offline_runs(d) for d in (good, bad))
    for found, seed, code in ((finished, 0, 0), (failed, 1, 1)):
        (run,) = of_kind(found, "run")
        assert run.display_name == f"quickstart seed{seed}"
        assert [path.name for path in Path("runs/sweeps").iterdir()] == [run.run_group]
        assert list(run.tags) == ["a"]
        assert run.project == "resnet-se"
        config = config_of(found)
        assert config["seed"] == seed
        assert config["model"]["widths"] == [8, 8, 16]
        (closed,) = of_kind(found, "exit")
        assert closed.exit_code == code

    rows = history(finished)
    epochs = result["history"]
    # The last value is the best checkpoint's, measured before the test.
    assert rows["val/acc"] == pytest.approx(
        [*epochs["val/acc"], result["val"]["acc"]], rel=1e-5
    )
    for name in ("train/loss", "train/lr", "train/grad_norm", "train/grad_norm_max"):
        assert rows[name] == pytest.approx(epochs[name], rel=1e-5)
        assert len(history(failed)[name]) == 1
    assert rows["test/acc"] == pytest.approx([result["test"]["acc"]], rel=1e-5)
    assert (rows["test/samples/nrows"], rows["test/samples/ncols"]) == ([48], [4])
    assert rows["test/confusion_table/nrows"] == [100]  # 10 × 10 classes
    for name in ("curves", "confusion", "mistakes"):
        assert rows[f"plots/{name}/_type"] == ["image-file"]
    (model,) = [a for a in of_kind(finished, "artifact") if a.type == "model"]
    assert [entry.path for entry in model.manifest.contents] == ["best.ckpt"]
    assert not of_kind(failed, "artifact")


def test_a_resumed_job_goes_on_in_its_wandb_run(wandb, train, run_dirs, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    start = Classifier.on_train_epoch_start

    def interrupt(self):
        if self.current_epoch == 1:
            raise KeyboardInterrupt
        start(self)

    monkeypatch.setattr(Classifier, "on_train_epoch_start", interrupt)
    assert train("logger=wandb") == 130
    monkeypatch.setattr(Classifier, "on_train_epoch_start", start)
    assert train("logger=wandb") == 0
    (run_dir,) = run_dirs()
    first, second = offline_runs(run_dir)
    (a,), (b,) = (of_kind(found, "run") for found in (first, second))
    assert a.run_id == b.run_id
    assert a.run_group == "quickstart"
    codes = [of_kind(found, "exit")[0].exit_code for found in (first, second)]
    assert codes == [255, 0]
    assert [len(history(found)["train/loss"]) for found in (first, second)] == [1, 1]


def test_another_directory_is_another_run(wandb, tmp_path):
    ids = set()
    for name in ("a/seed0-1234", "b/seed0-1234"):
        run = dashboard.WandbRun(tmp_path / name, "p", offline=True).experiment
        ids.add(run.id)
        dashboard.finish("finished")
    assert len(ids) == 2


def compose_logger(*overrides: str):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", list(overrides))
    check_config(cfg)
    return cfg


def test_the_variables_of_wandb_keep_their_meaning(wandb, monkeypatch, tmp_path):
    for name in ("PROJECT", "RUN_GROUP", "NAME", "RUN_ID", "TAGS"):
        monkeypatch.setenv(f"WANDB_{name}", f"my-{name.lower()}")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    cfg = compose_logger("logger=wandb", f"run_dir={tmp_path}/e/seed0-1")
    run = instantiate(cfg.logger.wandb, offline=True).experiment
    assert (run.project, run.group, run.name, run.id, run.tags) == (
        "my-project", "my-run_group", "my-name", "my-run_id", ("my-tags",),
    )  # fmt: skip
    assert not (tmp_path / "e").exists()


def test_an_agent_of_a_sweep_decides_on_id_and_project(wandb, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep1")
    monkeypatch.setenv("WANDB_RUN_ID", "drawn7")
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    run = dashboard.WandbRun(tmp_path / "e/seed0-1", "ours", offline=True).experiment
    assert (run.id, run.project, run.group) == ("drawn7", "theirs", "")
    assert run.sweep_id == "sweep1"


def test_other_ranks_write_nothing(wandb, monkeypatch, tmp_path):
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    logger = dashboard.WandbRun(tmp_path / "e/seed0-1", "p")
    logger.log_metrics({"a": 1.0}, step=1)
    logger.experiment.log({"a": 1})
    assert wandb.run is None
    assert not (tmp_path / "e").exists()


# --- the network -------------------------------------------------


def test_an_unreachable_server_costs_seconds_and_is_said_once(
    wandb, monkeypatch, capsys, tmp_path
):
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "2")
    began = time.perf_counter()
    run_dirs = [tmp_path / "e" / name for name in ("seed0-1", "seed1-1")]
    for run_dir in run_dirs:
        run = dashboard.WandbRun(run_dir, "p").experiment
        assert run.offline
        dashboard.finish("finished")
    assert time.perf_counter() - began < 60
    for run_dir in run_dirs:
        found = offline_runs(run_dir)[-1]
        assert of_kind(found, "exit")[0].exit_code == 0
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


def test_a_server_that_dies_in_the_middle_stops_nothing(
    wandb, train, run_dirs, monkeypatch, capsys, tmp_path
):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Backend)
    server.asked = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "3")
    start = Classifier.on_train_epoch_start

    def die(self):
        if self.current_epoch == 1:
            server.shutdown()
            server.server_close()
        start(self)

    monkeypatch.setattr(Classifier, "on_train_epoch_start", die)
    finish = dashboard.finish
    took = []

    def timed(status):
        began = time.perf_counter()
        finish(status)
        took.append(time.perf_counter() - began)

    monkeypatch.setattr(dashboard, "finish", timed)
    assert train("logger=wandb") == 0
    assert max(took) < 15
    ((run_dir, result),) = run_dirs().items()
    assert result["status"] == "finished"
    assert len((run_dir / "metrics.csv").read_text().splitlines()) == 3
    (found,) = offline_runs(run_dir)  # online, and on disk all the same
    assert len(history(found)["train/loss"]) == 2
    (upsert,) = [json.loads(b) for name, b in server.asked if name == "UpsertBucket"][
        :1
    ]
    assert upsert["variables"]["name"] == (run_dir / "wandb/id").read_text()
    assert upsert["variables"]["groupName"] == "quickstart"
    assert history(found)["plots/curves/_type"] == ["image-file"]
    shown = capsys.readouterr()
    assert "tables or model not logged" in shown.err
    assert KEY not in shown.out + shown.err
    assert KEY.encode() not in all_bytes(tmp_path)


# --- the other loggers -------------------------------------------


def test_csv_of_an_earlier_start_stays(tmp_path):
    cfg = compose_logger("logger=csv", f"run_dir={tmp_path}")
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


def test_all_loggers_at_once(wandb, train, run_dirs, monkeypatch):
    events = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="needs the extra: tensorboard",
    )
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert train("logger=many") == 0
    ((run_dir, result),) = run_dirs().items()
    found = events.EventAccumulator(str(run_dir / "tensorboard"))
    found.Reload()
    assert [e.value for e in found.Scalars("train/loss")] == pytest.approx(
        result["history"]["train/loss"], rel=1e-5
    )
    pictures = {"plots/curves", "plots/confusion", "plots/mistakes"}
    assert set(found.Tags()["images"]) == pictures
    for logger in ("tensorboard", "csv/version_0"):
        config = yaml.safe_load((run_dir / logger / "hparams.yaml").read_text())
        assert config["model"]["widths"] == [8, 8, 16]


def test_watching_does_not_change_the_run_directory():
    plain = config_hash(compose_logger(), "")
    watched = compose_logger(
        "logger=many",
        "+callbacks.gradient_norm._target_=resnet_se.dashboard.GradientNorm",
    )
    assert config_hash(watched, "") == plain


# --- the sweep file ----------------------------------------------


def test_the_sweep_file_gives_commands_that_train_understands(wandb):
    from wandb.sdk.launch.sweeps import utils

    sweep = yaml.safe_load((CONF / "wandb_sweep.yaml").read_text())
    assert sweep["metric"]["name"] in METRICS
    assert sweep["metric"]["goal"] == "maximize"
    command = utils.create_sweep_command(sweep["command"])
    assert command[:4] == ["${env}", "python", "-m", "resnet_se.train"]
    assert command[-1] == "${args_no_hyphens}"
    default = compose_logger()
    for end in ("min", "max"):
        drawn = {
            name: {"value": many.get(end, many.get("values", [0])[-1])}
            for name, many in sweep["parameters"].items()
        }
        args = utils.create_sweep_command_args({"args": drawn})["args_no_hyphens"]
        cfg = compose_logger(*command[4:-1], *args)
        assert cfg.logger.wandb._target_ == "resnet_se.dashboard.WandbRun"
        assert cfg.optimizer.lr == drawn["optimizer.lr"]["value"]
        assert config_hash(cfg, "") != config_hash(default, "")
    assert set(sweep["method"].split()) <= {"bayes", "random", "grid"}


# --- gradient norms ----------------------------------------------


def test_gradient_norms_are_the_steps_mean_and_maximum():
    module = torch.nn.ModuleList([torch.nn.Linear(3, 2), torch.nn.Linear(2, 2)])
    module.device = torch.device("cpu")
    logged = {}
    module.log_dict = lambda values, **_: logged.update(values)
    trainer = SimpleNamespace(num_training_batches=3)
    callback = dashboard.GradientNorm()
    callback.on_train_epoch_start(trainer, module)
    norms = []
    for i in range(3):
        for p in module.parameters():
            p.grad = torch.randn_like(p) * (3 - i)
        module[1].bias.grad = None  # frozen
        flat = [p.grad.flatten() for p in module.parameters() if p.grad is not None]
        norms.append(torch.cat(flat).norm())
        callback.on_before_optimizer_step(trainer, module, None)
        assert not logged
        callback.on_train_batch_end(trainer, module, None, None, i)
    expected = {
        "train/grad_norm": torch.stack(norms).mean(),
        "train/grad_norm_max": max(norms),
    }
    torch.testing.assert_close(logged, expected)
