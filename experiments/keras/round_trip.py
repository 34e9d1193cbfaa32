"""Weights from Keras to this package and back, compared on 100 real images.

    python experiments/keras/round_trip.py ours FOLDER IMAGES.npz   # this project, h5py
    python experiments/keras/round_trip.py keras FOLDER IMAGES.npz  # Keras, afterwards

`ours` reads the fixture that Keras trained, and writes an `se_resnet20` whose every
number is drawn; FOLDER holds both's logits.  `keras` computes them in Keras and writes
the largest differences to `round_trip.json`.
"""

import argparse
import importlib.metadata
import json
import os
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
FIXTURE = HERE.parents[1] / "tests" / "fixtures" / "keras" / "se_resnet.keras"
SMALL = {
    "depths": [1, 2, 1],
    "widths": [8, 16, 32],
    "strides": [1, 2, 2],
    "reduction": 4,
}
MEAN, STD = np.float32(0.473), np.float32(0.251)  # those of make_fixture.py


def inputs(path: Path) -> np.ndarray:
    """Return float32 (100, 32, 32, 3), normalised test images."""
    images = np.load(path)["test_images"][:100].astype(np.float32) / 255
    return (images - MEAN) / STD


def ours(folder: Path, images: np.ndarray) -> None:
    """Write the logits of both networks, and the weights of the second."""
    import torch

    import resnet_se
    from resnet_se.runs.keras_weights import write

    torch.manual_seed(0)
    x = torch.from_numpy(images).permute(0, 3, 1, 2)
    read = resnet_se.load(FIXTURE, model=SMALL).net
    written = resnet_se.build("se_resnet20", padding="same", bn_eps=1e-3, init="glorot")
    for tensor in written.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(0.02 * torch.randn_like(tensor))
    write(folder / "written.weights.h5", written)
    with torch.inference_mode():
        for name, net in (("read", read), ("written", written.eval())):
            np.save(folder / f"{name}.npy", net(x).numpy())


def in_keras(folder: Path, images: np.ndarray) -> None:
    """Compare them with Keras's own."""
    os.environ.setdefault("KERAS_BACKEND", "jax")
    import keras
    from network import se_resnet

    written = se_resnet((3, 3, 3), (16, 32, 64))
    written.load_weights(folder / "written.weights.h5")
    networks = {"read": keras.models.load_model(FIXTURE), "written": written}
    result = {"keras": importlib.metadata.version("keras"), "images": len(images)}
    for name, network in networks.items():
        logits = network.predict(images, verbose=0)
        difference = np.abs(logits - np.load(folder / f"{name}.npy")).max()
        result[name] = {
            "largest_difference": float(f"{difference:.2g}"),
            "largest_logit": round(float(np.abs(logits).max()), 3),
        }
    print(json.dumps(result))
    (HERE / "round_trip.json").write_text(json.dumps(result, indent=1) + "\n")


def main() -> None:
    """Run one of the two sides."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("side", choices=("ours", "keras"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("images", type=Path)
    options = parser.parse_args()
    side = ours if options.side == "ours" else in_keras
    side(options.folder, inputs(options.images))


if __name__ == "__main__":
    main()
