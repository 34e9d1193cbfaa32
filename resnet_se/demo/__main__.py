"""`python -m resnet_se.demo`."""

from resnet_se.demo import main

if __name__ == "__main__":
    main()
