"""Our own tar headers and sizes are tarfile's, and what is not written by us is not read as if it were."""

from __future__ import annotations

import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdt_pipeline.shards.tar import TarShard, read_members, ustar_header

NAMES = st.from_regex(r"[A-Za-z0-9_%-]{1,80}\.[a-z]{1,5}", fullmatch=True)
FILES = st.lists(st.binary(max_size=1500), max_size=8)


def written(files: list[bytes]) -> tuple[bytes, TarShard]:
    file = io.BytesIO()
    tar = TarShard(file)
    for number, data in enumerate(files):
        tar.add(f"{number:08d}", {"npy": data, "cls": b"1"})
    tar.close()
    return file.getvalue(), tar


@given(NAMES, st.integers(0, 8**11 - 1))
def test_a_header_is_the_one_that_tarfile_writes(name: str, size: int) -> None:
    info = tarfile.TarInfo(name)
    info.size = size
    assert ustar_header(name.encode(), size) == info.tobuf(tarfile.USTAR_FORMAT)


@given(FILES)
def test_a_tar_is_the_one_that_tarfile_writes(files: list[bytes]) -> None:
    theirs = io.BytesIO()
    with tarfile.TarFile(fileobj=theirs, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for number, data in enumerate(files):
            for extension, content in (("npy", data), ("cls", b"1")):
                info = tarfile.TarInfo(f"{number:08d}.{extension}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    assert written(files)[0] == theirs.getvalue()


@given(FILES)
def test_its_size_is_known_before_a_sample_is_added(files: list[bytes]) -> None:
    data, _ = written(files)
    _, before = written(files[:-1])
    unfinished = TarShard(io.BytesIO())
    for number, content in enumerate(files[:-1]):
        unfinished.add(f"{number:08d}", {"npy": content, "cls": b"1"})
    if files:
        assert unfinished.size_with({"npy": files[-1], "cls": b"1"}) == len(data)
    assert before.num_bytes % 10_240 == 0


@given(FILES)
def test_members_are_read_as_they_were_written(files: list[bytes]) -> None:
    data, _ = written(files)
    found = [content for _, content in read_members(io.BytesIO(data))]
    assert found == [content for file in files for content in (file, b"1")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:700], "cut at byte 700, in or after 00000000.npy"),
        (lambda data: data[:512], "cut at byte 512, in or after 00000000.npy"),
        (lambda data: b"x" + data[1:], "no header of a member at byte 0, after its beginning"),
        (
            lambda data: data[:1024] + b"\1" * 512 + data[1536:],
            "no header of a member at byte 1024, after 00000000.npy",
        ),
        (lambda data: data[:156] + b"5" + data[157:], "no header of a member at byte 0"),
        (lambda data: b"", "cut at byte 0, in or after its beginning"),
    ],
)
def test_a_broken_tar_is_told_with_the_place(change, message: str) -> None:
    data = change(written([b"abc", b"def"])[0])
    with pytest.raises(ValueError, match=message):
        list(read_members(io.BytesIO(data)))


def test_what_a_header_has_no_room_for_is_refused() -> None:
    with pytest.raises(ValueError, match="a name of 100 bytes and 8 GiB, got 101 bytes and 3"):
        ustar_header(b"x" * 101, 3)
    with pytest.raises(ValueError, match="got 1 bytes and 8589934592"):
        ustar_header(b"x", 8**11)
