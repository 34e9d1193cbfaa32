#!/usr/bin/env bash
# torch's FlopCounterMode: a module that gets a view of a parameter cannot be counted
# under no_grad.
#
# Library:   torch 2.15.0, Python 3.11
# Expected:  the FLOPs of a forward pass do not depend on whether gradients are kept:
#            a linear layer of 4 to 4 costs 32 a row.
# Seen:      with gradients 32 and 64 are counted.  Under torch.no_grad(), where a
#            module's input is a view of one of the network's parameters (v[None],
#            v.expand, as a learned constant fed to a layer is), the counter raises
#            AssertionError("Expected gradient function to be set"): a view made without
#            gradients still says requires_grad, and the counter's module tracker asks
#            for its grad_fn.  A copy (v.clone()) or a parameter that requires no gradient
#            is counted.
# Exit:      0 while this holds, 1 once it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q uv  # which heeds no pip constraints of the machine
"$folder/venv/bin/uv" pip install -q --python "$folder/venv/bin/python" \
  torch==2.15.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


class Constant(nn.Module):
    """A linear layer of a learned vector, which a function shapes to the batch's rows."""

    def __init__(self, shape):
        super().__init__()
        self.vector = nn.Parameter(torch.ones(4))
        self.linear = nn.Linear(4, 4)
        self.shape = shape

    def forward(self, x):
        return x + self.linear(self.shape(self.vector, len(x)))


def count(net, gradients):
    with torch.set_grad_enabled(gradients), FlopCounterMode(display=False) as counter:
        net(torch.ones(2, 4))
    return counter.get_total_flops()


VIEWS = {"v[None]": (lambda v, n: v[None], 32), "expand": (lambda v, n: v.expand(n, -1), 64)}
for name, (shape, flops) in VIEWS.items():
    assert count(Constant(shape), gradients=True) == flops
    try:
        count(Constant(shape), gradients=False)
    except AssertionError as error:
        message = str(error)
    else:
        raise SystemExit(f"{name}: counted under no_grad now")
    print(f"{name}: {flops} FLOPs with gradients, under no_grad: {message}")
    assert message == "Expected gradient function to be set"
copied = Constant(lambda v, n: v[None].clone())
frozen = Constant(VIEWS["v[None]"][0]).requires_grad_(False)
assert [count(net, gradients=False) for net in (copied, frozen)] == [32, 32]
print("a copy, or a parameter without gradients: 32 FLOPs")
PYTHON
