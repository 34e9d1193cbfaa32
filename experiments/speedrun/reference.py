"""airbench94's network and recipe as a plain loop: what `speedrun` is held against.

Built from the description in Jordan 2024, arXiv 2404.00498 (§3 and its table of
hyperparameters), in this project's terms: whitening stem, three stages of convolution,
max-pooling, BatchNorm, GELU, convolution, BatchNorm, GELU; partly-identity
initialisation; Nesterov SGD with a 64 times larger rate for BatchNorm's biases;
triangular schedule; label smoothing 0.2; Lookahead; alternating flip; six views at test
time.  All 50,000 training images, no validation.

    OMP_NUM_THREADS=3 taskset -c 0-2 \\
        python experiments/speedrun/reference.py --seeds 0 1 2 --out FILE

On a GPU where there is one.
"""

import argparse
import json
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnet_se.data.normalisation import channel_statistics, normalise
from resnet_se.data.sources import CIFAR10
from resnet_se.models.complexity import forward_macs
from resnet_se.models.layers import WhiteningStem
from resnet_se.utils.system import accelerator, environment, hardware, now

WIDTHS = (64, 256, 256)
EPOCHS = 9.9
BATCH = 1024
MOMENTUM = 0.85
# The paper states rates for 1,024 summed losses and the momentum's gain taken out:
LR = 11.5 / (1 + 1 / (1 - MOMENTUM))  # 1.5 for the mean over such a batch
DECAY = 0.0153 / (1 + 1 / (1 - MOMENTUM)) / LR
BIAS_RATE = 64
START, PEAK, END = 0.2, 0.23, 0.07  # the triangle: factors, and share of training
SMOOTHING = 0.2
PAD = 2
WHITEN_BIAS_EPOCHS = 3
PRECISION = torch.bfloat16


class Reference(nn.Module):
    """(B, 3, 32, 32) → logits (B, 10)."""

    def __init__(self):
        super().__init__()
        self.stem = WhiteningStem(3)
        layers: list[nn.Module] = []
        c = self.stem.out_channels
        for width in WIDTHS:
            layers += [conv(c, width), nn.MaxPool2d(2), norm(width), nn.GELU()]
            layers += [conv(width, width), norm(width), nn.GELU()]
            c = width
        self.body = nn.Sequential(*layers)  # (B, 256, 3, 3)
        self.head = nn.Linear(c, 10, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.stem.conv(x))
        return self.head(self.body(x).amax(dim=(2, 3))) / 9


def conv(c_in: int, c_out: int) -> nn.Conv2d:
    layer = nn.Conv2d(c_in, c_out, 3, padding=1, bias=False)
    nn.init.dirac_(layer.weight.data[:c_in])  # the first filters pass their input on
    return layer


def norm(channels: int) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(channels, momentum=0.4, eps=1e-12)
    layer.weight.requires_grad_(False)
    return layer


def views(net: nn.Module, x: Tensor) -> Tensor:
    """Logits over image and mirror image: half in place, a quarter each shift."""

    def mirrored(x: Tensor) -> Tensor:
        return (net(x).float() + net(x.flip(-1)).float()) / 2

    padded = F.pad(x, (1, 1, 1, 1), mode="reflect")
    shifted = mirrored(padded[..., :32, :32]) + mirrored(padded[..., 2:, 2:])
    return mirrored(x) / 2 + shifted / 4


@torch.no_grad()
def accuracy(net: nn.Module, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """Plain, and with the six views."""
    net.eval()
    hits = torch.zeros(2, device=images.device)
    with torch.autocast(images.device.type, torch.bfloat16):
        for x, y in zip(images.split(500), labels.split(500), strict=True):
            for i, logits in enumerate((net(x), views(net, x))):
                hits[i] += (logits.argmax(dim=1) == y).sum()
    return tuple((hits / len(labels)).tolist())


def steps(images: Tensor, labels: Tensor, seed: int) -> Iterator[nn.Module]:
    """The network in training, after each of its steps; at the last step it is done."""
    torch.manual_seed(seed)
    device = images.device
    net = Reference().to(device)
    net.stem.fit(images[:5000])
    net.to(memory_format=torch.channels_last)
    biases = [m.bias for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    known = {id(p) for p in biases}
    others = [p for p in net.parameters() if p.requires_grad and id(p) not in known]
    groups = [
        {"params": others, "lr": LR, "weight_decay": DECAY},
        {
            "params": biases,
            "lr": LR * BIAS_RATE,
            "weight_decay": DECAY / BIAS_RATE,
        },
    ]
    optimizer = torch.optim.SGD(groups, momentum=MOMENTUM, nesterov=True, fused=True)
    per_epoch = len(images) // BATCH
    total = round(EPOCHS * per_epoch)

    def triangle(step: int) -> float:
        t = step / total
        if t < PEAK:
            return START + (1 - START) * t / PEAK
        return END + (1 - END) * (1 - t) / (1 - PEAK)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, triangle)
    state = net.state_dict()
    slow = {k: v.clone() for k, v in state.items() if v.is_floating_point()}
    padded = F.pad(images, (PAD,) * 4, mode="reflect")
    coin = torch.rand(len(images), device=device) < 0.5
    rows = torch.arange(32, device=device)
    step = epoch = 0
    while step < total:
        if epoch == WHITEN_BIAS_EPOCHS:
            net.stem.conv.bias.requires_grad_(False)
        order = torch.randperm(len(images), device=device)
        for batch in order.split(BATCH)[:per_epoch]:
            shift = torch.randint(0, 2 * PAD + 1, (2, BATCH, 1), device=device)
            mirrored = (coin[batch] ^ (epoch % 2 == 1))[:, None]
            y = (shift[0] + rows)[:, :, None]
            x = (shift[1] + torch.where(mirrored, 31 - rows, rows))[:, None, :]
            x = padded.permute(0, 2, 3, 1)[batch[:, None, None], y, x]
            x = x.permute(0, 3, 1, 2)  # (B, 3, 32, 32), channels last
            with torch.autocast(device.type, PRECISION, torch.float32 != PRECISION):
                logits = net(x)
            loss = F.cross_entropy(
                logits.float(), labels[batch], label_smoothing=SMOOTHING
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            step += 1
            with torch.no_grad():
                if step % 5 == 0:
                    keep = 0.95**5 * (step / total) ** 3
                    for name, value in slow.items():
                        value.lerp_(state[name], 1 - keep)
                        state[name].copy_(value)
                if step == total:
                    for name, value in slow.items():
                        state[name].copy_(value)
            yield net
            if step == total:
                break
        epoch += 1
        print(f"seed {seed} epoch {epoch} loss {loss.item():.3f}", flush=True)


def train(images: Tensor, labels: Tensor, seed: int) -> tuple[nn.Module, float, int]:
    """The trained network, seconds of training, optimizer steps."""
    started = now(images.device)
    [(n, net)] = deque(enumerate(steps(images, labels, seed), start=1), maxlen=1)
    return net, now(images.device) - started, n


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--root", default="data", help="where the images are")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    device = torch.device(accelerator("auto"))
    data = CIFAR10(options.root).load()
    statistics = channel_statistics(data.train_images)
    images = normalise(data.train_images, *statistics).to(device)
    test = normalise(data.test_images, *statistics).to(device)
    labels, test_labels = data.train_labels.to(device), data.test_labels.to(device)
    runs = []
    for seed in options.seeds:
        net, seconds, steps = train(images, labels, seed)
        plain, tta = accuracy(net, test, test_labels)
        runs.append(
            {
                "seed": seed,
                "test": {"acc": plain, "acc_tta": tta},
                "train": {
                    "seconds": round(seconds, 2),
                    "steps": steps,
                    "images_per_second": round(steps * BATCH / seconds, 1),
                },
            }
        )
        print(runs[-1], flush=True)
        record = {
            **environment(),
            "hardware": {
                **hardware(device, "bf16-mixed"),
                "threads": torch.get_num_threads(),
            },
            "data": {"origin": data.origin, "fingerprint": data.fingerprint},
            "model": {
                "parameters": sum(p.numel() for p in net.parameters()),
                "macs": forward_macs(net),
            },
            "runs": runs,
        }
        options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
