"""Numbers measured in Keras itself (experiments/keras), by row of keras.md."""

import json
from pathlib import Path

FILE = Path(__file__).parents[1] / "experiments" / "keras" / "reference.json"
REFERENCE = json.loads(FILE.read_text())
KERAS, TF_KERAS = REFERENCE["keras"], REFERENCE.get("tf_keras", {})
