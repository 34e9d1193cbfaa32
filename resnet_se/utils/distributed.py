"""One run on many devices: who starts the processes, and what they must agree on.

Lightning's DDP strategy does the work.  The processes come from one of three places:
torchrun (`RANK` in the environment), SLURM's `srun` with several tasks, or, where
neither has started this one, from `launch`: torchrun's own agent, once per job.
Lightning could start them itself, but runs the script's whole command line again for
each rank; in a multirun that is another multirun.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from resnet_se.utils.errors import UserError
from resnet_se.utils.system import accelerator, usable_cores

if TYPE_CHECKING:
    from torch import Tensor

LAUNCHER_PID_ENV = "RESNET_SE_LAUNCHER"  # set for the processes that `launch` starts
RUN_ENV = "RESNET_SE_RUN"  # for the same: the run that was launched
STOP_SECONDS = 15  # for the others to end once one has: then they are killed


class Stopped(BaseException):
    """The processes of a run were stopped, or one was killed, from outside."""


# --- who am I ----------------------------------------------------


def in_group() -> bool:
    """Whether this process is one of several that were started for one run."""
    if _number("WORLD_SIZE", 1) > 1:
        return True
    tasks = _number("SLURM_NTASKS", 1)
    if tasks == 1:
        return False
    from lightning.fabric.plugins.environments import SLURMEnvironment

    return SLURMEnvironment.detect()


def is_leader() -> bool:
    """Whether this is the process that writes: rank 0, or the only one."""
    if not in_group():  # a RANK left over in the environment means nothing
        return True
    return _number("RANK", _number("SLURM_PROCID", 0)) == 0


def launched_by_us() -> bool:
    """Whether `launch` started this process: its parent keeps the run's lock."""
    return LAUNCHER_PID_ENV in os.environ


def world_size() -> int:
    """How many processes this run has, on all machines."""
    if not in_group():
        return 1
    return _number("WORLD_SIZE", _number("SLURM_NTASKS", 1))


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    try:
        return int(text) if text else default
    except ValueError:
        raise UserError(f"{name} in the environment: not a number: {text!r}") from None


def on_cpu(trainer: Mapping[str, Any]) -> bool:
    """Whether a `trainer` configuration trains on the CPU here."""
    return accelerator(trainer["accelerator"]) == "cpu"


def local_processes(trainer: Mapping[str, Any]) -> int:
    """How many processes a `trainer` configuration asks for on this machine.

    Raises:
        UserError: more devices than there are, or several machines, on each of which
            the processes must be started.
    """
    if trainer.get("num_nodes", 1) != 1 and not in_group():
        raise UserError(
            f"trainer.num_nodes={trainer['num_nodes']}: start it on each machine, by "
            "torchrun --nnodes or srun; alone this process would wait for the others"
        )
    if not str(trainer.get("strategy", "auto")).startswith("ddp"):
        return 1
    import torch

    gpus = torch.cuda.device_count()
    devices = trainer["devices"]
    if isinstance(devices, int) and devices > 0:
        n = devices
    elif devices in ("auto", -1, "-1"):
        n = 1 if on_cpu(trainer) else gpus
    else:
        n = len(devices.split(",") if isinstance(devices, str) else devices)
    if not on_cpu(trainer) and n > gpus:
        raise UserError(
            f"trainer.devices: asked for {n} GPUs, this machine has {gpus}; "
            "trainer=ddp_sim runs processes on the CPU"
        )
    return n


def processes(trainer: Mapping[str, Any]) -> int:
    """The world size of a run: what was started, else what will be; see above."""
    return world_size() if in_group() else local_processes(trainer)


def share_cores() -> None:
    """Gives each local process its part of the cores, unless OMP_NUM_THREADS says."""
    local = _number("LOCAL_WORLD_SIZE", 1)
    if local > 1 and "OMP_NUM_THREADS" not in os.environ:
        import torch

        torch.set_num_threads(max(1, usable_cores() // local))


# --- shared tensors ----------------------------------------------


def gather_rows(part: Tensor) -> Tensor:
    """Return all ranks' rows in the images' order; rank r has rows r, r + ranks, …

    Args:
        part: this rank's rows (n, …); n may differ by one between ranks.
    """
    from torch import distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return part
    from torchmetrics.utilities.distributed import gather_all_tensors

    parts = gather_all_tensors(part)
    whole = part.new_empty((sum(map(len, parts)), *part.shape[1:]))
    for rank, rows in enumerate(parts):
        whole[rank :: len(parts)] = rows
    return whole


def sum_over_ranks(values: Tensor) -> Tensor:
    """Add up all ranks' values in place and return them."""
    from torch import distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(values)
    return values


# --- starting them -----------------------------------------------


def die_with_parent() -> None:
    """Ends this process with the one that launched it, even by `kill -9`.

    On Linux by the kernel; elsewhere a thread watches.
    """
    parent = _number(LAUNCHER_PID_ENV, 0)
    if not parent:
        return
    if sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
    else:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def check_same_run(name: str) -> None:
    """Raises UserError in a rank whose run is not the one that was launched."""
    launched = os.environ.get(RUN_ENV) or name
    if launched_by_us() and launched != name:
        raise UserError(
            f"launched as {launched}, started as {name}: a module of your own, or the "
            "data, changed in between; start it again"
        )


def launch(
    module: str, overrides: Sequence[str], processes: int, run: str = ""
) -> None:
    """Runs `python -m module overrides` as so many ranks and waits for them.

    Args:
        run: its name, which all of them must come to (`check_same_run`).

    Raises:
        Stopped: by a signal, or a rank was killed; none is left running.
        UserError: a rank ended with an error; what it was stands in its own output.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",  # any free port
        local_addr="localhost",
        max_restarts=0,
        monitor_interval=0.5,
        shutdown_timeout=STOP_SECONDS,
    )
    handlers = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}
    os.environ |= {LAUNCHER_PID_ENV: str(os.getpid()), RUN_ENV: run}
    try:
        elastic_launch(config, sys.executable)("-m", module, *overrides)
    except (SignalException, KeyboardInterrupt) as error:
        raise Stopped(str(error) or "interrupted from outside") from None
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        # Where one has ended the agent stops the others, who are not the reason; but of
        # those, some fail first because they have lost the one that was killed.
        for which, found in error.failures.items():
            late = found.timestamp - failure.timestamp >= STOP_SECONDS - 1
            if found.exitcode < 0 and found.exitcode != -signal.SIGTERM and not late:
                raise Stopped(f"rank {which} was stopped: {found.message}") from None
        codes = {found.exitcode for found in error.failures.values()}
        if codes <= {130, -signal.SIGTERM}:
            raise Stopped(f"rank {rank} was stopped: {failure.message}") from None
        raise UserError(f"rank {rank} ended with status {failure.exitcode}") from None
    finally:
        del os.environ[LAUNCHER_PID_ENV], os.environ[RUN_ENV]
        for which, handler in handlers.items():
            signal.signal(which, handler)
