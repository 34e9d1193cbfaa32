"""The benchmark: what it counts, what it writes, how it stops.  Nothing about time."""

from __future__ import annotations

import json
import math
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

import resnet_se.benchmark as module
from resnet_se.benchmark import Stopwatch, Traffic, find_card, resident_mb, summary
from resnet_se.errors import UserError
from resnet_se.results import usable_cores
from tests.conftest import TINY

OVERRIDES = (
    *(o for o in TINY if not o.startswith("data.batch_size")),
    "trainer.max_epochs=1",
    "scheduler=constant",
    "batch_size=32",
    "size=smoke",
    "out=new/figures.json",
)
FLOAT = 4  # bytes


@pytest.fixture(params=["works"])
def compiler(request, monkeypatch):
    """In torch's place, which takes longer than all the rest and has its own tests."""
    real = module.compile_net

    def compile_net(cfg, *rest):
        if cfg.trainer.compile == "off":
            return real(cfg, *rest)
        if request.param == "works":
            return 12.5  # seconds
        raise UserError("trainer.compile: no compiler here")

    monkeypatch.setattr(module, "compile_net", compile_net)


def written() -> dict:
    return json.loads(Path("new/figures.json").read_text())


# --- counting ----------------------------------------------------


def traffic(call) -> int:
    with Traffic() as counted:
        call()
    return counted.bytes


def test_bytes_of_single_operators():
    a, b = torch.ones(3, 4), torch.ones(3, 4)
    n = 12 * FLOAT
    assert traffic(lambda: a + b) == 3 * n
    assert traffic(lambda: a.add_(b)) == 3 * n  # reads both, writes one
    assert traffic(lambda: a.relu()) == 2 * n
    assert traffic(lambda: a.bfloat16()) == n + n // 2
    assert traffic(lambda: torch.stack([a, b])) == 4 * n
    assert traffic(lambda: torch.topk(a, 2)) == n + 3 * 2 * (FLOAT + 8)  # two results
    assert traffic(lambda: torch._foreach_add_([a, a], [b, b])) == 6 * n
    # Twelve elements that are one in memory are read once.
    assert traffic(lambda: torch.ones(1).expand(12).exp()) == 2 * FLOAT + FLOAT + n - 4
    for view in (lambda: a.t()[1:], lambda: a.view(-1).detach(), lambda: a.chunk(2)):
        assert traffic(view) == 0
    assert traffic(lambda: torch.empty_like(a)) == 0
    assert traffic(lambda: torch.zeros_like(a)) == traffic(a.zero_) == n
    assert traffic(lambda: a.copy_(b)) == 2 * n


def test_bytes_of_a_convolution_forward_and_back():
    x = torch.ones(2, 3, 8, 8)
    net = nn.Conv2d(3, 5, 3, padding=1)
    image, result = x.numel() * FLOAT, 2 * 5 * 8 * 8 * FLOAT
    weights = (net.weight.numel() + net.bias.numel()) * FLOAT
    with torch.no_grad():
        assert traffic(lambda: net(x)) == image + weights + result
    y = net(x)
    # Backward reads its gradient, image and kernel, and writes those of the weights.
    kernel = net.weight.numel() * FLOAT
    back = result + image + kernel + weights
    gradient = torch.ones_like(y)
    assert traffic(lambda: y.backward(gradient)) == back


def test_bytes_of_a_step_grow_with_the_batch():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten())

    def step(n):
        return lambda: net(torch.ones(n, 3, 8, 8)).square().mean().backward()

    step(1)()  # gradients are made in the first and added to in the others
    one, two, three = (traffic(step(n)) for n in (1, 2, 3))
    assert three - two == two - one > 0


def test_cards_by_name():
    assert find_card("NVIDIA H100 80GB HBM3").bf16 == 989e12
    assert find_card("NVIDIA H100 PCIe").bf16 == 756e12
    assert find_card("NVIDIA A100-SXM4-40GB").bandwidth == 1.555e12
    assert find_card("NVIDIA A100 80GB PCIe").bandwidth == 2.039e12
    assert find_card("NVIDIA L4").bf16 == 121e12
    assert find_card("NVIDIA L40S") is None
    assert find_card("AMD EPYC") is None


def test_a_stopwatch_leaves_the_warm_up_out(monkeypatch):
    clock = 0.0

    def step(seconds):
        nonlocal clock
        clock += seconds

    monkeypatch.setattr(module, "now", lambda device: clock)
    watch = Stopwatch(torch.device("cpu"), warmup=2, steps=3)
    assert watch.time([50, 40, 1, 2, 4, 30], step).seconds == 1 + 2 + 4
    assert clock == 97  # it takes no more batches than it needs


def test_summary_keeps_every_sample():
    assert summary([3.0, 1.0, 2.0]) == {
        "images_per_second": 2.0,
        "spread": [1.0, 3.0],
        "samples": [3.0, 1.0, 2.0],
    }


@pytest.mark.skipif(
    not Path("/proc/self/smaps_rollup").exists(), reason="Linux alone says"
)
def test_resident_memory_counts_children():
    alone = resident_mb()
    held = torch.ones(25_000_000)  # 100 MB
    assert resident_mb() - alone > 90
    del held


# --- the command -------------------------------------------------


def test_smoke_writes_every_field(command, capsys, compiler):
    assert command("benchmark", *OVERRIDES) == 0
    text = capsys.readouterr().out
    result = written()
    assert result["complete"]
    assert result["settings"]["size"] == "smoke"
    assert not any("figures" in o for o in result["settings"]["overrides"])
    assert sorted(result["variants"]) == list("abcdef")
    assert result["variants"]["e"]["compile_seconds"] == 12.5

    figures = {**result["variants"]}
    figures |= {name: result["data_path"][name] for name in ("torchvision", "batched")}
    figures |= {n: result["inference"][n] for n in ("1", "128", "1024")}
    for name, found in figures.items():
        rate, samples = found["images_per_second"], found["samples"]
        assert len(samples) == result["settings"]["rounds"] == 2, name
        assert found["spread"] == [min(samples), max(samples)]
        assert 0 < rate < math.inf
        assert rate == pytest.approx(sum(samples) / 2)  # the median of two
    plain = result["variants"]["a"]["images_per_second"]
    for found in result["variants"].values():
        assert found["steps"] == 2
        assert found["seconds_per_step"] == pytest.approx(
            32 / found["images_per_second"]
        )
        assert found["ratio"] == pytest.approx(found["images_per_second"] / plain)
        assert found["peak_memory_mb"] > 0

    best, base = result["best"], result["variants"]["f"]["of"]
    assert {best, base} <= set("bcde")
    bare, trainer = (result["variants"][k]["seconds_per_step"] for k in ("f", base))
    assert result["trainer_cost"] == pytest.approx(trainer / bare - 1)
    step, share = result["step"], result["share_of_peak"]
    assert step["flops"] == 6 * 32 * result["model"]["macs"]
    seconds = result["variants"][best]["seconds_per_step"]
    assert share["flops_per_second"] == pytest.approx(step["flops"] / seconds)
    assert share["bf16"] is None  # no card
    assert step["bytes"] > 32 * 3 * 32 * 32 * FLOAT
    assert result["peak_memory"]["process_mb"] > 0
    assert {"git", "versions", "hardware", "data", "model", "date"} <= set(result)
    assert "synthetic images" in text
    for found in figures.values():
        assert f"{found['images_per_second']:,.0f}" in text


@pytest.mark.parametrize("compiler", ["is missing"], indirect=True)
def test_ctrl_c_keeps_what_was_measured(command, compiler, monkeypatch):
    class Interrupted(module.Laps):
        made = 0

        def __init__(self, watch):
            super().__init__(watch)
            Interrupted.made += 1

        def on_train_batch_end(self, *arguments):
            if self.made == 7:  # b to d in the pilot and the first round, b again
                raise KeyboardInterrupt
            super().on_train_batch_end(*arguments)

    monkeypatch.setattr(module, "Laps", Interrupted)
    assert command("benchmark", *OVERRIDES) == 130
    result = written()
    assert not result["complete"]
    assert result["error"] == "interrupted"
    assert [len(result["variants"][k]["samples"]) for k in "abcdf"] == [2, 1, 1, 1, 1]
    assert result["variants"]["e"]["skipped"] == "trainer.compile: no compiler here"
    assert not result["inference"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.slow
@pytest.mark.skipif(usable_cores() < 2, reason="two processes on the CPU")
def test_two_devices_where_nothing_can_be_compiled(command, monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "nowhere")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    assert command("benchmark", *OVERRIDES, "devices=2", "batch_size=16") == 0
    result = written()
    assert result["complete"]
    assert result["settings"]["devices"] == 2
    assert "compiler does not work" in result["variants"]["e"]["skipped"]
    bare = result["variants"]["f"]
    images = 2 * 16  # a step's, of both
    assert bare["seconds_per_step"] == pytest.approx(images / bare["images_per_second"])
    assert result["step"]["flops"] == 6 * 16 * result["model"]["macs"]  # of one


MISTAKES = {
    "size=huge": "size: unknown 'huge'; valid choices: normal, smoke",
    "devices=100000": "devices: expected 1..",
    "batch_size=100": "batch_size: expected at most 55",
    "batch_size=0": "data.batch_size: expected an integer >= 1, got 0",
    "out=occupied/figures.json": "out: cannot write",
    "out=.": "out: cannot write",
    "sise=smoke": "did you mean 'size'?",
    "model.dephts=[1]": "did you mean 'depths'?",
}


@pytest.mark.parametrize(("typed", "answer"), MISTAKES.items(), ids=list(MISTAKES))
def test_a_mistake_is_told_before_measuring(
    command, capsys, monkeypatch, typed, answer
):
    monkeypatch.setattr(module.Benchmark, "run", lambda self: pytest.fail("measured"))
    Path("occupied").touch()
    assert command("benchmark", *OVERRIDES, typed) == 2
    assert answer in capsys.readouterr().err
    assert not Path("new/figures.json").exists()


def test_synthetic_images_where_there_are_no_real_ones(
    command, capsys, monkeypatch, tmp_path
):
    seen = []
    monkeypatch.setattr(module.Benchmark, "run", lambda self: seen.append(self))
    monkeypatch.setenv("RESNET_SE_DATA", str(tmp_path / "nowhere"))
    fewer = "data.fallback.num_train=200", "data.fallback.num_test=50"
    rest = (o for o in OVERRIDES if not o.startswith("data"))
    assert command("benchmark", *rest, *fewer) == 0
    assert seen[0].result["data"]["name"] == "synthetic"
    assert "synthetic images" in capsys.readouterr().out
