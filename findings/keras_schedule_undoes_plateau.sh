#!/usr/bin/env bash
# Keras: LearningRateScheduler undoes ReduceLROnPlateau, and `history` hides it.
#
# Library:   keras 3.15.1 (jax 0.10.2, numpy 2.4.6), Python 3.11
# Expected:  with both callbacks the rate is the schedule's, halved where the loss has
#            stood still; or a warning.
# Seen:      a schedule of the epoch alone sets the rate anew as each epoch begins, so no
#            epoch is trained with a halved one, in either order of the callbacks.  Where
#            the plateau comes first in the list, `history` shows the halved rate all the
#            same: each halving appears in the log of an epoch that did not train with it.
#            A schedule of (epoch, rate) keeps the reductions.
# Exit:      0 while this holds, 1 once it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q keras==3.15.1 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
KERAS_BACKEND=jax JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import keras
import numpy as np
from keras.callbacks import Callback, LearningRateScheduler, ReduceLROnPlateau


class Trained(Callback):
    def on_train_begin(self, logs=None):
        self.rates = []

    def on_train_batch_begin(self, batch, logs=None):
        self.rates.append(float(np.asarray(self.model.optimizer.learning_rate)))


def rates(schedule, plateau_first):
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.5), "mse")
    x = np.zeros((4, 1), "float32")  # the loss is zero from the beginning
    plateau = ReduceLROnPlateau("loss", factor=0.5, patience=2)
    scheduler, trained = LearningRateScheduler(schedule), Trained()
    pair = [plateau, scheduler] if plateau_first else [scheduler, plateau]
    history = model.fit(x, x, epochs=8, callbacks=[*pair, trained], verbose=0).history
    shown = [float(rate) for rate in history["learning_rate"]]
    return trained.rates, shown


for plateau_first in (False, True):
    trained, shown = rates(lambda epoch: 0.5, plateau_first)
    print(f"f(epoch), plateau first: {plateau_first}\n  trained {trained}\n  shown   {shown}")
    assert trained == [0.5] * 8
    assert (0.25 in shown) == plateau_first
trained, shown = rates(lambda epoch, rate: rate, False)
print(f"f(epoch, rate)\n  trained {trained}")
assert trained[-1] < 0.25
PYTHON
