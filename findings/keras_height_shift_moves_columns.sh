#!/usr/bin/env bash
# Keras: `height_shift_range` moves an image sideways, `width_shift_range` up and down.
#
# Library:   keras 3.15.1 (jax 0.10.2, numpy 2.4.6, scipy 1.17.1), Python 3.11;
#            keras._tf_keras.keras.preprocessing.image.ImageDataGenerator
# Expected:  "fraction of total height" moves rows, and a shift of up to half of the
#            height of a (16, 64) image is one of at most 8 rows.
# Seen:      the row shift is drawn from the height, then applied to the columns: every
#            row of the result is a row of the input moved sideways.  On square images
#            with equal ranges nothing shows; on others both direction and size differ
#            from what was asked for.  Rotations and zooms of an image that is not square
#            are off its centre too: about row W/2 and column H/2.
# Exit:      0 while this holds, 1 once it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q keras==3.15.1 jax==0.10.2 jaxlib==0.10.2 \
    numpy==2.4.6 scipy==1.17.1
KERAS_BACKEND=jax JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
from keras._tf_keras.keras.preprocessing.image import ImageDataGenerator

rows, columns = np.mgrid[0:16, 0:64].astype("float64")
seen = {}
for name in ("height_shift_range", "width_shift_range"):
    generator = ImageDataGenerator(**{name: 0.5})
    moved = {"rows": 0.0, "columns": 0.0}
    for seed in range(200):
        chosen = generator.get_random_transform((16, 64, 1), seed=seed)
        for axis, ramp in (("rows", rows), ("columns", columns)):
            result = generator.apply_transform(ramp[:, :, None], chosen)[:, :, 0]
            change = float(np.abs(result - ramp).max())
            moved[axis] = max(moved[axis], change)
    seen[name] = {axis: round(value, 2) for axis, value in moved.items()}
    print(f"{name}=0.5 on (16, 64): largest move {seen[name]}")
height, width = seen["height_shift_range"], seen["width_shift_range"]
still = ImageDataGenerator().apply_transform(
    np.stack([rows, columns], axis=2), {"zx": 0.5, "zy": 0.5}
)
fixed = [
    round(float(ramp.reshape(-1)[np.abs(still[:, :, i] - ramp).argmin()]), 1)
    for i, ramp in enumerate((rows, columns))
]
print(f"zoomed, the (16, 64) image stands still at row {fixed[0]}, column {fixed[1]}")
assert fixed[1] in (7.0, 8.0) and fixed[0] == 15.0, fixed  # its centre is 7.5, 31.5
assert height["rows"] == 0 and 7 < height["columns"] <= 8, height
assert width["columns"] == 0 and width["rows"] > 8, width
PYTHON
