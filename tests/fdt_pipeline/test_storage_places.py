"""Files that lie elsewhere than the folder that names them."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdt_pipeline.storage import located, open_folder, place_of

PARTS = st.lists(st.sampled_from(["a", "b", "c.d", "e f"]), min_size=1, max_size=4)
ROOTS = st.sampled_from(["/nowhere", "s3://bucket", "s3://other", "memory://x"])


@given(ROOTS, PARTS, ROOTS, PARTS)
def test_a_file_is_found_by_its_place(root, parts, other_root, other_parts):
    folder, there = open_folder("/".join([root, *parts])), open_folder("/".join([other_root, *other_parts]))
    found, name = located(folder, place_of(folder, there, "x.tar"))
    assert (found.url, name) == (there.url, "x.tar")


@pytest.mark.parametrize(
    ("folder", "there", "place"),
    [
        ("/n/a/set", "/n/a/set", "x.tar"),
        ("/n/a/set", "/n/a/set/b", "b/x.tar"),
        ("/n/a/set", "/n/a", "../x.tar"),
        ("/n/a/set", "/n/a/tars/b", "../tars/b/x.tar"),
        ("/n/a/set", "/n/b", "/n/b/x.tar"),
        ("/n", "/m", "/m/x.tar"),  # above both there is only the root
        ("/n", "s3://bucket", "s3://bucket/x.tar"),
        ("s3://bucket/set", "s3://bucket/tars", "../tars/x.tar"),
        ("s3://bucket", "s3://bucket/tars", "tars/x.tar"),
        ("s3://bucket", "s3://other", "s3://other/x.tar"),
        ("s3://bucket/set", "gs://bucket/tars", "gs://bucket/tars/x.tar"),
        ("s3://bucket/set", "/n/b", "/n/b/x.tar"),
    ],
)
def test_what_can_be_moved_together_is_relative(folder, there, place):
    assert place_of(open_folder(folder), open_folder(there), "x.tar") == place


def test_a_place_is_that_of_the_folder_itself_and_not_of_a_link_to_it(tmp_path, monkeypatch):
    (tmp_path / "a" / "set").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a" / "set")
    monkeypatch.chdir(tmp_path)
    for folder in ("link", "a/set", tmp_path / "link"):
        found, name = located(open_folder(folder), "../tars/x.tar")
        assert found.path(name) == os.path.realpath(tmp_path / "a" / "tars" / "x.tar")


def test_a_place_above_a_store_is_refused():
    with pytest.raises(ValueError, match="leads above the store's root"):
        located(open_folder("s3://bucket/set"), "../../../x.tar")
