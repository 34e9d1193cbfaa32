"""Measures in Keras itself what the table of docs/pages/keras.md says of it.

    python experiments/keras/reference.py             # Keras 3, with its backend
    python experiments/keras/reference.py --tf-keras  # tf_keras, in TensorFlow's place

Each row of the table is one function, which returns plain numbers; `reference.json`
beside this file holds them and the versions, and the tests hold ours against it without
Keras.  What is random is drawn by NumPy from a fixed seed and kept with the results.
"""

import argparse
import importlib.metadata
import json
import math
import os
import platform
import tempfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
STORE = HERE / "reference.json"
IDLE = {"verbose": 0}


def rounded(values) -> list:
    """Return an array's values with nine significant digits, float32's and more."""
    if isinstance(values, (list, tuple)):
        return [rounded(value) for value in values]
    array = np.asarray(values, np.float64)
    if array.ndim:
        return [rounded(value) for value in array]
    return float(f"{array:.9g}")


# --- rates -------------------------------------------------------


def paper_factor(epoch: int) -> float:
    """Return warm-up over epochs 0–5 from a tenth, decays by ten at 100 and 250."""
    warmup = 1.0 if epoch >= 5 else 0.1 + 0.9 * epoch / 5
    return warmup * 0.1 ** sum(epoch >= milestone for milestone in (100, 250))


def trained_rates(keras, losses: list[float], callbacks: list) -> dict[str, list]:
    """Return the rate of each epoch's training, and the one that `history` shows.

    Args:
        losses: the validation losses that the callbacks are shown, one an epoch.
    """
    used = []

    class Planned(keras.callbacks.Callback):
        """Replaces the validation loss before the other callbacks see it."""

        def on_epoch_end(self, epoch, logs=None):
            logs["val_loss"] = losses[epoch]

    class Recorded(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            used.append(float(np.asarray(self.model.optimizer.learning_rate)))

    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(1e-3), "mse")
    x = np.zeros((1, 1), np.float32)
    seen = model.fit(
        x, x, epochs=len(losses), callbacks=[Planned(), *callbacks, Recorded()], **IDLE
    ).history
    return {"trained": rounded(used), "history": rounded(seen["learning_rate"])}


def schedule_and_plateau(keras) -> dict:
    """Rates over 300 epochs whose validation loss is best at epoch 60."""
    losses = [2 - 0.02 * min(epoch, 60) for epoch in range(300)]

    def plateau():
        return keras.callbacks.ReduceLROnPlateau(factor=0.5, patience=20)

    def scheduler(rule):
        return keras.callbacks.LearningRateScheduler(rule)

    def absolute(epoch):
        return 1e-3 * paper_factor(epoch)

    def relative(epoch, rate):
        return rate * paper_factor(epoch) / paper_factor(max(epoch - 1, 0))

    schedule_first = trained_rates(keras, losses, [scheduler(absolute), plateau()])
    plateau_first = trained_rates(keras, losses, [plateau(), scheduler(absolute)])
    pairs = zip(plateau_first["trained"], plateau_first["history"], strict=True)
    return {
        "losses": rounded(losses),
        "of_epoch": schedule_first["trained"],
        "either_order_alike": schedule_first["trained"] == plateau_first["trained"],
        "history_differs_at": [i for i, (a, b) in enumerate(pairs) if a != b],
        "of_epoch_and_rate": trained_rates(
            keras, losses, [scheduler(relative), plateau()]
        )["trained"],
        "plateau_alone": trained_rates(keras, losses, [plateau()])["trained"],
    }


def plateau(keras) -> dict:
    """Rates under ReduceLROnPlateau: when it acts, and on how small an improvement."""
    falls = {
        # Below 1e-4, though more than 1e-4 of the loss itself.
        "small_losses": [0.01 * 0.997**epoch for epoch in range(24)],
        # Above 1e-4, though less than 1e-4 of the loss itself.
        "large_losses": [40 - 0.0005 * epoch for epoch in range(24)],
        "best_at_four": [3.0 - 0.5 * min(epoch, 4) for epoch in range(24)],
    }
    options = [{"patience": 3}, {"patience": 0}, {"patience": 1}]
    options += [{"patience": 3, "cooldown": cooldown} for cooldown in (1, 2, 4)]
    rows = [
        {"losses": rounded(losses), "options": chosen, "rates": None}
        for losses in falls.values()
        for chosen in options
    ]
    for row in rows:
        rule = keras.callbacks.ReduceLROnPlateau(factor=0.5, **row["options"])
        row["rates"] = trained_rates(keras, row["losses"], [rule])["trained"]
    return {"min_delta": 1e-4, "rows": rows}


def early_stopping(keras) -> dict:
    """Epochs trained before patience 7 stops a run that was best at epoch 4."""
    losses = [3.0 - 0.5 * min(epoch, 4) for epoch in range(24)]
    seen = []

    class Planned(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            logs["val_loss"] = losses[epoch]
            seen.append(epoch)

    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    x = np.zeros((1, 1), np.float32)
    stop = keras.callbacks.EarlyStopping(patience=7)
    model.fit(x, x, epochs=24, callbacks=[Planned(), stop], **IDLE)
    return {"losses": rounded(losses), "patience": 7, "epochs": len(seen)}


def first_loss_nan(keras, folder: Path) -> dict:
    """Files of ModelCheckpoint and epochs of EarlyStopping after a first NaN."""
    losses = [math.nan, 1.0, 0.9, 0.8, 0.7, 0.6]
    saved, stopped = [], []

    class Planned(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            logs["val_loss"] = losses[epoch]
            stopped.append(epoch)

    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    x = np.zeros((1, 1), np.float32)
    file = folder / "epoch{epoch:02d}.weights.h5"
    keep = keras.callbacks.ModelCheckpoint(
        str(file), save_best_only=True, save_weights_only=True
    )
    model.fit(x, x, epochs=6, callbacks=[Planned(), keep], **IDLE)
    saved = sorted(int(path.name[5:7]) - 1 for path in folder.glob("epoch*"))
    stopped.clear()
    stop = keras.callbacks.EarlyStopping(patience=3)
    model.fit(x, x, epochs=6, callbacks=[Planned(), stop], **IDLE)
    return {"saved_epochs": saved, "patience": 3, "epochs": len(stopped)}


# --- augmentation ------------------------------------------------


def affine(image_module) -> dict:
    """An image (H, W) moved by `apply_affine_transform`, in its own arguments.

    A square one: of others Keras takes the height for the width where it centres.
    """
    image = np.random.default_rng(1).integers(0, 256, (12, 12), dtype=np.uint8)
    cases = [
        {"tx": 2.0},  # what height_shift_range draws
        {"ty": 2.0},
        {"tx": 1.3, "ty": -2.6},
        {"theta": 15.0},
        {"shear": 10.0},
        {"shear": 0.1},
        {"zx": 1.2, "zy": 1.2},
        {"zx": 0.9, "zy": 1.1},
        {"theta": -12.0, "tx": 1.5, "ty": 0.7, "shear": 8.0, "zx": 0.93, "zy": 1.08},
    ]
    rows = []
    for fill, chosen in (("nearest", cases), ("reflect", cases[2:4] + cases[-1:])):
        for case in chosen:
            moved = image_module.apply_affine_transform(
                image[:, :, None].astype(np.float64),
                **case,
                row_axis=0,
                col_axis=1,
                channel_axis=2,
                fill_mode=fill,
            )
            values = [[round(float(v), 3) for v in row] for row in moved[:, :, 0]]
            rows.append({"arguments": case, "fill": fill, "moved": values})
    return {"image": image.tolist(), "rows": rows}


def generator_draws(image_module) -> dict:
    """Ranges of ImageDataGenerator's own draws, over 4,000 images of (20, 40)."""
    generator = image_module.ImageDataGenerator(
        rotation_range=15,
        width_shift_range=0.1,
        height_shift_range=0.1,
        shear_range=0.1,
        zoom_range=0.1,
        horizontal_flip=True,
    )
    draws = [generator.get_random_transform((20, 40, 3), seed=i) for i in range(4000)]
    names = ("theta", "tx", "ty", "shear", "zx", "zy", "flip_horizontal")
    columns = {name: np.array([float(d[name]) for d in draws]) for name in names}
    return {
        "size": [20, 40],
        "fill_mode": generator.fill_mode,
        "least": {k: round(float(v.min()), 4) for k, v in columns.items()},
        "most": {k: round(float(v.max()), 4) for k, v in columns.items()},
        "mean_flips": round(float(columns["flip_horizontal"].mean()), 4),
        "whole_shifts": int((columns["tx"] % 1 == 0).sum()),
        "correlation_of_zooms": round(
            float(np.corrcoef(columns["zx"], columns["zy"])[0, 1]), 3
        ),
    }


def fill_of_real_images(image_module, images: np.ndarray) -> dict:
    """Means and black areas of real images under the paper's augmentation, by fill."""
    ranges = {
        "rotation_range": 15,
        "width_shift_range": 0.1,
        "height_shift_range": 0.1,
        "zoom_range": 0.1,
        "shear_range": 10,
        "horizontal_flip": True,
    }
    white = np.full((32, 32, 1), 255.0)
    result = {"images": len(images), "plain_mean": round(float(images.mean()), 2)}
    for fill in ("nearest", "constant", "reflect"):
        generator = image_module.ImageDataGenerator(fill_mode=fill, **ranges)
        transforms = [
            generator.get_random_transform((32, 32, 3), seed=i)
            for i in range(len(images))
        ]
        moved = [
            generator.apply_transform(image.astype(np.float64), transform)
            for image, transform in zip(images, transforms, strict=True)
        ]
        result[f"{fill}_mean"] = round(float(np.mean(moved)), 2)
        if fill == "constant":
            areas = [generator.apply_transform(white, t).mean() for t in transforms]
            result["filled_share"] = round(1 - float(np.mean(areas)) / 255, 4)
    return result


# --- network and loss --------------------------------------------


def l2(keras) -> dict:
    """Penalty, losses and gradient of `L2(1e-4)` on a convolution's kernel."""
    kernel = np.random.default_rng(2).normal(size=(3, 3, 2, 4)).astype(np.float32)
    model = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            keras.layers.Conv2D(4, 3, kernel_regularizer=keras.regularizers.L2(1e-4)),
            keras.layers.BatchNormalization(),
            keras.layers.GlobalAveragePooling2D(),
        ]
    )
    convolution = model.layers[0]
    convolution.set_weights([kernel, np.ones(4, np.float32)])
    # One step of rate 1 on images of zeros: the data's gradient is zero there.
    model.compile(keras.optimizers.SGD(1.0), lambda y, p: keras.ops.sum(p * 0))
    x = np.zeros((4, 6, 6, 2), np.float32)
    y = np.zeros((4, 4), np.float32)
    val_loss = model.fit(x, y, batch_size=4, validation_data=(x, y), **IDLE).history[
        "val_loss"
    ]
    after, bias = convolution.get_weights()
    scale = np.asarray(model.layers[1].gamma)
    return {
        "kernel": rounded(kernel),
        "penalty": rounded(1e-4 * float((kernel.astype(np.float64) ** 2).sum())),
        "val_loss_after": rounded(val_loss[0]),
        "gradient_per_weight": rounded(((kernel - after) / kernel).mean()),
        "bias_moved": rounded(np.abs(bias - 1).max()),
        "batch_norm_scale_moved": rounded(np.abs(scale - 1).max()),
    }


def networks(keras) -> dict:
    """Parameters, layers, initial weights and the L2 penalty of the paper's family."""
    from network import se_resnet

    shapes = {
        "se_resnet20": ((3, 3, 3), (16, 32, 64), (1, 2, 2)),
        "se_resnet80": ((20, 6, 13), (32, 64, 128), (1, 2, 2)),
        "se_resnet_table": ((1, 1, 1, 1), (64, 128, 256, 512), (1, 1, 2, 2)),
    }
    result = {}
    for name, (depths, widths, strides) in shapes.items():
        keras.utils.set_random_seed(0)
        model = se_resnet(depths, widths, strides, l2=1e-4)
        kernels = [layer for layer in model.layers if hasattr(layer, "kernel")]
        row = {
            "trainable": sum(math.prod(w.shape) for w in model.trainable_weights),
            "non_trainable": sum(
                math.prod(w.shape) for w in model.non_trainable_weights
            ),
            "penalty": rounded(float(np.asarray(sum(model.losses)))),
            "penalty_of_convolutions": rounded(
                sum(
                    1e-4 * float((np.asarray(layer.kernel) ** 2).sum())
                    for layer in kernels
                    if layer.kernel.ndim == 4
                )
            ),
        }
        if name == "se_resnet20":
            row["kernels"] = [
                {
                    "shape": list(layer.kernel.shape),
                    "std": rounded(np.asarray(layer.kernel).std()),
                    "most": rounded(np.abs(np.asarray(layer.kernel)).max()),
                }
                for layer in kernels
            ]
            row["largest_bias"] = rounded(
                max(np.abs(np.asarray(layer.bias)).max() for layer in kernels)
            )
        result[name] = row
    return result


def same_padding(keras) -> dict:
    """Convolutions of `padding="same"` on a fixed tensor, kernels (h, w, in, out)."""
    draw = np.random.default_rng(3)
    rows = []
    for size in ((6, 6), (5, 7)):
        x = draw.integers(-9, 10, (1, *size, 2)).astype(np.float32)
        for kernel, stride in ((3, 1), (3, 2), (1, 2), (3, 3), (5, 2)):
            weights = draw.integers(-3, 4, (kernel, kernel, 2, 2)).astype(np.float32)
            layer = keras.layers.Conv2D(2, kernel, stride, padding="same")
            layer.build(x.shape)
            layer.set_weights([weights, np.zeros(2, np.float32)])
            rows.append(
                {
                    "x": x[0].astype(int).tolist(),
                    "kernel": weights.astype(int).tolist(),
                    "stride": stride,
                    "y": np.asarray(layer(x))[0].round().astype(int).tolist(),
                }
            )
    return {"rows": rows}


def batch_norm(keras) -> dict:
    """Running statistics after one batch, and an output in inference."""
    x = np.random.default_rng(4).normal(2, 3, (2, 2, 2, 3)).astype(np.float32)
    layer = keras.layers.BatchNormalization()
    trained = np.asarray(layer(x, training=True))
    return {
        "x": rounded(x),
        "trained": rounded(trained),
        "mean": rounded(np.asarray(layer.moving_mean)),
        "variance": rounded(np.asarray(layer.moving_variance)),
        "momentum": layer.momentum,
        "epsilon": layer.epsilon,
        "precision": str(layer.compute_dtype),
    }


def adam(keras) -> dict:
    """Weights after each step of rate 1e-3 under a constant gradient."""
    rows = []
    for gradient in (1e-6, 1e-3):
        weight = keras.Variable(np.zeros(1, np.float32))
        rule = keras.optimizers.Adam(1e-3)
        rule.build([weight])
        after = []
        for _ in range(8):
            rule.apply([keras.ops.convert_to_tensor([gradient], "float32")], [weight])
            after.append(float(np.asarray(weight)[0]))
        rows.append({"gradient": gradient, "weights": rounded(after)})
    return {"rate": 1e-3, "epsilon": rule.epsilon, "rows": rows}


# --- data --------------------------------------------------------


def validation_split(keras) -> dict:
    """Smallest and largest number of each part of 0 … 24 under validation_split."""
    ops = keras.ops

    def least(y, p):
        return ops.min(y)

    def most(y, p):
        return ops.max(y)

    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", lambda y, p: ops.sum(p * 0), metrics=[least, most])
    x = np.arange(25, dtype=np.float32)[:, None]
    seen = model.fit(x, x, batch_size=25, validation_split=0.1, **IDLE).history
    return {
        "size": 25,
        "fraction": 0.1,
        "train": [int(seen["least"][0]), int(seen["most"][0])],
        "val": [int(seen["val_least"][0]), int(seen["val_most"][0])],
    }


def steps_per_epoch(keras) -> dict:
    """Batches of 128 that an epoch of 45,000 images takes."""
    count = []

    class Count(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            count.append(batch)

    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    x = np.zeros((45000, 1), np.float32)
    model.fit(x, x, batch_size=128, callbacks=[Count()], **IDLE)
    return {"images": 45000, "batch": 128, "steps": len(count)}


# --- commands ----------------------------------------------------


def versions(*names: str) -> dict[str, str]:
    """Return the versions of Python and of these packages."""
    found = {name: importlib.metadata.version(name) for name in names}
    return {"python": platform.python_version(), **found}


def measure_keras(images: np.ndarray | None, only: list[str], folder: Path) -> dict:
    """Return the rows, or those named, measured in Keras 3.

    Args:
        images: uint8 (N, 32, 32, 3) for the row of fills, which is left out without.
    """
    os.environ.setdefault("KERAS_BACKEND", "jax")
    import keras
    from keras._tf_keras.keras.preprocessing import image as image_module

    backend = keras.backend.backend()
    rows = {
        "schedule_and_plateau": lambda: schedule_and_plateau(keras),
        "plateau": lambda: plateau(keras),
        "early_stopping": lambda: early_stopping(keras),
        "first_loss_nan": lambda: first_loss_nan(keras, folder),
        "affine": lambda: affine(image_module),
        "generator_draws": lambda: generator_draws(image_module),
        "l2": lambda: l2(keras),
        "networks": lambda: networks(keras),
        "same_padding": lambda: same_padding(keras),
        "batch_norm": lambda: batch_norm(keras),
        "adam": lambda: adam(keras),
        "validation_split": lambda: validation_split(keras),
        "steps_per_epoch": lambda: steps_per_epoch(keras),
    }
    if images is not None:
        rows["fill_of_real_images"] = lambda: fill_of_real_images(image_module, images)
    measured = {name: row() for name, row in rows.items() if name in (only or rows)}
    packages = versions("keras", backend, "numpy", "scipy", "h5py")
    return {"versions": packages, "backend": backend, **measured}


def measure_tf_keras() -> dict:
    """Return the rows in which Keras 2 differs from Keras 3."""
    import tensorflow as tf
    import tf_keras

    layer = tf_keras.layers.BatchNormalization()
    x = np.random.default_rng(4).normal(2, 3, (2, 2, 2, 3)).astype(np.float32)
    layer(x, training=True)
    weight = tf.Variable([0.0])
    rule = tf_keras.optimizers.Adam(1e-3)
    rule.apply_gradients([(tf.constant([1e-6]), weight)])
    return {
        "versions": versions("tf_keras", "tensorflow", "numpy"),
        "batch_norm": {
            "mean": rounded(layer.moving_mean.numpy()),
            "variance": rounded(layer.moving_variance.numpy()),
        },
        "adam_first_step": rounded(weight.numpy()[0]),
    }


def compact(result: dict) -> str:
    """Return JSON with a row of the table a line, not a number a line."""
    parts = [
        f' "{library}": {{\n'
        + ",\n".join(f'  "{k}": {json.dumps(v)}' for k, v in rows.items())
        + "\n }"
        for library, rows in result.items()
    ]
    return "{\n" + ",\n".join(parts) + "\n}"


def main() -> None:
    """Measure one of the two libraries, and keep what is not measured anew."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tf-keras", action="store_true", help="measure tf_keras")
    parser.add_argument("--images", type=Path, help="an .npz with train_images (N, …)")
    parser.add_argument("--only", nargs="*", default=[], help="names of rows")
    options = parser.parse_args()
    images = np.load(options.images)["train_images"][:1000] if options.images else None
    with tempfile.TemporaryDirectory() as folder:
        if options.tf_keras:
            measured = {"tf_keras": measure_tf_keras()}
        else:
            measured = {"keras": measure_keras(images, options.only, Path(folder))}
    result = json.loads(STORE.read_text()) if STORE.exists() else {}
    for library, rows in measured.items():
        result[library] = {**result.get(library, {}), **rows}
    STORE.write_text(compact(result) + "\n")


if __name__ == "__main__":
    main()
