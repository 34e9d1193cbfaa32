"""Laws of files: whole or not there, a backup, one process at a time."""

from contextlib import suppress

import pytest

from resnet_se.utils import files
from resnet_se.utils.errors import UserError
from resnet_se.utils.files import Busy, atomic_file, exclusive


def test_file_appears_only_when_it_is_whole(tmp_path):
    path = tmp_path / "deep" / "file"
    with atomic_file(path) as file:
        file.write(b"new")
        file.flush()
        assert not path.exists()
    assert path.read_bytes() == b"new"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failed_write_leaves_the_old_content_alone(tmp_path, error):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with suppress(error), atomic_file(path) as file:
        file.write(b"half")
        raise error
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_was_there_is_kept_as_a_backup(tmp_path):
    path, backup = tmp_path / "last", tmp_path / "previous"
    for content in (b"one", b"two", b"three"):
        with atomic_file(path, backup) as file:
            file.write(content)
    assert (path.read_bytes(), backup.read_bytes()) == (b"three", b"two")
    with suppress(ValueError), atomic_file(path, backup):
        raise ValueError
    assert (path.read_bytes(), backup.read_bytes()) == (b"three", b"two")
    assert len(list(tmp_path.iterdir())) == 2


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match=r"runs_dir: cannot write in .*file/run"),
        exclusive(tmp_path / "file/run"),
    ):
        pass


def test_one_process_at_a_time_in_a_run_directory(tmp_path):
    run_dir = tmp_path / "experiment/seed0"
    with exclusive(run_dir):
        with pytest.raises(Busy, match=str(run_dir)), exclusive(run_dir):
            pass
        with exclusive(tmp_path / "experiment/seed1"):
            pass
    with suppress(KeyError), exclusive(run_dir):
        raise KeyError  # frees it as well
    with exclusive(run_dir):
        pass


def test_a_place_that_no_file_can_have_is_refused_before_the_work(tmp_path):
    (tmp_path / "file").write_text("mine")
    files.check_file(tmp_path / "new/file")
    files.check_file(tmp_path / "file")
    files.check_folder(tmp_path / "folder")
    assert (tmp_path / "file").read_text() == "mine"
    assert not list((tmp_path / "new").iterdir())
    with pytest.raises(UserError, match="expected the name of a file, got the folder"):
        files.check_file(tmp_path)
    with pytest.raises(UserError, match="expected a folder, got the file"):
        files.check_folder(tmp_path / "file")
    for check in (files.check_file, files.check_folder):
        with pytest.raises(UserError, match="out: cannot write"):
            check(tmp_path / "file/below")


def test_a_folder_of_a_run_that_is_a_link_is_not_written_through(tmp_path):
    assert files.own_folder(tmp_path / "plots") == tmp_path / "plots"
    (tmp_path / "plots").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"a link to .*elsewhere, which is not written"):
        files.own_folder(tmp_path / "plots")


@pytest.mark.parametrize("text", ["=1+1", "+x", "-x", "@SUM(A)", "\t=1", "\r=1", "=-1"])
def test_a_cell_is_no_formula(text):
    assert files.csv_cell(text) == f"'{text}"


@pytest.mark.parametrize("text", ["", "a=b", "-1", "+0.5", "-1e-3", "1-2", "'=1"])
def test_other_cells_stay(text):
    assert files.csv_cell(text) == text
