"""Local folders, and files that appear whole or not at all."""

import pickle

import pytest

from fdt_pipeline.storage import open_folder
from fdt_pipeline.storage.atomic import atomic_file
from fdt_pipeline.storage.remote import RemoteFolder
from tests.folders import names


def test_a_file_appears_when_its_block_ends_well_and_not_before(tmp_path):
    with atomic_file(tmp_path / "file") as file:
        file.write(b"whole")
        [temporary] = names(tmp_path)
        assert temporary.startswith(".file.")
        assert temporary.endswith(".tmp")
    assert names(tmp_path) == ["file"]
    assert (tmp_path / "file").read_bytes() == b"whole"


def test_a_block_that_fails_leaves_the_old_file(tmp_path):
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(TypeError), atomic_file(tmp_path / "file") as file:
        file.writelines([b"half", None])
    assert names(tmp_path) == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    with atomic_file(tmp_path / "file") as first, atomic_file(tmp_path / "file") as second:
        first.write(b"first")
        second.write(b"second")
    assert (tmp_path / "file").read_bytes() == b"first"


def test_what_can_be_done_with_a_folder(tmp_path):
    folder = open_folder(tmp_path / "new")
    assert (folder.exists(), folder.is_file(), folder.names(), folder.subfolders()) == (False, False, [], [])
    folder.make()
    with folder.writing("a") as file:
        file.write(b"abc")
    assert (folder.names(), folder.size("a"), folder.size("b"), folder.read("a")) == (["a"], 3, None, b"abc")
    below = folder.folder("sub")
    below.make()
    folder.move("a", "sub/b")
    assert (folder.names(), folder.subfolders(), below.names()) == ([], ["sub"], ["b"])
    with below.open("b") as file:
        assert file.read(2) == b"ab"
    with pytest.raises(FileNotFoundError):
        folder.read("a")
    below.remove("b")
    below.remove("b")
    below.remove_tree()
    assert folder.subfolders() == []
    assert pickle.loads(pickle.dumps(folder)) == folder == open_folder(folder) == open_folder(str(tmp_path / "new"))


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../x", "a/../../x", ".", "a//b", "a\0b"])
def test_a_name_that_leads_out_of_the_folder_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="expected the name of a file below the folder"):
        open_folder(tmp_path).read(name)
    with pytest.raises(ValueError, match="expected the name of a file below the folder"):
        RemoteFolder("memory://files").path(name)
