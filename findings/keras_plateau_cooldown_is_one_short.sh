#!/usr/bin/env bash
# Keras: ReduceLROnPlateau's cooldown is one epoch shorter than said; 1 is none at all.
#
# Library:   keras 3.15.1 (jax 0.10.2, numpy 2.4.6), Python 3.11
# Expected:  "number of epochs to wait before resuming normal operation after the learning
#            rate has been reduced": under a loss that never falls, patience 3 alone
#            reduces every 3 epochs, with cooldown=1 every 4, with cooldown=2 every 5.
# Seen:      every 3, 3 and 4 epochs: the epoch that ends the cooldown already counts as
#            one without improvement.  A cooldown kept from another library's rule of the
#            same name (PyTorch's waits all c epochs) acts earlier here.
# Exit:      0 while this holds, 1 once it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q keras==3.15.1 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
KERAS_BACKEND=jax JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import keras
import numpy as np


def reductions(cooldown):
    """Epochs, from 1, whose end reduces the rate; the loss is 1 throughout."""
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    model.compile(keras.optimizers.SGD(1.0), "mse")
    x, y = np.zeros((1, 1)), np.ones((1, 1))
    rule = keras.callbacks.ReduceLROnPlateau(
        "loss", factor=0.5, patience=3, cooldown=cooldown
    )
    shown = model.fit(x, y, epochs=16, callbacks=[rule], verbose=0).history
    rates = shown["learning_rate"]
    return [i for i, (a, b) in enumerate(zip(rates, rates[1:]), 1) if b < a]


for cooldown, gap in ((0, 3), (1, 3), (2, 4), (3, 5)):
    epochs = reductions(cooldown)
    print(f"patience 3, cooldown {cooldown}: reduces after epochs {epochs}")
    assert np.diff(epochs).tolist() == [gap] * (len(epochs) - 1), epochs
PYTHON
