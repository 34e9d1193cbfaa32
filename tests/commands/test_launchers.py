"""Many jobs at once: Hydra's launchers, the GPUs of a machine, the search with Optuna.

Real GPUs and a real SLURM are not needed: what a job sees of the former is an
environment variable, and of the latter a few commands, which a test replaces.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import lightning as L
import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn

from resnet_se.commands.sweep import multirun
from resnet_se.commands.sweep.lost_jobs import enduring
from resnet_se.config import CONF
from tests.conftest import TINY

ROOT = Path(__file__).parents[2]
LAUNCHERS = ("joblib", "submitit_local", "submitit_slurm", "ray")


class Note(L.Callback):
    """Leaves the process's id and its GPUs in a file, where training starts."""

    def on_fit_start(self, trainer, pl_module):
        with (Path(trainer.default_root_dir) / "note.txt").open("a") as file:
            print(os.getpid(), os.environ.get("CUDA_VISIBLE_DEVICES"), file=file)


NOTE = "+callbacks.note._target_=tests.commands.test_launchers.Note"


def extra(launcher: str) -> None:
    """Skips a test whose launcher is not installed."""
    name = launcher.partition("_")[0]
    pytest.importorskip(f"hydra_plugins.hydra_{name}_launcher", reason=f"extra {name}")


def start(tmp_path: Path, *overrides: str, **environment: str) -> subprocess.Popen:
    """`train` with the tiny configuration in a process of its own."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    flags = [o for o in overrides if o.startswith("-")]  # argparse wants them first
    rest = [o for o in overrides if not o.startswith("-")]
    return subprocess.Popen(
        [sys.executable, "-m", "resnet_se.train", *flags, *TINY, NOTE, *rest],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(process: subprocess.Popen, folder: Path, pattern: str) -> Path:
    while not (found := sorted(folder.glob(pattern))):
        time.sleep(0.05)
        assert process.poll() is None, process.communicate()[0]
    return found[0]


def outcomes(folder: Path) -> list[dict]:
    """Of the newest sweep under `folder`, in order."""
    newest = max((folder / "runs/sweeps").iterdir(), key=lambda p: p.stat().st_mtime_ns)
    return multirun.outcomes(newest)


def notes(run_dirs) -> list[list[str]]:
    """(process, GPUs) of every start of training."""
    files = [folder / "note.txt" for folder in run_dirs()]
    lines = [line for f in files if f.exists() for line in f.read_text().splitlines()]
    return [line.split() for line in lines]


# --- configuration -----------------------------------------------


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_missing_extra_names_its_command(train, capsys, monkeypatch, launcher):
    Plugins.instance()  # they register their configurations
    known = ConfigStore.instance().repo["hydra"]["launcher"]
    monkeypatch.delitem(known, f"{launcher}.yaml", raising=False)
    assert train("-m", f"launcher={launcher}") == 2
    name = launcher.partition("_")[0]
    assert f"not installed; uv sync --extra {name}" in capsys.readouterr().err


def test_a_missing_optuna_names_its_command(train, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert train("hparams_search=optuna") == 2
    assert "not installed; uv sync --extra optuna" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("gpus", "jobs", "cores", "shares"),
    [
        ("", 2, 8, (4, 0)),
        ("3,5", 2, 8, (4, 1)),
        ("3,5", 4, 8, (2, 0.5)),
        ("0,1,2,3", 2, 3, (1, 2)),
    ],
)
def test_ray_gives_a_job_its_share(monkeypatch, gpus, jobs, cores, shares):
    extra("ray")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    monkeypatch.setattr(multirun, "usable_cores", lambda: cores)
    overrides = ["launcher=ray", f"launcher.jobs={jobs}"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", overrides, return_hydra_config=True)
    remote = cfg.hydra.launcher.ray.remote
    assert (remote.num_cpus, remote.num_gpus) == shares


# --- GPUs --------------------------------------------------------


@pytest.mark.parametrize(
    ("gpus", "jobs", "shares"),
    [
        (["0", "1"], 2, ["0", "1"]),
        (["4", "7"], 4, ["4", "7", "4", "7"]),
        ([0, 1, 2, 3], 2, ["0,1", "2,3"]),
        (["GPU-a"], 1, ["GPU-a"]),
    ],
)
def test_processes_share_the_gpus_evenly(tmp_path, monkeypatch, gpus, jobs, shares):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    processes = []
    for share in shares:  # a lock excludes another of the same process as well
        monkeypatch.setattr(
            multirun, "_locks_held", processes.append([]) or processes[-1]
        )
        for _ in range(2):  # a worker's second job keeps what the first one took
            multirun.claim_gpus(gpus, jobs, tmp_path)
            assert os.environ["CUDA_VISIBLE_DEVICES"] == share
    processes[-1].clear()  # it ends
    monkeypatch.setattr(multirun, "_locks_held", [])
    multirun.claim_gpus(gpus, jobs, tmp_path)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == shares[-1]


def test_without_gpus_nothing_is_set(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    multirun.claim_gpus([], 2, tmp_path)
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
    assert not list(tmp_path.iterdir())


# --- launchers ---------------------------------------------------


@pytest.mark.slow
def test_joblib_goes_on_after_a_worker_was_killed(tmp_path, run_dirs):
    extra("joblib")
    line = ("-m", "launcher=joblib", "launcher.gpus=[4,7]", "trainer.max_epochs=15")
    jobs = ("optimizer.lr=0.1,-1,0.2",)
    first = start(tmp_path, *line, *jobs)
    checkpoint = wait_for(first, tmp_path, "runs/*/*/checkpoints/last.ckpt")
    killed = checkpoint.parent.parent
    os.kill(int((killed / "note.txt").read_text().split()[0]), signal.SIGKILL)
    printed = first.communicate(timeout=600)[0]
    assert first.returncode == 1
    assert "the same command goes on from here" in printed
    assert run_dirs()[killed]["status"] == "running"

    again = start(tmp_path, *line, *jobs)
    printed = again.communicate(timeout=600)[0]
    assert again.returncode == 1, printed
    kinds = {o["run_dir"]: o["kind"] for o in outcomes(tmp_path)}
    assert kinds[str(killed)] == "resumed"
    assert [o["kind"] for o in outcomes(tmp_path)][1] == "failed"
    assert "1 failed" in printed
    finished = [r for r in run_dirs().values() if r["status"] == "finished"]
    assert [r["train"]["epochs"] for r in finished] == [15, 15]
    # A worker has one GPU for good, and no two at once the same.
    assert {gpu for _, gpu in notes(run_dirs)} == {"4", "7"}
    workers = {tuple(note) for note in notes(run_dirs)}
    assert len(workers) == len({process for process, _ in workers})


@pytest.mark.slow
def test_submitit_gives_every_job_a_process(tmp_path, run_dirs):
    extra("submitit_local")
    line = ("-m", "launcher=submitit_local", "launcher.gpus=[4,7]", "seed=0,1")
    process = start(tmp_path, *line, "trainer.max_epochs=1")
    printed = process.communicate(timeout=600)[0]
    assert process.returncode == 0, printed
    assert [o["kind"] for o in outcomes(tmp_path)] == ["done", "done"]
    (a, _), (b, _) = notes(run_dirs)
    assert a != b
    assert {gpu for _, gpu in notes(run_dirs)} <= {"4", "7"}
    logs = list(tmp_path.glob("runs/sweeps/*/.submitit/*/*_log.out"))
    assert any("custom, seed 1" in log.read_text() for log in logs)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_a_launchers_jobs_start_their_own_ranks(tmp_path, run_dirs, launcher):
    extra(launcher)
    line = ("-m", f"launcher={launcher}", "launcher.jobs=2", "seed=0,1")
    process = start(tmp_path, *line, "trainer=ddp_sim", "trainer.max_epochs=1")
    printed = process.communicate(timeout=600)[0]
    assert process.returncode == 0, printed
    assert [o["kind"] for o in outcomes(tmp_path)] == ["done", "done"]
    assert [r["train"]["steps"] for r in run_dirs().values()] == [216 // 64] * 2
    assert len({process for process, *_ in notes(run_dirs)}) == 4  # two ranks a job


class Killed(L.Callback):
    """Ends the process of seed 1 as the kernel does where memory runs out."""

    def on_train_epoch_end(self, trainer, pl_module):
        if pl_module.seed == 1:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_killed_job_fails_alone(tmp_path, run_dirs):
    extra("submitit_local")
    line = ("-m", "launcher=submitit_local", "launcher.jobs=2", "seed=0,1,2")
    killed = "+callbacks.killed._target_=tests.commands.test_launchers.Killed"
    process = start(tmp_path, *line, killed, "trainer.max_epochs=1")
    printed = process.communicate(timeout=600)[0]
    assert process.returncode == 1, printed
    assert [o["kind"] for o in outcomes(tmp_path)] == ["done", "failed", "done"]
    lost = outcomes(tmp_path)[1]
    assert "killed" in lost["error"]
    assert run_dirs()[Path(lost["run_dir"])]["seed"] == 1
    assert "2 done, 1 failed" in printed
    assert "Traceback" not in printed


class Pool:
    """A launcher whose worker dies at a job, as joblib's, with all that wait for it."""

    def __init__(self, folder, dies_at):
        self.folder, self.dies_at, self.launched = folder, dies_at, []

    def launch(self, job_overrides, initial_job_idx):
        for number, overrides in enumerate(job_overrides, initial_job_idx):
            self.launched.append(number)
            record = multirun.job_record(number, overrides)
            kind = "running" if number == self.dies_at else "done"
            multirun.write_outcome(self.folder / str(number), record | {"kind": kind})
            if number == self.dies_at:
                raise RuntimeError("a worker was killed")
        return [JobReturn() for _ in job_overrides]


def test_a_launcher_that_has_lost_a_worker_goes_on(tmp_path, capsys):
    pool = Pool(tmp_path, dies_at=1)
    launcher = enduring(pool, tmp_path)
    launcher.launch([[f"seed={n}"] for n in range(3)], initial_job_idx=0)
    launcher.launch([["seed=3"]], initial_job_idx=3)  # the next batch
    kinds = [o["kind"] for o in multirun.outcomes(tmp_path)]
    assert kinds == ["done", "failed", "not started", "done"]
    assert "goes on from here" in capsys.readouterr().err


def test_what_a_launcher_cannot_start_at_all_is_raised(tmp_path):
    class Unset:
        def launch(self, job_overrides, initial_job_idx):
            raise RuntimeError("no partition")

    with pytest.raises(RuntimeError, match="no partition"):
        enduring(Unset(), tmp_path).launch([["seed=0"]], initial_job_idx=0)
    assert not list(tmp_path.iterdir())


def test_all_batches_are_composed_before_the_first_starts(train, capsys):
    batches = ("-m", "hydra.sweeper.max_batch_size=1", "seed=-1")
    assert train(*batches, "optimizer=sgd,sdg") == 2
    assert "optimizer" in capsys.readouterr().err
    assert not list(Path("runs/sweeps").glob("*/*/outcome.json"))


# The commands of SLURM that submitit calls.  A requeued job's script runs once more.
FAKE_SLURM = {
    "sbatch": """
        cp "$1" "$FAKE/script"
        export SLURM_JOB_ID=7 SLURM_NTASKS=1 SLURM_JOB_NUM_NODES=1
        export SLURM_NODEID=0 SLURM_PROCID=0 SLURM_LOCALID=0
        (bash "$FAKE/script"; [ -e "$FAKE/requeued" ] && bash "$FAKE/script") \
            > /dev/null 2>&1 &
        echo Submitted batch job 7""",
    "srun": """
        while [[ "$1" == --* ]]; do
            [[ "$1" == --output || "$1" == --error ]] && shift
            shift
        done
        exec "$@" """,
    "scontrol": 'echo "$@" >> "$FAKE/requeued"',
    "sacct": "echo 'JobID|State|NodeList'; echo '7|RUNNING|here'",
}


@pytest.mark.slow
def test_slurm_requeues_a_job_at_its_time_limit(tmp_path, run_dirs):
    extra("submitit_slurm")
    for name, text in FAKE_SLURM.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "FAKE": str(tmp_path),
    }
    line = ("-m", "launcher=submitit_slurm", "hydra.launcher.partition=gpu")
    job = ("trainer.max_epochs=15", "hydra.launcher.timeout_min=600")
    process = start(tmp_path, *line, *job, **environment)
    checkpoint = wait_for(process, tmp_path, "runs/*/*/checkpoints/last.ckpt")
    note = checkpoint.parent.parent / "note.txt"
    os.kill(int(note.read_text().split()[0]), signal.SIGUSR2)
    printed = process.communicate(timeout=600)[0]
    assert process.returncode == 0, printed
    assert (tmp_path / "requeued").read_text().split() == ["requeue", "7"]
    assert [o["kind"] for o in outcomes(tmp_path)] == ["resumed"]
    assert len(notes(run_dirs)) == 2
    (result,) = run_dirs().values()
    assert (result["status"], result["train"]["epochs"]) == ("finished", 15)
    script = (tmp_path / "script").read_text()
    for option in (
        "--partition=gpu",
        "--gpus-per-node=1",
        "--cpus-per-task=4",
        "--time=600",
        "--signal=USR2@300",
        "--open-mode=append",
    ):
        assert f"#SBATCH {option}\n" in script


@pytest.mark.parametrize("seeds", ["3", "3,4,5"])
def test_a_dry_run_prints_the_very_script(train, capsys, monkeypatch, tmp_path, seeds):
    extra("submitit_slurm")
    from submitit.slurm.slurm import _make_sbatch_string

    options = ("hydra.launcher.partition=gpu", "hydra.launcher.gpus_per_node=2")
    line = ("-m", "launcher=submitit_slurm", *options, f"seed={seeds}")
    assert train(*line, "launcher.dry_run=true") == 0
    printed = capsys.readouterr().out
    (sweep,) = (tmp_path / "runs/sweeps").iterdir()
    folder = sweep / ".submitit/%j"
    command = f"{sys.executable} -u -m submitit.core._submit {folder}"
    array = {"map_count": 3, "array_parallelism": 16} if "," in seeds else {}
    assert printed == _make_sbatch_string(
        command=command, folder=folder, job_name="resnet-se", partition="gpu",
        time=1440, gpus_per_node=2, cpus_per_task=4, nodes=1, ntasks_per_node=1,
        signal_delay_s=300, stderr_to_stdout=False, **array,
    )  # fmt: skip
    assert not list(tmp_path.glob("runs/custom"))
    assert train(*line[1:-1], "launcher.dry_run=true") == 2
    assert "only a multirun is launched; add -m" in capsys.readouterr().err


@pytest.mark.slow
def test_ray_runs_two_workers(tmp_path, run_dirs):
    extra("ray")
    line = ("-m", "launcher=ray", "launcher.jobs=2", "seed=0,1")
    ray = (
        "+hydra.launcher.ray.init.num_cpus=2",
        "hydra.launcher.ray.remote.num_cpus=1",
    )
    process = start(tmp_path, *line, *ray, "trainer.max_epochs=1")
    printed = process.communicate(timeout=600)[0]
    assert process.returncode == 0, printed
    assert [o["kind"] for o in outcomes(tmp_path)] == ["done", "done"]
    assert len({process for process, _ in notes(run_dirs)}) == 2


# --- the search --------------------------------------------------

SEARCH = (
    "hparams_search=optuna",
    "trainer.max_epochs=4",
    "optimizer.lr=tag(log,interval(0.01,1))",  # the tiny one has settings of its own
    "model.reduction=choice(2,4,8)",
    "hydra.sweeper.n_trials=3",
    "hydra.sweeper.pruner=null",
)


@pytest.fixture
def study(tmp_path):
    """The trials of the one search under a runs directory, and its results file."""
    pytest.importorskip("optuna", reason="extra optuna")
    from resnet_se.training.study import open_study

    def find(runs: str = "runs"):
        (folder,) = (tmp_path / runs / "searches").iterdir()
        results = folder / "optimization_results.yaml"
        found = yaml.safe_load(results.read_text()) if results.exists() else None
        return open_study(folder, "val/acc").trials, found, folder

    return find


@pytest.mark.slow
def test_a_killed_search_goes_on_as_if_it_had_not_been(
    train, command, tmp_path, run_dirs, study, capsys
):
    process = start(tmp_path, *SEARCH)
    seen = set()
    while len(seen) < 2:  # the second trial has a checkpoint
        seen |= set(tmp_path.glob("runs/*/*/checkpoints/last.ckpt"))
        time.sleep(0.05)
        assert process.poll() is None, process.communicate()[0]
    process.kill()
    process.communicate()
    states = [trial.state.name for trial in study()[0]]
    assert states == ["COMPLETE", "RUNNING"]

    assert train(NOTE, *SEARCH) == 0
    trials, results, folder = study()
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 3
    kinds = [o["kind"] for o in multirun.outcomes(folder)]
    assert kinds == ["done", "resumed", "done"]
    printed = capsys.readouterr().out
    assert results["command"] in printed

    # Validation chose: the best value is the best of the runs' validation accuracies.
    values = [result["val"]["acc"] for result in run_dirs().values()]
    assert sorted(values) == sorted(trial.value for trial in trials)
    assert results["best_value"] == max(values)
    assert 0.01 <= results["best_params"]["optimizer.lr"] <= 1
    assert results["best_params"]["model.reduction"] in (2, 4, 8)

    # The command that is printed is the best trial's run.
    python, m, module, *overrides = shlex.split(results["command"])
    assert (python, m, module) == ("python", "-m", "resnet_se.train")
    assert command("train", *overrides) == 0
    assert "is finished" in capsys.readouterr().out

    # And without an interruption: the same trials.
    assert train(NOTE, *SEARCH, "runs_dir=whole") == 0
    whole = study("whole")[0]
    assert [trial.params for trial in whole] == [trial.params for trial in trials]
    assert [trial.value for trial in whole] == [trial.value for trial in trials]


@pytest.mark.slow
def test_a_search_records_what_fails_and_can_be_continued(train, study, capsys):
    space = ("optimizer.lr=choice(-1)", "trainer.max_epochs=1")
    assert train(*SEARCH, *space, "hydra.sweeper.n_trials=1") == 1
    assert "optimizer.lr: expected a number > 0, got -1" in capsys.readouterr().err
    trials, results, folder = study()
    assert [trial.state.name for trial in trials] == ["FAIL"]
    assert results is None
    assert train(*SEARCH, *space, "hydra.sweeper.n_trials=2") == 1
    assert len(study()[0]) == 2
    assert len(multirun.outcomes(folder)) == 2


PRUNED = (
    "hparams_search=optuna",
    "trainer.max_epochs=4",
    # The first is good; none of the others can be among the best third.
    "optimizer.lr=choice(0.05,1e-8)",
    "hydra.sweeper.n_trials=4",
    "data.source.num_train=600",
    "hydra.sweeper.metric=val/loss",
    "seed=3",
)


@pytest.mark.parametrize(
    ("rule", "share", "loss"), [("halving", 0.4, 0.03), ("hyperband", 0.75, 0.06)]
)
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_rule_finds_a_good_trial_in_fewer_epochs(tmp_path, rule, share, loss, seed):
    """30 learning curves of 27 epochs, each reported by a handle of its own.

    Halving needs two fifths of the epochs; Hyperband, whose brackets start late as
    well, more.
    """
    optuna = pytest.importorskip("optuna", reason="extra optuna")
    from resnet_se.training.study import open_study

    generator = torch.Generator().manual_seed(seed)
    heights = 0.5 + 0.4 * torch.rand(30, generator=generator)
    epochs = 0
    study = open_study(tmp_path, "val/acc", rule, 1, 27)
    for height in heights.tolist():
        asked = study.ask({"x": optuna.distributions.FloatDistribution(0, 1)})
        job = open_study(tmp_path, "val/acc", rule, 1, 27)
        trial = optuna.trial.Trial(job, asked._trial_id)
        state = optuna.trial.TrialState.COMPLETE
        for epoch in range(1, 28):
            noise = 0.01 * float(torch.randn((), generator=generator))
            value = height * (1 - 0.5 ** (1 + epoch / 5)) + noise
            trial.report(value, epoch)
            epochs += 1
            if epoch < 27 and trial.should_prune():
                state = optuna.trial.TrialState.PRUNED
                break
        study.tell(asked, value if epoch == 27 else None, state)
    assert epochs <= share * 30 * 27
    whole = float(heights.max()) * (1 - 0.5 ** (1 + 27 / 5))
    assert study.best_value > whole - loss  # the noise has a deviation of 0.01


def test_searches_of_two_seeds_share_no_proposal():
    from resnet_se.commands.sweep.search import _proposal_seed

    drawn = [_proposal_seed(seed, trial) for seed in range(10) for trial in range(100)]
    assert len(set(drawn)) == len(drawn)
    assert 0 <= min(drawn) <= max(drawn) < 2**32


def test_importances_are_of_what_matters(tmp_path):
    pytest.importorskip("optuna", reason="extra optuna")
    from optuna.distributions import FloatDistribution
    from optuna.samplers import RandomSampler

    from resnet_se.commands.sweep.search import _importances, _plot_importances
    from resnet_se.training.study import open_study

    space = {name: FloatDistribution(0, 1) for name in ("idle", "lr")}
    for seed in range(6):  # by the best tenth, two trials, 1 and 2 are told wrongly
        (tmp_path / str(seed)).mkdir()
        study = open_study(tmp_path / str(seed), "val/acc")
        study.sampler = RandomSampler(seed=seed)
        for _ in range(20):
            trial = study.ask(space)
            assert _importances(study) == {} or len(study.trials) > 10
            study.tell(trial, trial.params["lr"])
        found = _importances(study)
        assert list(found) == ["lr", "idle"]
        assert found["lr"] > 0.8
    _plot_importances(found, tmp_path / "importance.png")
    assert (tmp_path / "importance.png").stat().st_size > 1000


@pytest.mark.parametrize("metric", ["val/acc", "val/loss"])
def test_importances_count_trials_that_were_pruned(tmp_path, metric):
    optuna = pytest.importorskip("optuna", reason="extra optuna")
    from resnet_se.commands.sweep.search import _importances
    from resnet_se.training.study import open_study

    study = open_study(tmp_path, metric)
    study.sampler = optuna.samplers.RandomSampler(seed=0)
    floats = optuna.distributions.FloatDistribution(0, 1)
    for _ in range(20):
        trial = study.ask({"idle": floats, "lr": floats})
        lr = trial.params["lr"]
        sign = 1 if metric == "val/acc" else -1
        if lr > 0.8:  # trained to its end, where all have come down a little
            trial.report(sign * lr / 2, 4)
            study.tell(trial, sign * lr / 2)
        else:  # further, the better it is
            trial.report(sign * lr, 1 + (lr > 0.4))
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    found = _importances(study)
    assert list(found) == ["lr", "idle"]
    assert found["lr"] > 0.8


@pytest.mark.slow
def test_a_bad_trial_is_pruned_and_can_be_trained_to_its_end(
    train, command, run_dirs, study, capsys
):
    assert train(*PRUNED) == 0
    trials, results, folder = study()
    states = [trial.state.name for trial in trials]
    kinds = [o["kind"] for o in multirun.outcomes(folder)]
    assert [k == "pruned" for k in kinds] == [s == "PRUNED" for s in states]
    assert results["pruned"] == states.count("PRUNED") >= 1
    assert results["best_params"]["optimizer.lr"] == 0.05
    for trial in trials:  # a figure an epoch, from the job
        assert list(trial.intermediate_values) == [
            epoch + 1 for epoch in range(len(trial.intermediate_values))
        ]
    runs = {run: r for run, r in run_dirs().items() if r["status"] == "pruned"}
    run, record = next(iter(runs.items()))
    epochs = record["train"]["epochs"]
    assert epochs < 4
    assert "test" not in record
    done = [o for o in multirun.outcomes(folder) if o["kind"] != "skipped"]
    assert results["epochs"] == sum(o["epochs"] for o in done)

    assert command("train", *record["overrides"]) == 0
    shown = capsys.readouterr().out.replace("\n", "")
    assert f"{run.name}/checkpoints/last.ckpt" in shown.partition("resuming from")[2]
    record = run_dirs()[run]
    assert (record["status"], record["train"]["epochs"]) == ("finished", 4)


@pytest.mark.slow
def test_trials_of_several_processes_prune_one_another(tmp_path, run_dirs, study):
    extra("joblib")
    line = ("launcher=joblib", "launcher.jobs=2", "hydra.sweeper.n_trials=6")
    process = start(tmp_path, *PRUNED, *line)
    printed = process.communicate(timeout=900)[0]
    assert process.returncode == 0, printed
    trials, results, _ = study()
    states = [trial.state.name for trial in trials]
    assert len(states) == 6
    assert set(states) <= {"COMPLETE", "PRUNED"}
    assert results["pruned"] == states.count("PRUNED") >= 1
    assert all(trial.intermediate_values for trial in trials)
    assert len({process for process, _ in notes(run_dirs)}) == 2


@pytest.mark.slow
def test_a_search_with_joblib_runs_trials_at_once(tmp_path, run_dirs, study):
    extra("joblib")
    line = ("launcher=joblib", "launcher.jobs=2", "hydra.sweeper.n_trials=2")
    process = start(tmp_path, *SEARCH, *line, "trainer.max_epochs=2")
    printed = process.communicate(timeout=600)[0]
    assert process.returncode == 0, printed
    assert [trial.state.name for trial in study()[0]] == ["COMPLETE"] * 2
    assert len({process for process, _ in notes(run_dirs)}) == 2


@pytest.mark.parametrize(
    ("typed", "answer"),
    {
        "hydra.sweeper.metric=test/acc": "hydra.sweeper.metric: got 'test/acc'; valid",
        "hydra.sweeper.n_trials=0": "n_trials: expected an integer >= 1, got 0",
        "optimizer.lr=tag(log,interval(0,1))": "optimizer.lr=tag(log,interval(0,1)): ",
        "hydra.sweeper.n_trial=3": "hydra.sweeper.n_trial",
        "hydra.sweeper.metric=null": "got None (a pruner compares trials by it)",
        "hydra.sweeper.pruner=halfing": "got 'halfing'; did you mean 'halving'",
        "hydra.sweeper.min_epochs=0": "min_epochs: expected an integer >= 1, got 0",
    }.items(),
)
def test_a_mistake_in_a_search(train, capsys, typed, answer):
    pytest.importorskip("optuna", reason="extra optuna")
    assert train("hparams_search=optuna", typed) == 2
    error = capsys.readouterr().err
    assert answer in error
    assert "Traceback" not in error
