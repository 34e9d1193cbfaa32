"""`resnet-se export` and `fold`: the file gives what the network gives."""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import resnet_se
from resnet_se.inference import export
from resnet_se.models.attention import SqueezeExcite
from resnet_se.models.fusion import fold_batchnorm, mean_gates, with_mean_gates
from resnet_se.models.resnet import POOLING, ResNet
from resnet_se.utils.errors import UserError
from resnet_se.utils.system import milliseconds
from tests.conftest import Run

POSITIONS = ("standard", "pre", "post", "identity")


def network(**arguments: object) -> ResNet:
    """A small one whose BatchNorm has statistics of its own, in eval mode."""
    torch.manual_seed(0)
    shape = {"depths": [1, 2], "widths": [8, 16], "strides": [1, 2], "reduction": 4}
    net = ResNet(**(shape | arguments))
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
    return net.eval()


def count(net: nn.Module, kind: type) -> int:
    return sum(isinstance(module, kind) for module in net.modules())


# --- folding -----------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("downsample", ["stride", "pool"])
def test_folding_changes_nothing_but_leaves_no_batch_norm(bias, downsample):
    net = network(conv_bias=bias, downsample=downsample, pooling="max")
    small = fold_batchnorm(net)
    x = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(small(x), net(x), atol=1e-5, rtol=1e-4)
    assert count(small, nn.BatchNorm2d) == 0
    assert count(net, nn.BatchNorm2d) > 0, "the network itself is not changed"


def test_a_falling_batch_norm_past_a_max_pooling_stays():
    net = network(downsample="pool")
    norm = net.blocks[1].down[2]
    norm.weight.data[0] = -1.0
    small = fold_batchnorm(net)
    x = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(small(x), net(x), atol=1e-5, rtol=1e-4)
    assert count(small, nn.BatchNorm2d) == 1


def test_nothing_to_fold_is_said():
    with pytest.raises(UserError, match="no BatchNorm follows a convolution"):
        fold_batchnorm(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))


@pytest.mark.parametrize("position", POSITIONS)
def test_mean_gates_are_those_of_a_loop_by_hand(position):
    net = network(se_position=position)
    images = torch.randn(6, 3, 16, 16)
    seen: dict[str, torch.Tensor] = {}

    def gate(name, block, x, y):  # what the block multiplied with, from x and y alone
        ratio = (y.double().sum((2, 3)) / x[0].double().sum((2, 3))).mean(0)
        seen[name] = ratio.float()

    gates = mean_gates(net, images.split(4))
    for name, block in net.named_modules():
        if isinstance(block, SqueezeExcite):
            block.register_forward_hook(lambda *a, name=name: gate(name, *a))
    with torch.no_grad():
        net(images)
    assert gates.keys() == seen.keys()
    for name, mean in gates.items():
        alive = seen[name].isfinite()  # no channel of zeros, whose ratio is none
        assert alive.any()
        torch.testing.assert_close(mean[alive], seen[name][alive], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("position", POSITIONS)
def test_folded_mean_gates_are_gates_set_to_their_mean(position):
    net = network(se_position=position)
    images = torch.randn(6, 3, 16, 16)
    gates = mean_gates(net, [images])
    small = fold_batchnorm(with_mean_gates(net, gates))
    assert count(small, SqueezeExcite) == 0
    for name, block in net.named_modules():
        if isinstance(block, SqueezeExcite):  # the gate's logit, whatever the image
            nn.init.zeros_(block.excite.weight)
            block.excite.bias.data = gates[name].logit()
    with torch.no_grad():
        torch.testing.assert_close(small(images), net(images), atol=1e-4, rtol=1e-4)


def test_mean_gates_need_gates():
    with pytest.raises(UserError, match="no SE blocks"):
        mean_gates(network(reduction=None), [torch.zeros(1, 3, 8, 8)])
    assert set(POOLING) == {"avg", "max"}, "both are folded above"


def test_forwards_are_timed_in_turns():
    calls: list[str] = []

    def forward(name: str, seconds: float) -> None:
        calls.append(name)
        time.sleep(seconds)

    slow, fast = (lambda x: forward("slow", 0.02)), (lambda x: forward("fast", 0))
    times = milliseconds([slow, fast], torch.zeros(1))
    assert calls == ["slow", "fast"] * (len(calls) // 2)
    assert len(calls) >= 2 * 6
    assert 20 <= times[0] < 200
    assert times[1] < times[0]


# --- the command -------------------------------------------------


@pytest.fixture
def run(finished: Run, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(export, "BATCHES", (1, 2))
    monkeypatch.setattr(
        export, "milliseconds", lambda forwards, _: [1.0] * len(forwards)
    )
    return f"run={finished.folder}"


def images() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)


def test_safetensors_are_the_weights_of_the_network(command, run, finished, tmp_path):
    from safetensors.torch import load_file

    assert command("export", run, "format=safetensors", "out=a.safetensors") == 0
    weights = load_file(tmp_path / "a.safetensors")
    state = resnet_se.load(finished.folder).net.state_dict()
    assert weights.keys() == state.keys()
    assert all(torch.equal(weights[name], state[name]) for name in state)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_torch_program_takes_batches_of_any_size(
    command, run, finished, tmp_path, capsys
):
    options = ("format=torch", "preprocess=true", "fold=true")
    assert command("export", run, *options) == 0
    (path,) = tmp_path.glob("*.pt2")
    assert path.name == f"custom-{finished.folder.name}.pt2"
    program = torch.export.load(path).module()
    expected = resnet_se.load(finished.folder)(images())
    torch.testing.assert_close(program(images()), expected, atol=1e-4, rtol=1e-4)
    table = capsys.readouterr().out
    assert "100.00%" in table
    assert "60 test images" in table


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "preprocess", [pytest.param("true", marks=pytest.mark.slow), "false"]
)
def test_onnx_gives_the_same_logits(command, run, finished, tmp_path, preprocess):
    onnxruntime = pytest.importorskip("onnxruntime")
    options = ("out=a.onnx", f"preprocess={preprocess}")
    assert command("export", run, *options) == 0
    session = onnxruntime.InferenceSession((tmp_path / "a.onnx").read_bytes())
    model = resnet_se.load(finished.folder)
    for tensor in (*session.get_inputs(), *session.get_outputs()):
        assert tensor.shape[0] == "batch"
    about = session.get_modelmeta().custom_metadata_map
    assert tuple(json.loads(about["classes"])) == model.classes
    assert json.loads(about["mean"]) == model.mean.tolist()
    assert about.keys() == {"classes", "size", "mean", "std"}
    x = images() if preprocess == "true" else model.preprocess(images())
    (logits,) = session.run(None, {"images": np.ascontiguousarray(x)})
    np.testing.assert_allclose(logits, model(images()), atol=1e-4, rtol=1e-4)


@pytest.mark.slow  # ten seconds; the exporter, again
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_int8_and_mean_gates_say_what_they_cost(command, run, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    options = ("out=a.onnx", "gates=mean", "int8=true", "images=5")
    assert command("export", run, *options) == 0
    said = capsys.readouterr().out
    assert "60 test images" in said, "all of them"
    assert len(re.findall(r"\d\d\.\d\d%", said)) >= 5
    assert b"QuantizeLinear" in (tmp_path / "a.onnx").read_bytes()
    assert _zero_points(tmp_path / "a.onnx") == {"uint8"}
    assert _largest_weight(tmp_path / "a.onnx") <= 64  # seven bits: no sum overflows
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]


def _zero_points(file: Path) -> set[str]:
    """The types that activations are quantised to."""
    import onnx

    graph = onnx.load(file).graph
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    nodes = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    return {str(constants[node.input[2]].dtype) for node in nodes}


def _largest_weight(file: Path) -> int:
    import onnx

    tensors = map(onnx.numpy_helper.to_array, onnx.load(file).graph.initializer)
    return max(int(abs(t.astype(int)).max()) for t in tensors if t.dtype == "int8")


def test_where_int8_is_not_faster_is_said():
    row = export.Row("onnx", 1.0, 0.9, 1.0, 0.0, (0.5, 90.0))
    same = row._replace(name="onnx, int8", milliseconds=(0.4, 80.0))
    assert export.where_int8_does_not_pay([row, same]) is None
    assert export.where_int8_does_not_pay([row]) is None
    slower = same._replace(milliseconds=(0.58, 80.0))
    message = export.where_int8_does_not_pay([row, slower])
    assert message is not None
    assert f"batch {export.BATCHES[0]}: 0.58 ms, 0.50 in float32" in message
    assert f"batch {export.BATCHES[1]}" not in message


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("format=onxx",), "got 'onxx'; did you mean 'onnx'?"),
        (("gates=main",), "got 'main'; did you mean 'mean'?"),
        (("opset=11",), "opset: expected 18.."),
        (("format=torch", "int8=true"), "int8: only of format=onnx"),
        (("format=safetensors", "fold=true"), "holds the weights as they are"),
        (("format=torch", "images=0"), "images: expected an integer >= 1, got 0"),
        (("format=safetensors", "out=file/a"), "out: cannot write file/a"),
    ],
)
def test_one_sentence_for_each_mistake(command, run, tmp_path, capsys, arguments, said):
    (tmp_path / "file").touch()
    assert command("export", run, *arguments) == 2
    assert said in capsys.readouterr().err


def test_nothing_is_written_beyond_the_tolerance(
    command, run, tmp_path, capsys, monkeypatch
):
    opened = export._open_exported
    shifted = lambda *a: lambda x: opened(*a)(x) + 0.1  # noqa: E731
    monkeypatch.setattr(export, "_open_exported", shifted)
    assert command("export", run, "format=safetensors", "out=here/a.safetensors") == 2
    assert "differ by 0.1, more than" in capsys.readouterr().err
    assert list(Path(tmp_path, "here").iterdir()) == []


def test_a_missing_extra_is_named_with_its_command(command, run, capsys, monkeypatch):
    find = export.find_spec
    monkeypatch.setattr(
        export, "find_spec", lambda name: None if name == "onnxruntime" else find(name)
    )
    assert command("export", run) == 2
    said = capsys.readouterr().err
    assert "onnxruntime is not installed; uv sync --extra onnx" in said
    assert "onnxruntime" not in sys.argv
