"""Laws of the record of a run: plain JSON that comes back, damage is named."""

import json
import sys
import zlib
from base64 import b64encode

import numpy as np
import pytest
import torch

from resnet_se.commands import record as commands_record
from resnet_se.commands.record import difference
from resnet_se.runs.record import (
    MOST_BYTES,
    MOST_IMAGES,
    SCHEMA,
    STATUSES,
    pack_labels,
    read_result,
    unpack_labels,
    write_result,
)
from resnet_se.utils.errors import UserError


def record(**fields):
    return {"schema": SCHEMA, "status": "finished", **fields}


def test_result_comes_back_as_written(tmp_path):
    assert read_result(tmp_path) is None
    result = record(seed=0, tags=["a", "ü"], test={"acc": 0.5, "acc_tta": None})
    write_result(tmp_path, result)
    assert read_result(tmp_path) == result
    write_result(tmp_path, result | {"status": "failed"})
    assert read_result(tmp_path)["status"] == "failed"


def test_what_json_lacks_becomes_null(tmp_path):
    nan, inf = float("nan"), float("inf")
    fields = {"a": nan, "b": [1.5, -inf], "c": {"d": (np.float64(inf), 2)}}
    write_result(tmp_path, record(**fields))

    def refuse(constant):  # the package's own reader would take NaN
        raise AssertionError(constant)

    text = (tmp_path / "result.json").read_text()
    found = json.loads(text, parse_constant=refuse)
    assert found == record(a=None, b=[1.5, None], c={"d": [None, 2]})


@pytest.mark.parametrize(
    "text",
    [
        '{"schema": 1, "status": "fini',
        "",
        "[]",
        "null",
        '{"schema": 1}',
        '{"status": "finished"}',
        json.dumps({"schema": SCHEMA + 1, "status": "finished"}),
        json.dumps({"schema": SCHEMA, "status": "done"}),
        "\xff",
    ],
)
def test_damaged_result_is_named(tmp_path, text):
    path = tmp_path / "result.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError) as caught:
        read_result(tmp_path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("status", STATUSES)
def test_every_status_can_be_read(tmp_path, status):
    write_result(tmp_path, record(status=status))
    assert read_result(tmp_path)["status"] == status


@pytest.mark.parametrize("n", [0, 1, 1000])
def test_labels_survive_packing(n):
    labels = torch.arange(n) * 65_535 // max(n - 1, 1)
    found = unpack_labels(pack_labels(labels))
    assert found.dtype == np.int64
    assert found.tolist() == labels.tolist()
    assert pack_labels(labels).isascii()


@pytest.mark.parametrize("schema", [SCHEMA - 1, SCHEMA + 1, str(SCHEMA), None])
def test_another_schema_is_refused_with_the_one_expected(tmp_path, schema):
    write_result(tmp_path, record(schema=schema))
    with pytest.raises(UserError) as caught:
        read_result(tmp_path)
    expected = f"result.json: schema {SCHEMA} expected, got {schema!r}"
    assert str(caught.value).endswith(expected)


def test_the_difference_of_two_settings_is_what_differs():
    a = {"lr": 0.1, "same": [1], "only a": True, "null": None}
    b = {"lr": 0.2, "same": [1], "only b": "x"}
    assert difference(a, b) == {
        "lr": (0.1, 0.2),
        "only a": (True, None),
        "only b": (None, "x"),
    }
    assert difference(a, a) == {}


@pytest.fixture
def two_runs(tmp_path):
    """Folders whose settings differ in `lr`."""
    for name, lr in (("a", 0.1), ("b", 0.2)):
        setting = {"lr": lr, "same": 1}
        fields = {"config_hash": f"hash of {name}", "setting": setting}
        write_result(tmp_path / name, record(**fields))


def test_record_shows_what_went_into_the_hash(two_runs, command, capsys):
    assert command("record", "a") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown == {"config_hash": "hash of a", "lr": 0.1, "same": 1}


def test_record_compares_two_runs(two_runs, command, capsys):
    assert command("record", "a", "b/result.json") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["hash of a hash of b", "  lr: 0.1 → 0.2"]


def test_record_says_what_it_cannot_show(two_runs, tmp_path, command, capsys):
    write_result(tmp_path / "old", record(schema=SCHEMA - 1))
    write_result(tmp_path / "bare", record(config_hash="hash"))
    for runs, words in (
        (["old"], f"schema {SCHEMA} expected, got {SCHEMA - 1}"),
        (["bare"], "no field setting"),
        (["nowhere"], "nowhere"),
        (["a", "b", "a"], "one run or two, got 3"),
    ):
        assert command("record", *runs) == 2
        assert words in capsys.readouterr().err


def test_other_pixels_are_the_first_difference_of_two_runs(tmp_path, capsys):
    data = {"fingerprint": "sha256:1", "decoder": "Pillow 13.0.0, libjpeg-turbo 3.1"}
    data["set_fingerprint"] = "sha256:9"
    other = {"fingerprint": "sha256:2", "decoder": "Pillow 9.5.0, libjpeg 9.5"}
    runs = {"a": data, "b": other, "c": {**data, "decoder": "x"}}
    runs["d"] = {**other, "set_fingerprint": "sha256:9"}
    for name, pixels in runs.items():
        setting = {"data.content": "image_folder-1", "a": name}
        fields = {"config_hash": "00000000", "setting": setting, "data": pixels}
        (tmp_path / name).mkdir()
        write_result(tmp_path / name, record(**fields))

    def lines(a, b):
        monkey.setattr(sys, "argv", ["record", str(tmp_path / a), str(tmp_path / b)])
        commands_record.main()
        return capsys.readouterr().out.splitlines()

    with pytest.MonkeyPatch.context() as monkey:
        assert lines("a", "b") == [
            "both 00000000",
            "  data.decoder: 'Pillow 13.0.0, libjpeg-turbo 3.1' → "
            "'Pillow 9.5.0, libjpeg 9.5'",
            "  data.fingerprint: 'sha256:1' → 'sha256:2'",
            "  a: 'a' → 'b'",
        ]
        assert lines("a", "d")[1] == "  the same images in another order"
        # The same pixels, whatever made them.
        assert lines("a", "c") == ["both 00000000", "  a: 'a' → 'c'"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f'"train": {{"epochs": 1{"0" * 400}}}', "at most 20 digits expected, got"),
        (f'"notes": [-{"9" * 25}]', "at most 20 digits expected, got one of 26"),
        ('"data": {"classes": [1, 2]}', "data.classes: expected a list of names"),
        ('"data": {"classes": "ab"}', "data.classes: expected a list of names"),
    ],
)
def test_numbers_and_names_that_nothing_could_use_are_refused(tmp_path, text, said):
    path = tmp_path / "result.json"
    path.write_text(f'{{"schema": {SCHEMA}, "status": "failed", {text}}}')
    with pytest.raises(UserError, match=said) as caught:
        read_result(tmp_path)
    assert str(caught.value).count(str(path)) == 1


@pytest.mark.parametrize(
    ("packed", "said"),
    [
        (b64encode(zlib.compress(bytes(2 * MOST_IMAGES + 2), 9)), "10,000,000 images"),
        (b64encode(zlib.compress(bytes(9))[:-3]), "cut off"),
        (b64encode(zlib.compress(bytes(3))), "cut off"),
        (b64encode(b"nothing"), "not as they are packed"),
        (b"!", "not as they are packed"),
    ],
)
def test_labels_are_unpacked_no_further_than_a_test_set_goes(packed, said):
    with pytest.raises(UserError, match=said):
        unpack_labels(packed.decode())


def test_a_record_of_more_than_its_size_is_not_read(tmp_path):
    with (tmp_path / "result.json").open("wb") as file:
        file.truncate(MOST_BYTES + 1)
    with pytest.raises(UserError, match="expected at most 32 MB"):
        read_result(tmp_path)
