#!/usr/bin/env bash
# Keras: weights saved by a network load into the wrong layers of the same network.
#
# Library:   keras 3.15.1 (jax 0.10.2, numpy 2.4.6, h5py 3.16.0), Python 3.11
# Expected:  a file of weights of the layers "gate" and "value" loads into the layers
#            "gate" and "value", or the loading fails.
# Seen:      `.weights.h5` (and the weights inside `.keras`) address layers by class and
#            position, dense, dense_1, …: own names are not in the file.  The position of
#            two parallel layers is decided by the order of the arguments where they meet:
#            written as Multiply([value, gate]) in place of Multiply([gate, value]), the
#            same function of the same named layers, the network takes each one's weights
#            for the other's.  Nothing is raised or printed, and the outputs are others.
# Exit:      0 while this holds, 1 once it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q keras==3.15.1 jax==0.10.2 jaxlib==0.10.2 \
    numpy==2.4.6 h5py==3.16.0
cd "$folder"
KERAS_BACKEND=jax JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import h5py
import keras
import numpy as np
from keras import layers


def gated(gate_first):
    x = keras.Input((4,))
    gate = layers.Dense(3, activation="sigmoid", name="gate")(x)
    value = layers.Dense(3, name="value")(x)
    pair = [gate, value] if gate_first else [value, gate]
    return keras.Model(x, layers.Multiply()(pair))


keras.utils.set_random_seed(0)
saved, same, other = gated(True), gated(True), gated(False)
x = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")
expected = saved.predict(x, verbose=0)
saved.save_weights("gated.weights.h5")
saved.save("gated.keras")
with h5py.File("gated.weights.h5") as file:
    names = sorted(file["layers"])
print("groups in the file:", names)
assert "gate" not in names and "value" not in names
for file in ("gated.weights.h5", "gated.keras"):
    results = []
    for network in (same, other):
        network.load_weights(file)
        results.append(float(abs(network.predict(x, verbose=0) - expected).max()))
    swapped = np.array_equal(
        other.get_layer("gate").kernel, saved.get_layer("value").kernel
    )
    print(f"{file}: differences {results[0]:.1e} and {results[1]:.1e}, swapped {swapped}")
    assert results[0] == 0 and results[1] > 0.1 and swapped
PYTHON
