"""The paper's family of networks as a user of Keras would write it.

Biases on every convolution and on both SE layers, BatchNorm with Keras's defaults,
projections where a stage begins with another width or stride (paper.txt, The SE-ResNet
Architecture).  Needs Keras, not this project.
"""

from collections.abc import Sequence

import keras
from keras import layers


def _convolution(x, width: int, kernel: int, stride: int, l2: float | None):
    regularizer = keras.regularizers.L2(l2) if l2 else None
    x = layers.Conv2D(
        width, kernel, stride, padding="same", kernel_regularizer=regularizer
    )(x)
    return layers.BatchNormalization()(x)


def _squeeze_excite(x, reduction: int, l2: float | None):
    regularizer = keras.regularizers.L2(l2) if l2 else None
    c = x.shape[-1]
    z = layers.GlobalAveragePooling2D()(x)  # (B, C)
    z = layers.Dense(c // reduction, activation="relu", kernel_regularizer=regularizer)(
        z
    )
    z = layers.Dense(c, activation="sigmoid", kernel_regularizer=regularizer)(z)
    return layers.Multiply()([x, layers.Reshape((1, 1, c))(z)])  # (B, H, W, C)


def se_resnet(
    depths: Sequence[int],
    widths: Sequence[int],
    strides: Sequence[int] = (1, 2, 2),
    reduction: int | None = 16,
    l2: float | None = None,
    shortcut_first: bool = False,
) -> keras.Model:
    """Return images (B, 32, 32, 3) → logits (B, 10).

    Args:
        depths: blocks of each stage, of `widths` channels; the first has its stride.
        reduction: SE reduction, or None for no SE.
        l2: of the kernels, or None.
        shortcut_first: `Add()([shortcut, branch])` in place of `Add()([branch, …])`.
    """
    inputs = keras.Input((32, 32, 3))
    x = layers.Activation("relu")(_convolution(inputs, widths[0], 3, 1, l2))
    for depth, width, first in zip(depths, widths, strides, strict=True):
        for stride in [first] + [1] * (depth - 1):
            branch = _convolution(x, width, 3, stride, l2)
            branch = layers.Activation("relu")(branch)
            branch = _convolution(branch, width, 3, 1, l2)
            if reduction:
                branch = _squeeze_excite(branch, reduction, l2)
            if stride != 1 or x.shape[-1] != width:
                x = _convolution(x, width, 1, stride, l2)
            pair = [x, branch] if shortcut_first else [branch, x]
            x = layers.Activation("relu")(layers.Add()(pair))
    x = layers.GlobalAveragePooling2D()(x)  # (B, C)
    regularizer = keras.regularizers.L2(l2) if l2 else None
    return keras.Model(inputs, layers.Dense(10, kernel_regularizer=regularizer)(x))
