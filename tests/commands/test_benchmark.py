"""The benchmark: its arithmetic, its turns, what it writes, how it stops."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from statistics import median

import pytest
import torch

import resnet_se.commands.benchmark as module
from resnet_se.analysis.timing import Case, Stopwatch, compare, take_turns
from resnet_se.commands.benchmark import roof
from resnet_se.models.convolutions import SMALL
from resnet_se.training import preparation
from resnet_se.training.callbacks import progress
from resnet_se.utils import system
from resnet_se.utils.errors import UserError
from tests.conftest import TINY

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
CPU = torch.device("cpu")
OVERRIDES = (
    *(o for o in TINY if not o.startswith(("data.batch_size", "data.num_workers"))),
    "data.num_workers=0",
    "trainer.max_epochs=1",
    "batch_size=32",
    "rounds=2",
    "steps=2",
    "out=new/figures.json",
)


@pytest.fixture(params=["works"])
def compiler(request, monkeypatch):
    """In torch's place, which takes longer than all the rest and has its own tests."""

    def compile_network(net, trainer, mode, batch_size, sizes):
        if mode == "off":
            return None
        if request.param == "works":
            return 12.5  # seconds
        raise UserError("trainer.compile: no compiler here")

    monkeypatch.setattr(preparation, "compile_network", compile_network)


@pytest.fixture
def small_roof(monkeypatch):
    monkeypatch.setitem(module.ROOF_PRODUCTS, "cpu", (64, 128))
    monkeypatch.setitem(module.ROOF_CONVOLUTIONS, "cpu", ((2, 16, 8),))


def written() -> dict:
    return json.loads(Path("new/figures.json").read_text())


# --- arithmetic --------------------------------------------------


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only where a test says so."""
    passed = [0.0]
    monkeypatch.setattr(system, "now", lambda device: passed[0])
    return passed


def test_a_stopwatch_leaves_the_warm_up_out(clock):
    def step(seconds):
        clock[0] += seconds

    watch = Stopwatch(CPU, steps=3, warmup=2)
    assert watch.time([50, 40, 1, 2, 6, 30], step) == (1 + 2 + 6) / 3
    assert clock[0] == 99  # it takes no more batches than it needs


@pytest.mark.parametrize(
    ("product", "convolution", "best"),
    [(0.25, 9.0, 2 * 128**3 / 0.25), (9.0, 0.01, 2 * 2 * 8**2 * 9 * 16**2 / 0.01)],
)
def test_the_roof_is_the_best_of_products_and_convolutions(
    clock, monkeypatch, small_roof, product, convolution, best
):
    """So that no step of a network comes to more than all of it."""
    seen = set()

    def timed(name, real, seconds):
        def call(*tensors, **others):
            seen.add((name, tensors[0].dtype))
            clock[0] += seconds
            return real(*tensors, **others)

        return call

    monkeypatch.setattr(torch, "matmul", timed("product", torch.matmul, product))
    convolve = timed("convolution", module.F.conv2d, convolution)
    monkeypatch.setattr(module.F, "conv2d", convolve)
    assert roof(CPU, "bf16-mixed") == pytest.approx(best)
    assert seen == {(n, torch.bfloat16) for n in ("product", "convolution")}


def test_shares_and_ratios_by_hand():
    result = {
        "model": {"macs": 1_000},
        "figures": {
            "roof 32-true": {"median": 1e9},
            "a": {"median": 50.0, "trainer": False, "precision": "32-true"},
            "d": {"median": 100.0, "trainer": True, "precision": "32-true"},
            "one share": {"median": 10.0, "processes": 1, "threads": 2},
            "weak": {"median": 18.0, "processes": 2, "threads": 2},
            "one whole": {"median": 15.0, "processes": 1, "threads": 4},
        },
    }
    compare(result)
    figures = result["figures"]
    assert figures["d"]["ratio"] == 2
    # 100 images a second, 6 operations for each multiply-accumulate of a forward pass
    assert figures["d"]["share_of_roof"] == pytest.approx(100 * 6 * 1_000 / 1e9)
    assert figures["weak"]["efficiency"] == pytest.approx(0.9)
    assert figures["one whole"]["efficiency"] == pytest.approx(0.75)


def test_turns_go_round_and_keep_every_sample(tmp_path):
    order = []

    def sample(name, values):
        def call():
            order.append(name)
            return values.pop(0)

        return call

    cases = {
        "x": Case("images/s", sample("x", [3.0, 1.0, 2.0]), {"name": "first"}),
        "y": Case("s", sample("y", [5.0, 6.0, 7.0]), {}),
    }
    settings = {"rounds": 3, "out": str(tmp_path / "figures.json")}
    result = {"hardware": {"accelerator": "cpu"}, "settings": settings}
    result |= {"figures": {}, "skipped": {}}
    take_turns(cases, result)
    assert json.loads((tmp_path / "figures.json").read_text()) == result
    assert "".join(order) == "xyxyxy"
    x = result["figures"]["x"]
    assert x.pop("peak_memory_mb") > 0
    assert x == {
        "name": "first",
        "unit": "images/s",
        "median": 2.0,
        "spread": [1.0, 3.0],
        "samples": [3.0, 1.0, 2.0],
    }


# --- the command -------------------------------------------------


@pytest.mark.slow
def test_a_benchmark_writes_every_figure(
    command, capsys, compiler, small_roof, monkeypatch
):
    monkeypatch.setattr(progress, "FORECAST_STEPS", (1, 2))
    monkeypatch.setattr(progress, "MIN_FORECAST", 0)
    assert command("benchmark", *OVERRIDES) == 0
    text = capsys.readouterr().out
    result = written()
    assert result["complete"]
    assert result["settings"] | {"out": ""} == {
        "batch_size": 32,
        "devices": 1,
        "rounds": 2,
        "steps": 2,
        "threads": 1,
        "out": "",
    }
    assert {"git", "versions", "hardware", "data", "model"} <= set(result)
    figures = result["figures"]
    assert sorted(k for k, f in figures.items() if "trainer" in f) == list("abcdef")
    assert {"roof bf16-mixed", "roof 32-true", "data, batched"} < set(figures)
    assert figures["e"]["compile_seconds"] == 12.5
    for name, figure in figures.items():
        assert len(figure["samples"]) == 2, name
        assert figure["spread"] == [min(figure["samples"]), max(figure["samples"])]
        assert figure["median"] > 0
        assert f"{figure['median']:,.4g}" in text
    assert f"{figures['d']['share_of_roof']:.1%} of the roof" in text
    assert "synthetic images" in text
    shares = [f["share_of_roof"] for f in figures.values() if "trainer" in f]
    assert all(0 < share <= 1 for share in shares)
    assert "about" not in text  # how long a training would take that nobody asked for


@pytest.mark.slow
@pytest.mark.parametrize("compiler", ["is missing"], indirect=True)
def test_ctrl_c_keeps_what_was_measured(command, compiler, small_roof, monkeypatch):
    real, turns = module.Runner.train, []

    def train(self, *told):
        turns.append(told)
        if len(turns) == 8:  # a to f in the first round, b in the second
            raise SystemExit(1)  # what Lightning makes of Ctrl-C
        return real(self, *told)

    monkeypatch.setattr(module.Runner, "train", train)
    assert command("benchmark", *OVERRIDES) == 130
    result = written()
    assert not result["complete"]
    counts = {k: len(v["samples"]) for k, v in result["figures"].items() if k in "abf"}
    assert counts == {"a": 2, "b": 1, "f": 1}
    assert result["figures"]["d"]["share_of_roof"] > 0
    assert result["skipped"] == {"e": "trainer.compile: no compiler here"}
    assert signal.getsignal(signal.SIGINT) is not signal.SIG_DFL


@pytest.mark.slow
@pytest.mark.skipif(system.usable_cores() < 2, reason="two processes on the CPU")
def test_one_device_against_two(command):
    assert command("benchmark", *OVERRIDES, "devices=2") == 0
    result = written()
    assert result["complete"]
    assert result["hardware"]["world_size"] == 2
    figures = result["figures"]
    assert figures["one share"]["efficiency"] == 1
    assert figures["strong"]["batch_size"] * 2 == figures["weak"]["batch_size"] == 32
    assert figures["weak"]["processes"] == 2
    size = 4 * result["model"]["trainable"]
    assert figures[f"all-reduce, {size:,} bytes"]["median"] > 0


MISTAKES = {
    "rounds=0": "rounds: expected an integer 1..100, got 0",
    "devices=100000": "devices: expected 1..",
    "batch_size=100": "batch_size: expected an epoch of 2 batches to warm up and 2 ",
    "out=occupied/figures.json": "out: cannot write",
    "stebs=2": "did you mean 'steps'?",
    "model.dephts=[1]": "did you mean 'depths'?",
}


@pytest.mark.parametrize(("typed", "answer"), MISTAKES.items(), ids=list(MISTAKES))
def test_a_mistake_is_told_before_measuring(
    command, capsys, monkeypatch, typed, answer
):
    monkeypatch.setattr(module, "take_turns", lambda *_: pytest.fail("measured"))
    Path("occupied").touch()
    assert command("benchmark", *OVERRIDES, typed) == 2
    assert answer in capsys.readouterr().err


# --- figures that are published ----------------------------------


def read(name: str) -> tuple[str, dict]:
    """An experiment's README, its lines joined, and its figures."""
    path = EXPERIMENTS / name
    return (path.parent / "README.md").read_text(), json.loads(path.read_text())


def test_scaling_is_told_as_it_was_measured():
    text, result = read("scaling/cpu4.json")
    for name, figure in result["images_per_second"].items():
        assert figure["median"] == sorted(figure["samples"])[1]
        low, high = figure["spread"]
        rate = f"{figure['median']:.1f} ({low:.1f}–{high:.1f})"
        assert f"(`{name}`) | {rate} | {figure['efficiency']:.1%} |" in text
    size, figure = list(result["all_reduce_seconds"].items())[-1]
    assert f"{size}: {figure['median'] * 1000:.1f} ms" in text


def test_the_usual_way_and_ours_are_told_as_measured():
    text, result = read("benchmark/cpu4.json")
    for letter, figure in result["variants"].items():
        low, high = figure["spread"]
        rate = f"{figure['images_per_second']:.1f} ({low:.1f}–{high:.1f})"
        row = f"| ({letter}) {figure['name']} | {rate} | {figure['ratio']:.2f} |"
        assert row in text


def test_the_card_is_told_as_measured():
    text, result = read("benchmark/h200.json")
    text, figures = " ".join(text.split()), result["figures"]
    for letter, figure in figures.items():
        if len(letter) == 1:
            low, high = figure["spread"]
            ratio = figure["median"] / figures["a"]["median"]
            row = f"| ({letter}) {figure['name']} | {figure['median']:,.0f} "
            row += f"({low:,.0f}–{high:,.0f}) | {ratio:.2f} | "
            assert row + f"{figure['peak_memory_mb']:,.0f} |" in text
    graphs, roof = figures["g"], figures["roof bf16-mixed"]["median"] / 1e12
    for said in (
        f"{graphs['median'] / figures['a']['median']:.2f} times the usual way",
        f"{45_000 / graphs['median']:.1f} s an epoch of 45,000 images",
        f"{graphs['share_of_roof']:.1%} of the roof ({roof:.0f} TFLOP/s",
        "took {:.0f} and {:.0f} s".format(
            *(figures[n]["compile_seconds"] for n in "eg")
        ),
        f"{figures['data, batched']['median'] / 1e6:.1f} million images/s",
        f"torchvision's {figures['data, torchvision']['median']:,.0f}",
    ):
        assert said in text
    assert figures["d"]["median"] < figures["c"]["median"]
    assert figures["f"]["spread"][0] < figures["d"]["spread"][1]


def test_what_pooling_costs_a_compiled_step_is_told_as_measured():
    text, result = read("benchmark/pooling.json")
    flat = " ".join(text.split())
    settings, ratios = result["settings"], result["speed_of_eager"]
    for way in ("compiled", "compiled, pooling apart"):
        middle, (low, high) = ratios[way]["median"], ratios[way]["spread"]
        assert f"{middle:.3f} ({low:.3f}–{high:.3f})" in flat
    apart, whole = (1 - ratios[w]["median"] for w in list(ratios)[:0:-1])
    assert 0.7 < (whole - apart) / whole < 0.8  # "three quarters of the loss"
    said = f"(batch {settings['batch_size']}, {result['hardware']['precision']}, "
    assert said + f"n = {settings['rounds']} interleaved" in flat
    assert f"`{settings['network']}`'s compiled step" in flat


def test_floors_are_told_as_measured():
    text, result = read("benchmark/floors.json")
    assert f"n = {result['settings']['rounds']} interleaved" in text
    for network in result["networks"]:
        name = f"{network['network']}, {network['batch_size']}"
        for part, figure in network["step_seconds"].items():
            low, high = figure["spread"]
            row = f"| {name} | {network['allocator']} | {part} | "
            row += f"{figure['median']:.3f} ({low:.3f}–{high:.3f}) | "
            assert row + f"{figure['share_of_roof']:.1%} |" in text
    norm = ("native_batch_norm", "native_batch_norm_backward")
    norm += ("threshold_backward", "clamp_min", "clamp_min_")
    passes = (norm, (*norm, "mul", "add", "add_", "sum"))
    would_be = {}
    for network in result["networks"]:
        now = network["step_seconds"]
        if list(now) != ["as it is", "mean"]:
            continue
        for names in passes:
            saved = sum(network["operators"].get(f"aten::{n}", 0) for n in names) / 2
            share = 100 * now["as it is"]["share_of_roof"] / (1 - saved)
            would_be[network["network"], names] = f"{share:.1f}"
    flat = " ".join(text.split())
    half, all_half = (
        [would_be[name, names] for name in ("se_resnet80", "se_resnet8_quick")]
        for names in passes
    )
    assert "at {} % and quickstart's network at {} %".format(*half) in flat
    assert "in half its time at {} and {} %".format(*all_half) in flat
    for shape, ways in result["pools_ms"].items():
        rates = [
            f"{w['median']:.1f} ({w['spread'][0]:.1f}–{w['spread'][1]:.1f})"
            for w in ways.values()
        ]
        assert f"| {shape} | {' | '.join(rates)} |" in text


def test_muons_step_is_told_as_measured():
    text, result = read("benchmark/muon_step.json")
    assert f"n = {result['rounds']} in turns beside" in " ".join(text.split())
    for name, figures in result["seconds"].items():
        cells = [
            f"{1e3 * median(s):.1f} ({1e3 * min(s):.1f}–{1e3 * max(s):.1f})"
            for s in (figures["before"], figures["batched"])
        ]
        share = median(figures["batched"]) / median(figures["before"])
        assert f"| `{name}` | {' | '.join(cells)} | {share:.2f} |" in text


def test_small_maps_are_told_as_measured():
    text, result = read("benchmark/small_maps.json")
    assert f"n = {result['rounds']} in turns" in " ".join(text.split())
    for row in result["rows"]:
        images, c_in, c, side = row["case"]
        cells = [
            f"{1e3 * median(s):.1f} ({1e3 * min(s):.1f}–{1e3 * max(s):.1f})"
            for s in (row["torch"], row["products"])
        ]
        share = median(row["products"]) / median(row["torch"])
        case = f"{row['dtype']} | {images:,} | {c_in} → {c} | {side} × {side}"
        assert f"| {case} | {' | '.join(cells)} | {share:.2f} |" in text
        # What `SmallMapConv2d` takes for the faster way is so where it is used here.
        assert share < 1 or side > SMALL
