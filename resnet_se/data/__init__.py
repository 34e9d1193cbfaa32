"""From a source of images to normalised batches on the training device."""
