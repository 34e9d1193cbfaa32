"""Networks that Keras trained and saved (experiments/keras/make_fixture.py)."""

import inspect
import io
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import resnet_se
from resnet_se.config.build import run_data
from resnet_se.inference.keras_model import RESTATED, without_defaults
from resnet_se.models.resnet import ResNet
from resnet_se.runs import keras_file
from resnet_se.runs.keras_weights import state_of, write
from resnet_se.utils.errors import UserError

h5py = pytest.importorskip("h5py")

FIXTURES = Path(__file__).parents[1] / "fixtures" / "keras"
FILES = ("se_resnet.keras", "se_resnet.weights.h5", "se_resnet.h5")
NETWORK = {
    "depths": [1, 2, 1],
    "widths": [8, 16, 32],
    "strides": [1, 2, 2],
    "reduction": 4,
}


def images() -> torch.Tensor:
    """The inputs of make_fixture.py, (100, 3, 32, 32) in 0..1."""
    draw = np.random.default_rng(0)
    coarse = draw.integers(0, 256, (100, 8, 8, 3), dtype=np.uint8)
    pixels = coarse.repeat(4, axis=1).repeat(4, axis=2).astype(np.float32) / 255
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def kerass_logits() -> torch.Tensor:
    return torch.from_numpy(np.load(FIXTURES / "logits.npz")["logits"])


def loaded(name, **arguments):
    model = resnet_se.load(FIXTURES / name, model={**NETWORK, **arguments})
    model.mean.fill_(0.473)
    model.std.fill_(0.251)
    return model


@pytest.mark.parametrize("name", FILES)
def test_logits_are_keras(name):
    model = loaded(name)
    with torch.no_grad():
        logits = model(images())
        normalised = (images() - 0.473) / 0.251
        torch.testing.assert_close(model.net(normalised), logits)
    torch.testing.assert_close(logits, kerass_logits(), atol=1e-5, rtol=0)
    assert model.classes == tuple("0123456789")


def test_nothing_in_the_file_is_as_it_began():
    """Else an exchange of two layers, or of a mean with a variance, would not show."""
    state = loaded(FILES[0]).net.state_dict()
    for name, tensor in state.items():
        if not name.endswith("num_batches_tracked"):
            assert tensor.unique().numel() > 1, name


def test_the_padding_of_pytorch_gives_other_logits():
    with torch.no_grad():
        logits = loaded(FILES[0], padding="symmetric")(images())
    assert (logits - kerass_logits()).abs().max() > 0.1


def test_a_preset_takes_the_files_padding_and_epsilon(tmp_path):
    # One block of 8, two of 16, one of 32 are no preset: arguments of one are replaced.
    with pytest.raises(UserError, match="expected 19 larger convolutions, got 9"):
        resnet_se.load(FIXTURES / FILES[0], model="se_resnet20")
    net = loaded(FILES[0]).net
    assert {m.eps for m in net.modules() if hasattr(m, "running_var")} == {1e-3}


# --- written -----------------------------------------------------


def arrays_of(path):
    arrays = {}
    with h5py.File(path) as file:
        file["layers"].visititems(
            lambda name, item: (
                arrays.update({name: item[()]}) if hasattr(item, "dtype") else None
            )
        )
    return arrays


def test_what_is_written_is_kerass_own_file(tmp_path):
    path = tmp_path / "ours.weights.h5"
    write(path, loaded(FILES[1]).net)
    ours, kerass = arrays_of(path), arrays_of(FIXTURES / FILES[1])
    assert ours.keys() == kerass.keys()
    for name, values in kerass.items():
        assert ours[name].dtype == values.dtype
        assert np.array_equal(ours[name], values), name


def test_a_layer_that_keras_has_not_is_not_written(tmp_path):
    net = torch.nn.Sequential(torch.nn.LayerNorm(4))
    with pytest.raises(UserError, match=r"format=keras: 0 \(LayerNorm\) has no"):
        write(tmp_path / "own.weights.h5", net)


def test_an_exported_run_is_read_and_tested_again(finished, command, tmp_path):
    """The file says padding, epsilon and preprocessing, which weights do not show."""
    options = ("format=keras", "out=ours.weights.h5", "images=40")
    assert command("export", f"run={finished.folder}", *options) == 0
    model = resnet_se.load(finished.folder)
    shape = {k: model.config["model"][k] for k in NETWORK}
    again = resnet_se.load(tmp_path / "ours.weights.h5", model=shape)
    x = torch.randint(0, 256, (20, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(again(x), model(x))
    assert again.classes == model.classes
    typed = [f"model.{k}={v}".replace(" ", "") for k, v in shape.items()]
    test, _ = run_data(finished.folder).test_part, (tmp_path / "mine").mkdir()
    np.save(tmp_path / "mine/images.npy", test[0].permute(0, 2, 3, 1).numpy())
    np.save(tmp_path / "mine/labels.npy", test[1].numpy())
    data = ("data=arrays", "data.source.root=mine", "out=found.json")
    options = ("run=ours.weights.h5", "model=se_resnet20", *typed, *data)
    assert command("evaluate", *options) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    for key in ("acc", "predicted", "per_class"):
        assert found[key] == finished.result["test"][key]


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"padding": "same", "bn_eps": 1, "classes": []}']
)
def test_an_attribute_that_is_not_ours_is_one_sentence(tmp_path, text):
    path = with_weights(tmp_path / "a.weights.h5", lambda layers: None)
    with h5py.File(path, "r+") as file:
        file.attrs[keras_file.ABOUT] = text
    with pytest.raises(UserError, match=r"a\.weights\.h5: resnet_se: .+") as caught:
        resnet_se.load(path, model=NETWORK)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("padding", ["same", "symmetric"])
def test_what_is_written_says_its_padding_and_epsilon(tmp_path, padding):
    net = ResNet(**NETWORK, bn_eps=2e-4, padding=padding)
    about = {"classes": list("abcdefghij"), "size": [32, 32]}
    about |= {"mean": [0.1, 0.2, 0.3], "std": [1.0, 2.0, 3.0]}
    write(tmp_path / "a.weights.h5", net, about)
    file = keras_file.read(tmp_path / "a.weights.h5")
    assert file.settings == {"padding": padding, "bn_eps": 2e-4}
    assert file.about["std"].tolist() == [1.0, 2.0, 3.0]


def test_only_what_a_file_says_is_taken_from_a_preset_s_place():
    preset = {"depths": [3], "padding": "symmetric", "bn_eps": 1e-5, "bn_momentum": 0.1}
    assert without_defaults(preset) == {"depths": [3]}
    assert without_defaults({**preset, "bn_eps": 1e-4})["bn_eps"] == 1e-4
    own = inspect.signature(ResNet).parameters
    assert {k: own[k].default for k in RESTATED} == RESTATED


# --- what cannot be read -----------------------------------------


def with_config(path: Path, change) -> Path:
    """A copy of the fixture whose configuration has been changed."""
    with zipfile.ZipFile(FIXTURES / FILES[0]) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(entries["config.json"])
    change(config)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            fresh = json.dumps(config) if name == "config.json" else data
            archive.writestr(name, fresh)
    return path


def with_weights(path: Path, change) -> Path:
    shutil.copy(FIXTURES / FILES[1], path)
    with h5py.File(path, "r+") as file:
        change(file["layers"])
    return path


def replace(group, name, values):
    del group[name]
    group[name] = values


def test_another_architecture_is_named_by_its_layer():
    with pytest.raises(UserError, match=r"conv2d_3: expected \(8, 8, 3, 3\) for"):
        resnet_se.load(FIXTURES / FILES[1], model={**NETWORK, "depths": [2, 1, 1]})
    with pytest.raises(
        UserError, match=r"expected 3 dense layers|expected 1 dense lay"
    ):
        resnet_se.load(FIXTURES / FILES[1], model={**NETWORK, "reduction": None})
    with pytest.raises(UserError, match=r"expected 1 arrays .*got 2"):
        resnet_se.load(FIXTURES / FILES[1], model={**NETWORK, "conv_bias": False})


def test_a_layer_without_counterpart_is_named(tmp_path):
    def lstm(layers):
        layers["lstm/vars/0"] = np.zeros((2, 3), np.float32)

    path = with_weights(tmp_path / "own.weights.h5", lstm)
    with pytest.raises(UserError, match=r"the layer lstm .* has no counterpart"):
        resnet_se.load(path, model=NETWORK)

    def rescaling(config):
        entry = {"class_name": "Rescaling", "config": {"name": "scale"}}
        config["config"]["layers"].append(entry)

    path = with_config(tmp_path / "scaled.keras", rescaling)
    with pytest.raises(UserError, match=r"scale \(Rescaling\) has no counterpart"):
        resnet_se.load(path, model=NETWORK)


def test_float16_weights_are_refused(tmp_path):
    def halve(layers):
        values = layers["dense/vars/0"][()].astype(np.float16)
        replace(layers["dense/vars"], "0", values)

    path = with_weights(tmp_path / "half.weights.h5", halve)
    with pytest.raises(UserError, match="dense: expected float32 weights, got float16"):
        resnet_se.load(path, model=NETWORK)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.98])
def test_a_truncated_file_is_one_sentence(tmp_path, name, share):
    content = (FIXTURES / name).read_bytes()
    path = tmp_path / name
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError) as caught:
        resnet_se.load(path, model=NETWORK)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_what_is_none_of_keras_is_said(tmp_path):
    path = tmp_path / "model.keras"
    path.write_bytes(b"no zip at all")
    with pytest.raises(
        UserError, match=r"a .keras file is a zip archive; this is none"
    ):
        resnet_se.load(path, model=NETWORK)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "another zip")
    with pytest.raises(UserError, match="a zip, but no Keras file"):
        resnet_se.load(path, model=NETWORK)
    buffer = io.BytesIO()
    torch.save({"w": torch.zeros(2)}, buffer)
    path = tmp_path / "model.h5"
    path.write_bytes(buffer.getvalue())
    with pytest.raises(UserError, match="a Keras file is expected to hold HDF5"):
        resnet_se.load(path, model=NETWORK)
    with h5py.File(path, "w") as file:
        file["temperatures"] = np.zeros(3)
    with pytest.raises(UserError, match="no layers"):
        resnet_se.load(path, model=NETWORK)
    with pytest.raises(UserError, match="no such file"):
        resnet_se.load(tmp_path / "absent.keras", model=NETWORK)


def test_links_out_of_a_file_are_not_followed(tmp_path):
    secret = tmp_path / "other.h5"
    with h5py.File(secret, "w") as file:
        file["values"] = np.zeros((16, 10), np.float32)

    def link(layers):
        del layers["dense/vars/0"]
        layers["dense/vars/0"] = h5py.ExternalLink(str(secret), "values")

    path = with_weights(tmp_path / "linked.weights.h5", link)
    with pytest.raises(UserError, match="the layer dense with weights"):
        resnet_se.load(path, model=NETWORK)


def test_a_file_needs_a_network_and_a_run_has_its_own(tmp_path):
    with pytest.raises(UserError, match="a Keras file; add model="):
        resnet_se.load(FIXTURES / FILES[0])
    with pytest.raises(UserError, match="is no Keras file and has its own network"):
        resnet_se.load(tmp_path, model="se_resnet20")
    with pytest.raises(UserError, match="width"):
        resnet_se.load(FIXTURES / FILES[0], model={**NETWORK, "width": 3})


def test_without_a_graph_batchnorms_are_those_of_their_convolutions():
    """The file of weights alone has the state of the file with a graph."""
    net = ResNet(**NETWORK, bn_eps=1e-3, padding="same")
    states = [state_of(keras_file.read(FIXTURES / name), net) for name in FILES]
    for state in states[1:]:
        assert state.keys() == states[0].keys()
        assert all(torch.equal(state[name], states[0][name]) for name in state)
