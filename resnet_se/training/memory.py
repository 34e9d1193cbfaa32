"""Out of memory: which batch would have fitted."""

from __future__ import annotations

import copy
import gc
from typing import Any

import torch

from resnet_se.utils.errors import UserError


def explain(error: Exception, trainer: Any, model: Any, data: Any) -> None:
    """Where a training has run out of memory, says so with the batch that would fit.

    Raises:
        UserError: it has; else nothing.
    """
    if not is_out_of_memory(error):
        return
    device = model.device
    error.__traceback__ = None  # its frames hold the tensors of the step
    model.zero_grad(set_to_none=True)
    fits = fitting(trainer, model, data.image_size, data.batch_size, device)
    hint = "a smaller network might" if fits is None else f"data.batch_size={fits} does"
    raise UserError(
        f"data.batch_size: {data.batch_size} images do not fit into the memory of "
        f"{device}; {hint}; the learning rate may have to change with it"
    ) from None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it is CUDA's, Python's, or that of torch's allocator for CPUs."""
    kinds = torch.OutOfMemoryError | MemoryError
    return isinstance(error, kinds) or "can't allocate memory" in str(error)


def fitting(
    trainer: Any, model: Any, size: tuple[int, int], batch: int, device: torch.device
) -> int | None:
    """The largest half, quarter, eighth, … of a batch whose step goes through."""
    net = copy.deepcopy(model.net).train()
    while batch > 1:
        batch //= 2
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        try:
            images = torch.zeros(batch, 3, *size, device=device)
            with trainer.precision_plugin.forward_context():
                net(images).float().logsumexp(dim=1).mean().backward()
            return batch
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            error.__traceback__ = None
    return None
