"""A network of one's own: an `nn.Module` of images (B, 3, H, W) → logits (B, K)."""

from torch import Tensor, nn


class Net(nn.Module):
    """Two convolutions and a linear layer.

    Args:
        width: channels of the first convolution.
        num_classes: K; a network that names it is told.
    """

    def __init__(self, width: int, num_classes: int):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.head = nn.Linear(2 * width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))  # (B, K)
