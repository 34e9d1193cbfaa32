"""Many jobs: the multirun's table and GPUs, and the search over hyperparameters."""
