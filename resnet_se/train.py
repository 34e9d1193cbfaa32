"""`python -m resnet_se.train …`, as Hydra users type it and wandb sweeps start it."""

from resnet_se.__main__ import run


def main() -> None:
    """Console entry: as `resnet-se train …`."""
    run("train")


if __name__ == "__main__":
    main()
