#!/usr/bin/env bash
# Keras: one NaN in the first epoch, and ModelCheckpoint never saves the best again.
#
# Library:   keras 3.15.1 (jax 0.10.2, numpy 2.4.6), Python 3.11
# Expected:  a validation loss of 1.0, 0.5 and less after a first NaN is an improvement.
# Seen:      the NaN becomes "the best so far", below which nothing lies: with
#            save_best_only the file keeps the weights of the NaN epoch for the whole
#            training, EarlyStopping(patience=3) ends a run that improves in every epoch,
#            and ReduceLROnPlateau(patience=3) halves its rate.  No warning.  A NaN in a
#            later epoch does no harm.
# Exit:      0 while this holds, 1 once it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q keras==3.15.1 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cd "$folder"
KERAS_BACKEND=jax JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import math
from pathlib import Path

import keras
import numpy as np
from keras.callbacks import Callback, EarlyStopping, ModelCheckpoint, ReduceLROnPlateau


def fit(losses, name):
    """A training whose validation losses are `losses`; a finite model throughout."""

    class Losses(Callback):
        def on_epoch_end(self, epoch, logs=None):
            logs["val_loss"] = losses[epoch]

    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.5), "mse")
    x = np.zeros((4, 1), "float32")
    file = name + "-{epoch:02d}.weights.h5"
    plateau = ReduceLROnPlateau(factor=0.5, patience=3)
    keep = ModelCheckpoint(file, save_best_only=True, save_weights_only=True)
    callbacks = [Losses(), keep, plateau, EarlyStopping(patience=3)]
    history = model.fit(x, x, epochs=len(losses), callbacks=callbacks, verbose=0)
    saved = [int(path.name.split("-")[1][:2]) for path in Path().glob(f"{name}-*")]
    rate = float(np.asarray(model.optimizer.learning_rate))
    return sorted(saved), len(history.epoch), rate


nan = math.nan
first = fit([nan, 1.0, 0.5, 0.4, 0.3, 0.2, 0.1], "first")
later = fit([1.0, nan, 0.5, 0.4, 0.3, 0.2, 0.1], "later")
for name, (saved, epochs, rate) in (("first", first), ("second", later)):
    print(f"NaN in the {name} epoch: saved after {saved}, {epochs} epochs, rate {rate}")
assert first == ([1], 4, 0.25), first
assert later == ([1, 3, 4, 5, 6, 7], 7, 0.5), later
PYTHON
