"""The machine: device, processor, cores, memory, clock, versions and commit."""

from __future__ import annotations

import ctypes
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet_se.utils.errors import UserError

if TYPE_CHECKING:
    import torch

# Pillow decodes: another one may give other pixels.
VERSIONED = (
    "torch",
    "torchvision",
    "lightning",
    "hydra-core",
    "torchmetrics",
    "pillow",
)


def environment() -> dict[str, Any]:
    """Return the fields `git` and `versions` of `result.json`."""
    packages = {name: version(name) for name in VERSIONED}
    return {
        "git": git_state(Path(__file__).parent),
        "versions": {"python": platform.python_version(), **packages},
    }


def git_state(folder: Path) -> dict[str, Any] | None:
    """Return the commit of a tracked folder and its dirtiness; None without git.

    Records that earlier runs have left in the repository do not make it dirty.
    """

    def git(*command: str) -> str | None:
        try:
            process = subprocess.run(
                ["git", "-C", str(folder), *command],
                capture_output=True,
                text=True,
                timeout=10,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return process.stdout.strip() if process.returncode == 0 else None

    # An installed package may lie in somebody else's repository: ask for our file.
    if not git("ls-files", "--error-unmatch", "__init__.py"):
        return None
    code = (":(top)", ":(top,exclude,glob)**/result.json")
    changes = git("status", "--short", "--untracked-files=all", "--", *code)
    return {"commit": git("rev-parse", "HEAD"), "dirty": bool(changes)}


def has_bf16(device: torch.device) -> bool:
    """Return whether `device` has bfloat16 arithmetic, rather than emulates it."""
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(False)
    # AVX-512 or AMX; without them a bf16 product is 17 times slower than float32.
    return device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def hardware(
    device: torch.device, precision: str, world_size: int = 1
) -> dict[str, Any]:
    """Return the field `hardware` of `result.json`."""
    name = processor()
    if device.type == "cuda":
        import torch

        name = torch.cuda.get_device_name(device)
    return {
        "accelerator": device.type,
        "device": name,
        "cpu": processor(),
        "cores": usable_cores(),
        "precision": str(precision),
        "world_size": world_size,
    }


def usable_cores() -> int:
    """Return the number of CPU cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor() -> str:
    """Return the processor's name."""
    name = _proc_field("/proc/cpuinfo", "model name")
    return name or platform.processor() or platform.machine()


def _proc_field(path: str, field: str) -> str | None:
    """Return a field of a file under /proc; None where there is none, off Linux."""
    with suppress(OSError):
        for line in Path(path).read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == field:
                return value.strip()
    return None


def reset_peak_memory(device: torch.device) -> None:
    """Start measuring peak memory anew: a sweep runs many jobs in one process."""
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError, AttributeError, TypeError):  # no glibc
        ctypes.CDLL(None).malloc_trim(0)  # freed by earlier jobs and kept
    with suppress(OSError):  # Linux; elsewhere the peak is the whole process's
        Path("/proc/self/clear_refs").write_text("5")


def keep_freed_memory() -> None:
    """Make glibc's allocator keep freed memory for the next tensor of that size.

    By default it maps blocks over 32 MB anew each time, and the system fills every page
    with zeros: up to a sixth of a step (experiments/speedrun).  For the whole process;
    `reset_peak_memory` returns to the system what has been kept so far.
    """
    mmap_max, trim_threshold = -4, -1  # of mallopt(3)
    with suppress(OSError, AttributeError, TypeError):  # no glibc
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, -1)  # never


def peak_memory_mb(device: torch.device) -> float:
    """Return peak memory in MB (10⁶ bytes): the GPU's, else the resident set's."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device) / 1e6
    if resident := _proc_field("/proc/self/status", "VmHWM"):  # 4200 kB
        return int(resident.split()[0]) * 1024 / 1e6
    with suppress(ImportError):  # macOS; Windows has no such figure
        import resource

        unit = 1 if platform.system() == "Darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
    return float("nan")


def now(device: torch.device) -> float:
    """Return a clock's seconds once the device has finished its work."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)
    return time.perf_counter()


def milliseconds(
    forwards: Sequence[Callable[[torch.Tensor], object]], images: torch.Tensor
) -> list[float]:
    """Return the time of one batch through each forward, the calls interleaved.

    Medians of five rounds, or of as many as fit in a second.
    """
    images = images.contiguous()
    times: list[list[float]] = [[] for _ in forwards]
    for forward in forwards:
        forward(images)
    while len(times[0]) < 5 or (sum(map(sum, times)) < 1 and len(times[0]) < 100):
        for forward, elapsed in zip(forwards, times, strict=True):
            start = now(images.device)
            forward(images)
            elapsed.append(now(images.device) - start)
    return [1e3 * statistics.median(elapsed) for elapsed in times]


def accelerator(wanted: str, name: str = "accelerator") -> str:
    """Return the device type for a `trainer.accelerator`: cpu, cuda or mps.

    Resolves `auto` and `gpu` as Lightning does.

    Raises:
        UserError: a GPU is asked for and there is none.
    """
    import torch

    if wanted in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return "cuda"
    if wanted in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return "mps"
    if wanted in ("gpu", "cuda", "mps"):
        raise UserError(
            f"{name}={wanted}: no such device here; {name}=cpu computes on the "
            "processor"
        )
    return "cpu" if wanted == "auto" else wanted


def cache_folder() -> Path:
    """Return $RESNET_SE_CACHE, else resnet-se in the user's cache; may be missing."""
    parent = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = os.environ.get("RESNET_SE_CACHE") or Path(parent, "resnet-se")
    return Path(folder).expanduser()
