"""`python -m resnet_se.train …`, as Hydra users type it and wandb sweeps start it."""

from resnet_se.commands.train import main

if __name__ == "__main__":
    main()
