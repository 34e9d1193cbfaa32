"""Migration: the keys of other frameworks, lightning-hydra-template's above all, and
their equivalents here.

https://github.com/ashleve/lightning-hydra-template
"""

from __future__ import annotations

_TESTS = (
    "training tests its best checkpoint once, by itself; `resnet-se evaluate run=RUN` "
    "tests a run again"
)
_PRINTS = (
    "the configuration lies in the run's config.yaml; --cfg=job --resolve prints it "
    "and trains nothing"
)
_PATHS = "write data.source.root=… for the data, runs_dir=… for the runs"
_DEFAULT = (
    "callbacks=default has checkpoints, early stopping and progress; "
    "callbacks.early_stopping=null leaves one out"
)
_OPTIMIZER = (
    "the optimizer is a group beside the model: optimizer=adamw, optimizer.lr=…"
)

# By what was typed: a key, all below it, or one choice of a group.
EQUIVALENTS = {
    "train": _TESTS,
    "test": _TESTS,
    "task_name": "a run goes by its experiment; tags=[…] and +notes.task=… are free",
    "print_config": _PRINTS,
    "extras": _PRINTS,
    "local": "no such group; a conf/ beside your work is found",
    "paths": _PATHS,
    "work_dir": _PATHS,
    "log_dir": _PATHS,
    "data_dir": _PATHS,
    "data.data_dir": "write data.source.root=…, or set RESNET_SE_DATA",
    "data.train_val_test_split": (
        "write data.val_fraction=0.1; the test images are the data's own, or "
        "data.source.test_fraction=0.2 of your folder"
    ),
    "data.pin_memory": "the images lie on the training device; nothing is to be pinned",
    "datamodule": "the group is data: data=cifar10",
    "recipe": "an experiment names its recipe: experiment=e14_final",
    "model.optimizer": _OPTIMIZER,
    "model.scheduler": "the scheduler is a group beside the model: scheduler=cosine",
    "model.net": "the model is the network: model.widths=…, model._target_=yours.Net",
    "model.compile": "write trainer.compile=default",
    "compile": "write trainer.compile=default",
    "trainer=mps": "write trainer.accelerator=mps",
    "trainer.gpus": "write trainer=gpu trainer.devices=…",
    "trainer.fast_dev_run": "debug=fast does it, and leaves a whole run directory",
    "callbacks=none": _DEFAULT,
    "callbacks=early_stopping": _DEFAULT,
    "callbacks=model_checkpoint": _DEFAULT,
    "callbacks=rich_progress_bar": _DEFAULT,
    "callbacks.model_checkpoint": (
        "write +callbacks.checkpoint.monitor=val/acc; the direction is the metric's"
    ),
    "optimized_metric": "write hydra.sweeper.metric=val/acc",
    "logger=many_loggers": "write logger=many",
    "logger=neptune": (
        "Lightning has no logger for Neptune any more; one of your own: "
        "+logger.mine._target_=…, or mlflow, comet, wandb"
    ),
    "logger.aim": "pip install aim",
    "logger.wandb.entity": "set WANDB_ENTITY",
    "experiment=example": "experiment=quickstart is the one to begin with",
    "ckpt_path": "write run=RUN, and ckpt=best or ckpt=last",
    "--config-name": "`resnet-se train`, `evaluate` and so on are commands",
}


def equivalent_of(typed: str) -> str | None:
    """Return the equivalent here of a foreign `key`, `key.of.it` or `group=choice`."""
    while typed:
        if typed in EQUIVALENTS:
            return EQUIVALENTS[typed]
        typed = typed.rpartition("." if "=" not in typed else "=")[0]
    return None
