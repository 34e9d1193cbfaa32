"""Before the first step: does the network take the images; compile it.

The compiler's code and a CUDA graph are of one size of images each.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch

from resnet_se.data.datamodule import ImageDataModule
from resnet_se.data.resolution import Size
from resnet_se.training.module import Classifier
from resnet_se.utils.errors import UserError, nearest

# trainer.compile: the mode of torch's compiler.
COMPILE_MODES = {"off": None, "default": "default", "cuda_graphs": "reduce-overhead"}


def check_shape(net: torch.nn.Module, size: tuple[int, int], num_classes: int) -> None:
    """Refuse a network that does not give a row of logits an image.

    Raises:
        UserError: with the expected and the actual shape, or what it raised instead.
    """
    shadow = copy.deepcopy(net).to("meta").eval()
    images = torch.empty(2, 3, *size, device="meta")
    name, given, expected = type(net).__name__, tuple(images.shape), (2, num_classes)
    try:
        logits = shadow(images)
    except Exception as error:
        raise UserError(f"model: {name} fails on images {given}: {error}") from error
    _check_logits(logits, name, given, expected)


def check_training(
    net: torch.nn.Module, size: tuple[int, int], num_classes: int, batch_size: int
) -> None:
    """The same of a network in training, where some give more than logits.

    Raises:
        UserError: as `check_shape`; BatchNorm also fails of a single image, where
            nothing is left of its height and width; its logits have no gradient, or
            are probabilities, of which the loss would take the softmax again.
    """
    shadow = copy.deepcopy(net).cpu().train()
    images = torch.zeros(min(batch_size, 2), 3, *size)
    name, given = type(net).__name__, tuple(images.shape)
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            logits = shadow(images)
    except Exception as error:
        hint = "; take data.batch_size=2 or more" if batch_size == 1 else ""
        raise UserError(
            f"model: {name} fails in training on images {given}: {error}{hint}"
        ) from error
    _check_logits(logits, f"{name} in training", given, (len(images), num_classes))
    if not getattr(logits, "requires_grad", False):
        raise UserError(
            f"model: {name}: its logits have no gradient: no parameter that is trained "
            "reaches them (detach, no_grad or argmax in its forward?)"
        )
    if bool((logits >= 0).all()) and (logits.sum(1) - 1).abs().max() < 1e-3:
        raise UserError(
            f"model: {name}: expected logits, got probabilities (each row's sum is 1); "
            "leave out its softmax, which the loss takes"
        )


def _check_logits(
    logits: Any, name: str, given: tuple[int, ...], expected: tuple[int, int]
) -> None:
    shape = tuple(getattr(logits, "shape", ())) or type(logits).__name__
    if shape != expected:
        raise UserError(
            f"model: {name}: expected logits {expected} of images {given}, got {shape}"
        )


def check_sizes(net: torch.nn.Module, data: ImageDataModule) -> None:
    """Refuse a network that does not take the images of the test and of each epoch.

    Raises:
        UserError: as `check_shape`; of a smaller size it names those that it takes.
    """
    check_shape(net, data.image_size, data.num_classes)

    def takes(size: Size) -> bool:
        try:
            check_shape(net, size, data.num_classes)
        except UserError:
            return False
        return True

    side = min(data.image_size)
    for height, width in sorted(set(data.resolution.sizes(data.image_size))):
        if not takes((height, width)):
            # Of squares: a few dozen at most, each a forward pass without arithmetic.
            fits = [n for n in range(8, side, max(1, side // 32)) if takes((n, n))]
            raise UserError(
                f"data.resolution: {type(net).__name__} does not take images of "
                f"{height} × {width}; below {side} pixels it takes "
                + (", ".join(map(str, fits)) or "none: data.resolution=null")
            )


def compile_network(
    module: Classifier,
    trainer: L.Trainer,
    mode: str,
    batch_size: int,
    sizes: Sequence[Size],
) -> float | None:
    """Compile the network for training, in place, so that checkpoints keep their names.

    A batch of each size goes forward and back, after which the network is what it was:
    what the compiler misses shows before training, and its time stays out of the
    epochs'.  Each size has its own code, and its own CUDA graph.

    Args:
        mode: a key of `COMPILE_MODES`.
        batch_size: B.
        sizes: height and width of the images of each epoch.

    Returns:
        The seconds it took, None if the mode is off.

    Raises:
        UserError: an unknown mode, CUDA graphs without CUDA, no working compiler.
    """
    if mode not in COMPILE_MODES:
        hint = nearest(str(mode), COMPILE_MODES)
        raise UserError(f"trainer.compile: unknown {mode!r}; {hint}")
    if mode == "off":
        return None
    device = trainer.strategy.root_device
    if mode == "cuda_graphs" and device.type != "cuda":
        raise UserError(
            f"trainer.compile=cuda_graphs: needs an NVIDIA GPU, this run is on "
            f"{device.type}; trainer.compile=default works there"
        )
    # Networks of a sweep's earlier jobs would count against the compiler's limit.
    torch.compiler.reset()
    module.to(device).train()
    started = time.perf_counter()
    module.net.compile(mode=COMPILE_MODES[mode], dynamic=False)
    try:
        with restored_state(module.net):
            for size in sorted(set(sizes)):
                images = torch.zeros(batch_size, 3, *size, device=device)
                for _ in range(3):  # CUDA graphs: warms up, records, replays
                    forward_backward(module, trainer, images)
                    module.zero_grad()
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"trainer.compile: torch's compiler does not work here ({reason}); on a "
            "CPU it needs a C++ compiler, on a GPU Triton; trainer.compile=off does "
            "without"
        ) from error
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def forward_backward(
    net: torch.nn.Module, trainer: L.Trainer, images: torch.Tensor
) -> None:
    """One pass forward and back in the trainer's precision, of no particular loss."""
    with trainer.precision_plugin.forward_context():
        loss = net(images).float().logsumexp(dim=1).mean()
    loss.backward()


@contextmanager
def restored_state(net: torch.nn.Module) -> Iterator[None]:
    """Let the body train a little, then restore the state, in place."""
    before = {k: v.clone() for k, v in net.state_dict().items()}
    yield
    net.zero_grad()
    net.load_state_dict(before)  # BatchNorm has seen what are no images
