"""Training augmentation: one file a family, and `Augmentation`, which composes them."""
