"""Targets of the right kind that cannot work here, and what does instead."""

UNFIT = {
    "lightning.pytorch.callbacks.lr_finder.LearningRateFinder": "the schedule sets "
    "the rate in every step; search it: hparams_search=optuna, or -m optimizer.lr=A,B",
    "lightning.pytorch.callbacks.batch_size_finder.BatchSizeFinder": "the batch size "
    "belongs to the run's name; one too large is told with one that fits: "
    "data.batch_size=…",
    "lightning.pytorch.callbacks.finetuning.BackboneFinetuning": "no network here has "
    "a `backbone`; start from trained weights: init_from=…, at a lower optimizer.lr",
}
