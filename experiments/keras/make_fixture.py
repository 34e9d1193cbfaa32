"""Makes tests/fixtures/keras: a small trained SE-ResNet in each of Keras's formats.

    python experiments/keras/make_fixture.py IMAGES.npz

It is trained for an epoch on real images, so that no weight and no BatchNorm statistic
is what it began as, and saved as `.keras`, `.weights.h5` and legacy `.h5`, with its
logits of images of uniform noise (`inputs`).  Needs Keras, not this project.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
import numpy as np
from network import se_resnet

FOLDER = Path(__file__).parents[2] / "tests" / "fixtures" / "keras"
MEAN, STD = 0.473, 0.251  # of the training images, all channels


def inputs(n: int = 100) -> np.ndarray:
    """Return uint8 (n, 32, 32, 3); coarse noise, so that the logits spread."""
    draw = np.random.default_rng(0)
    coarse = draw.integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)
    return coarse.repeat(4, axis=1).repeat(4, axis=2)


def normalised(images: np.ndarray) -> np.ndarray:
    """Return float32 images, centred and scaled."""
    return (images.astype(np.float32) / 255 - np.float32(MEAN)) / np.float32(STD)


def main() -> None:
    """Train, save in three formats, and keep the logits."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path, help="train_images, train_labels; uint8")
    data = np.load(parser.parse_args().images)
    images, labels = data["train_images"], data["train_labels"].astype(np.int32)

    keras.utils.set_random_seed(0)
    model = se_resnet((1, 2, 1), (8, 16, 32), reduction=4)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(2e-3), loss, metrics=["accuracy"])
    model.fit(normalised(images), labels, batch_size=128, epochs=2, verbose=2)

    FOLDER.mkdir(parents=True, exist_ok=True)
    logits = model.predict(normalised(inputs()), verbose=0)
    np.savez_compressed(FOLDER / "logits.npz", logits=logits)
    bare = keras.Model(model.inputs, model.outputs)  # without the optimizer's state
    bare.save(FOLDER / "se_resnet.keras")
    bare.save_weights(FOLDER / "se_resnet.weights.h5")
    bare.save(FOLDER / "se_resnet.h5")
    print({path.name: path.stat().st_size for path in sorted(FOLDER.iterdir())})
    print("logits", logits.std(), logits.argmax(1)[:20])


if __name__ == "__main__":
    main()
