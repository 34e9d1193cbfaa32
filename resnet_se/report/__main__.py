"""`python -m resnet_se.report`."""

from resnet_se.report import main

if __name__ == "__main__":
    main()
