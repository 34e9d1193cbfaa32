"""An ONNX file, once torch has written it: its names, its facts, its 8-bit form."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from torch import Tensor


def label(file: Path, about: dict[str, str]) -> None:
    """Name the free dimension of an ONNX file, and write what it is into it."""
    import onnx

    graph = onnx.load(file)
    values = [*graph.graph.input, *graph.graph.output, *graph.graph.value_info]
    free = graph.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in values:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == free:
                dim.dim_param = "batch"
    onnx.helper.set_model_props(graph, about)
    onnx.save(graph, file)


def quantise(file: Path, small: Path, images: Tensor) -> None:
    """Quantise weights by channel, and activations by scales from images.

    Unsigned activations: with signed ones onnxruntime leaves the convolutions beside a
    branch in float32, and the whole is slower than without.  Weights of seven bits:
    without VNNI a processor adds two products of unsigned by signed bytes in 16 bits,
    which eight would overflow (82 % became 34 in our quickstart).
    """
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantType,
        quantize_static,
    )

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rest = iter(images.split(64))

        def get_next(self) -> dict[str, Any] | None:
            part = next(self.rest, None)
            return None if part is None else {"images": part.contiguous().numpy()}

    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)  # it advertises its pre-processing
    try:
        quantize_static(
            file,
            small,
            Reader(),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            reduce_range=True,
        )
    finally:
        logging.getLogger().setLevel(level)
