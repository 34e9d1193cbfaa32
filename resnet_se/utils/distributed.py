"""Ranks: the processes of one run, their start, their agreement, their sums.

Lightning's DDP strategy trains.  The processes are started by torchrun (`RANK` in the
environment), by SLURM's `srun` with several tasks, or, where neither has started this
one, by `launch`: torchrun's own agent, once per job.  Lightning could start them
itself, but runs the script's whole command line again for each rank; in a multirun
that is another multirun.
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
STOP_SECONDS = 15  # from the end of one rank until the others are killed


class Stopped(BaseException):
    """The processes of a run were stopped, or one was killed, from outside."""


# --- this process ------------------------------------------------


def in_group() -> bool:
    """Return whether this process is one of several that run one training."""
    if _number("WORLD_SIZE", 1) > 1:
        return True
    tasks = _number("SLURM_NTASKS", 1)
    if tasks == 1:
        return False
    from lightning.fabric.plugins.environments import SLURMEnvironment

    return SLURMEnvironment.detect()


def is_leader() -> bool:
    """Return whether this is the process that writes files: rank 0, or the only one."""
    # Alone, a RANK left over in the environment means nothing.
    return not in_group() or _number("RANK", _number("SLURM_PROCID", 0)) == 0


def launched_by_us() -> bool:
    """Return whether `launch` started this process; its parent holds the run's lock."""
    return LAUNCHER_PID_ENV in os.environ


def world_size() -> int:
    """Return the number of this run's processes, on all machines."""
    return _number("WORLD_SIZE", _number("SLURM_NTASKS", 1)) if in_group() else 1


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    try:
        return int(text) if text else default
    except ValueError:
        raise UserError(f"{name} in the environment: not a number: {text!r}") from None


def on_cpu(trainer: Mapping[str, Any]) -> bool:
    """Return whether a `trainer` configuration trains on the CPU here."""
    return accelerator(trainer["accelerator"]) == "cpu"


def local_processes(trainer: Mapping[str, Any]) -> int:
    """Return the number of processes that a `trainer` configuration wants here.

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
    """Return a run's world size: that of the started group, else `local_processes`."""
    return world_size() if in_group() else local_processes(trainer)


def share_cores() -> None:
    """Divide the cores among the local processes, unless OMP_NUM_THREADS is set."""
    local = _number("LOCAL_WORLD_SIZE", 1)
    if local > 1 and "OMP_NUM_THREADS" not in os.environ:
        import torch

        torch.set_num_threads(max(1, usable_cores() // local))


# --- shared tensors ----------------------------------------------


def is_connected() -> bool:
    """Return whether this run's ranks can communicate; false of a single process."""
    from torch import distributed as dist

    return dist.is_available() and dist.is_initialized()


def gather_rows(part: Tensor) -> Tensor:
    """Return all ranks' rows (N, …) in the order of the images.

    Args:
        part: rows r, r + world size, … of the images (n, …), on rank r.
    """
    if not is_connected():
        return part
    from torchmetrics.utilities.distributed import gather_all_tensors

    parts = gather_all_tensors(part)
    whole = part.new_empty((sum(map(len, parts)), *part.shape[1:]))
    for rank, rows in enumerate(parts):
        whole[rank :: len(parts)] = rows
    return whole


def sum_over_ranks(values: Tensor) -> Tensor:
    """Return the sum of all ranks' values, which are changed in place."""
    if is_connected():
        from torch import distributed as dist

        dist.all_reduce(values)
    return values


# --- starting them -----------------------------------------------


def die_with_parent() -> None:
    """Make this process end with the one that launched it, even by `kill -9`.

    The kernel does so on Linux; elsewhere a thread watches.
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
    """Raise UserError in a rank whose run is not the one that was launched."""
    launched = os.environ.get(RUN_ENV) or name
    if launched_by_us() and launched != name:
        raise UserError(
            f"launched as {launched}, started as {name}: a module of your own, or the "
            "data, changed in between; start it again"
        )


def launch(
    module: str, overrides: Sequence[str], processes: int, run: str = ""
) -> None:
    """Run `python -m module overrides` as so many ranks and wait for them.

    Args:
        run: its name, which each rank compares with its own (`check_same_run`).

    Raises:
        Stopped: by a signal, or a rank was killed; none is left running.
        UserError: a rank ended with an error, which stands in its own output.
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
        # Once one rank has ended the agent stops the others, which are not the cause;
        # but a killed rank's peers may fail before it, having lost their connection.
        for other, end in error.failures.items():
            late = end.timestamp - failure.timestamp >= STOP_SECONDS - 1
            if end.exitcode < 0 and end.exitcode != -signal.SIGTERM and not late:
                raise Stopped(f"rank {other} was stopped: {end.message}") from None
        codes = {end.exitcode for end in error.failures.values()}
        if codes <= {130, -signal.SIGTERM}:
            raise Stopped(f"rank {rank} was stopped: {failure.message}") from None
        raise UserError(f"rank {rank} ended with status {failure.exitcode}") from None
    finally:
        del os.environ[LAUNCHER_PID_ENV], os.environ[RUN_ENV]
        for number, handler in handlers.items():
            signal.signal(number, handler)
