"""`predictions.npz` of others: an array is judged by its header, before it is read."""

import io
import os
import zipfile

import numpy as np
import pytest

from resnet_se.runs import predictions_file
from resnet_se.utils.errors import UserError

LABELS = np.array([0, 2, 1])
LOGITS = np.eye(3, dtype=np.float32)
BOTH = {"labels": LABELS, "logits": LOGITS}


def test_what_was_written_comes_back(tmp_path):
    path = tmp_path / predictions_file.NAME
    more = {"tta": LOGITS, "val_labels": LABELS[:2], "val_logits": LOGITS[:2]}
    predictions_file.write(path, BOTH | more)
    found = predictions_file.read(path)
    assert found.keys() == {"labels", "logits", "val_labels", "val_logits"}
    for name, array in found.items():
        np.testing.assert_array_equal(array, (BOTH | more)[name])


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"labels": LABELS}, "no array 'logits'"),
        ({"labels": LABELS[:2], "logits": LOGITS}, r"a row for each label, got \(3, 3"),
        ({"labels": LABELS, "logits": LOGITS[0]}, "a row for each label"),
        ({"labels": LABELS[:0], "logits": LOGITS[:0]}, "a row for each label"),
        ({"labels": LABELS + 1, "logits": LOGITS}, r"labels expected in 0\.\.2"),
        ({"labels": LABELS - 1, "logits": LOGITS}, r"labels expected in 0\.\.2"),
        ({"labels": LABELS * 1.0, "logits": LOGITS}, "labels: got numbers of type"),
        ({"labels": LABELS, "logits": LABELS}, "logits: got numbers of type"),
        ({"labels": LABELS, "logits": LOGITS * np.nan}, "finite numbers expected"),
        (BOTH | {"val_labels": [0], "val_logits": LOGITS[:1, :2]}, "as many classes"),
        (
            {"labels": np.array([{}] * 3), "logits": LOGITS},
            "numbers of type object",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_said(tmp_path, arrays, said):
    np.savez(tmp_path / "p.npz", **arrays)
    with pytest.raises(UserError, match=said):
        predictions_file.read(tmp_path / "p.npz")


def headed(shape: tuple[int, ...], dtype: str) -> bytes:
    """A header that claims more than follows."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"shape": shape, "fortran_order": False, "descr": dtype}
    )
    return file.getvalue() + bytes(24)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (headed((1_200_000_000,), "<i8"), "expected at most 1024 MB"),
        (headed((1 << 62, 1 << 62), "<i8"), "expected at most 1024 MB"),
        (headed((30,), "<i8"), "damaged"),
        (b"\x93NUMPY\x02\x00" + b"\xff" * 60, "version 1.0 of the format"),
        (b"nothing", "damaged"),
    ],
)
def test_a_header_that_claims_gigabytes_is_refused_unread(tmp_path, content, said):
    path = tmp_path / "p.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("labels.npy", content)
    with pytest.raises(UserError, match=said):
        predictions_file.read(path)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "p.npz")
    with pytest.raises(UserError, match="expected a regular file"):
        predictions_file.read(tmp_path / "p.npz")
    (tmp_path / "q.npz").write_bytes(b"PK")
    with pytest.raises(UserError, match="damaged"):
        predictions_file.read(tmp_path / "q.npz")
