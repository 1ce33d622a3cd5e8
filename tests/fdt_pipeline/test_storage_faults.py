"""What a folder at a URL makes of failing stores and web servers, of clear answers, and of URLs that are none."""

import hashlib
import multiprocessing
import os
import subprocess
import sys
import time

import pytest

import fdt_pipeline.storage.cache
from fdt_pipeline.storage import open_folder
from fdt_pipeline.storage.cache import Cache, Entry
from fdt_pipeline.storage.remote import RemoteFolder
from fdt_pipeline.storage.retrying import Retry, is_transient
from tests.peers import needs
from tests.servers import Fault, object_store, web_server

pytestmark = pytest.mark.peer

needs("moto")
needs("s3fs")

QUICK = Retry(tries=4, first_wait=0.01, longest_wait=0.05)
DATA = bytes(range(256)) * 80


@pytest.fixture(scope="module")
def running_store():
    with object_store() as proxy:
        with RemoteFolder("s3://bucket").writing("files/data") as file:
            file.write(DATA)
        yield proxy


@pytest.fixture
def store(running_store):
    running_store.reset()
    return running_store


@pytest.fixture
def folder(store):
    return RemoteFolder("s3://bucket/files", QUICK)


def write(folder):
    with folder.writing("new") as file:
        file.write(DATA)
    return folder.read("new")


def moved(folder):
    write(folder)
    folder.move("new", "sub/newer")
    assert folder.size("new") is None
    return folder.folder("sub").read("newer")


def removed(folder):
    write(folder)
    folder.remove("new")
    return folder.size("new") is None


@pytest.mark.parametrize(
    ("method", "ending", "use", "expected"),
    [
        ("GET", "/data", lambda folder: folder.read("data"), DATA),
        ("GET", "/data", lambda folder: folder.open("data").read(), DATA),
        ("HEAD", "/data", lambda folder: folder.size("data"), len(DATA)),
        ("HEAD", "/files", lambda folder: folder.exists(), True),
        ("GET", "/bucket", lambda folder: "data" in folder.names(), True),
        ("PUT", "/new", write, DATA),
        ("PUT", "/sub/newer", moved, DATA),
        ("DELETE", "/new", removed, True),
    ],
    ids=["read", "open", "size", "exists", "names", "write", "move", "remove"],
)
@pytest.mark.parametrize("fault", [{"status": 500}, {"status": 503}, {"reset": True}], ids=["500", "503", "reset"])
def test_every_call_outlasts_a_few_faults(store, folder, method, ending, use, expected, fault):
    store.put_in(Fault(ending, method, **fault), times=3)
    assert use(folder) == expected
    assert store.faults[0].times == 0, "the faults were met"


@pytest.mark.parametrize("fault", [{"cut": 0}, {"cut": 100}, {"cut": 0, "reset": True}, {"flip": True}], ids=str)
def test_a_body_that_is_not_the_file_is_asked_for_again(store, folder, fault):
    """The store sends a checksum, which shows a flipped bit."""
    store.put_in(Fault("/data", **fault), times=2)
    assert folder.read("data") == DATA


@pytest.mark.parametrize(
    ("fault", "use", "reason"),
    [
        (Fault("/data", status=503), lambda folder: folder.read("data"), ""),
        (Fault("/data", flip=True), lambda folder: folder.read("data"), "Expected checksum"),
        (Fault("/new", "PUT", status=503), write, ""),
    ],
    ids=["read", "flip", "write"],
)
def test_tries_are_not_multiplied_by_those_of_the_libraries(store, folder, fault, use, reason):
    store.put_in(fault)
    message = rf"^s3://bucket/files{fault.ending}: could not be reached in 4 tries: {reason}.*try again later"
    with pytest.raises(OSError, match=message):
        use(folder)
    assert sum(asked == fault.method and path.endswith(fault.ending) for asked, path, _ in store.requests) == 4


def test_a_file_is_uploaded_whole_when_its_block_ends_well(folder):
    with folder.writing("patched") as file:
        file.write(DATA)
        file.seek(0)
        file.write(b"x")
    assert folder.read("patched") == b"x" + DATA[1:], "wherever its writer stood"
    with pytest.raises(TypeError), folder.writing("half") as file:
        file.writelines([DATA, None])
    assert folder.size("half") is None


def test_clear_answers_are_given_at_once(store, folder):
    with pytest.raises(FileNotFoundError, match=r"^s3://bucket/files/nothing: not there$"):
        folder.read("nothing")
    assert len(store.requests) <= 2, "one for the file, and one for what may lie below it"
    store.put_in(Fault("/data", status=403))
    with pytest.raises(PermissionError, match=r"^s3://bucket/files/data: no access .*AWS_ACCESS_KEY_ID"):
        folder.read("data")
    assert len(store.gets("/data")) == 1


def test_a_folder_is_no_file(folder):
    above = RemoteFolder("s3://bucket")
    assert above.size("files") is None
    assert (above.exists(), above.is_file(), folder.exists(), folder.is_file()) == (True, False, True, False)
    assert folder.folder("data").is_file()
    assert above.subfolders() == ["files"]


@pytest.mark.parametrize("url", ["s3://missing-bucket/files", "s3://missing-bucket", "s3://bucket/files/nothing"])
def test_a_place_that_is_not_there_holds_nothing(store, url):
    folder = RemoteFolder(url, QUICK)
    assert (folder.exists(), folder.names(), folder.size("data")) == (False, [], None)


@pytest.mark.parametrize("url", ["s3://missing-bucket", "s3://not_A_bucket!"])
def test_an_error_of_writing_names_the_url(store, url):
    with pytest.raises(OSError, match=rf"^(\[Errno 5\] )?{url}/new: "):
        write(RemoteFolder(url, QUICK))


def run(code, **environment):
    command = [sys.executable, "-W", "error", "-X", "dev", "-c", code]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    return subprocess.run(command, env={**kept, **environment}, capture_output=True, text=True, timeout=60, check=False)


READ = "from fdt_pipeline.storage import open_folder; print(len(open_folder('s3://bucket/files').read('data')))"
KEYS = {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "nothing"}


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "FSSPEC_S3_ENDPOINT_URL"])
def test_an_endpoint_is_set_by_the_environment(store, variable):
    process = run(READ, **KEYS, **{variable: store.url})
    assert (process.stdout.strip(), process.returncode) == (str(len(DATA)), 0), process.stderr
    assert "unclosed" not in process.stderr


def test_without_credentials_one_line_says_what_to_set(store, tmp_path):
    without = {"HOME": str(tmp_path), "AWS_EC2_METADATA_DISABLED": "true"}
    endpoint = {"AWS_ENDPOINT_URL": store.url}
    process = run(READ, **without, **endpoint)
    # asyncio, which `-X dev` has watch itself, may add a line of its own where the machine is busy.
    [said] = [line for line in process.stderr.splitlines() if line.startswith("PermissionError:")]
    assert said.startswith("PermissionError: s3://bucket/files/data: no access (Unable to locate credentials)")
    assert "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or FSSPEC_S3_ANON=true" in said
    RemoteFolder("s3://bucket").fs.chmod("s3://bucket/files/data", "public-read")
    assert run(READ, **without, **endpoint, FSSPEC_S3_ANON="true").stdout.strip() == str(len(DATA))


def test_fsspec_is_not_imported_for_paths():
    code = "import sys; import fdt_pipeline.storage as s; s.open_folder('/').names(); print('fsspec' in sys.modules)"
    before = "import sys; import torch, numpy, PIL; print('fsspec' in sys.modules)"
    assert run(code).stdout in ("False\n", run(before).stdout)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        *((url, "the URL of a folder, .*, got") for url in ("s3://", "s3:///", "http://host/set?a=b", "https://h/s#1")),
        *((url, "a path, or a URL that fsspec knows") for url in ("warp://a/b", "simplecache::s3://a/b", "1a://b")),
    ],
)
def test_a_url_that_leads_nowhere_is_no_folder_here(url, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"expected {message}"):
        open_folder(url).names()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("scheme", ["file", "FILE", "File"])
def test_a_file_url_is_a_path(tmp_path, scheme):
    assert open_folder(f"{scheme}://{tmp_path}").local == tmp_path


def test_a_missing_package_is_named_with_what_brings_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(ImportError, match=r"s3://bucket/files: .*; pip install 'fdt-pipeline\[remote\]' brings fsspec"):
        RemoteFolder("s3://bucket/files").read("data")


def _read_in_child(folder, queue):
    queue.put(len(folder.read("data")))


def test_a_folder_that_was_used_can_be_used_in_a_forked_process(folder):
    assert folder.names()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=_read_in_child, args=(folder, queue))
    process.start()
    assert queue.get(timeout=300) == len(DATA)
    process.join(20)
    assert process.exitcode == 0


class Answered(Exception):  # noqa: N818
    def __init__(self, status):
        super().__init__(f"status {status}")
        self.status = status


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        *((error, True) for error in (TimeoutError(), ConnectionResetError(), EOFError(), OSError("no such host"))),
        *((error, False) for error in (FileNotFoundError(), PermissionError(), ValueError(), KeyError())),
        (OSError(28, "No space left on device"), False),
        *((Answered(status), True) for status in (500, 502, 503, 504, 408, 429)),
        *((Answered(status), False) for status in (301, 400, 401, 403, 404, 412, 416)),
    ],
)
def test_only_what_another_try_may_mend_is_tried_again(error, expected):
    assert is_transient(error) is expected


def test_waits_grow_up_to_a_bound(monkeypatch):
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)

    def fail():
        raise TimeoutError

    with pytest.raises(OSError, match="u://x: could not be reached in 8 tries: TimeoutError"):
        Retry(tries=8).call("u://x", fail)
    assert waits == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0]


@pytest.fixture
def files(tmp_path):
    (tmp_path / "web" / "set").mkdir(parents=True)
    (tmp_path / "web" / "set" / "data").write_bytes(DATA)
    return tmp_path / "web"


@pytest.mark.parametrize("knows_ranges", [True, False])
@pytest.mark.parametrize("num_there", [0, 5000])
def test_a_file_of_a_web_server_is_fetched_once(files, tmp_path, knows_ranges, num_there, monkeypatch):
    """num_there: bytes that had arrived before."""
    monkeypatch.setattr(fdt_pipeline.storage.cache, "BLOCK_BYTES", 5000)
    blocks = ["bytes=0-4999", "bytes=5000-9999", "bytes=10000-14999", "bytes=15000-19999", "bytes=20000-20479"]
    with web_server(files, knows_ranges) as web:
        wanted = Entry(RemoteFolder(f"{web.url}/set", QUICK), "data", len(DATA), hashlib.sha256(DATA).hexdigest())
        (tmp_path / f"{wanted.sha256}.{len(DATA)}.part").write_bytes(DATA[:num_there])
        with Cache(tmp_path).leased(wanted) as path:
            assert path.read_bytes() == DATA
        left = blocks[num_there // 5000 :]
        assert web.gets("data") == (left if knows_ranges else left[:1])


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_an_open_file_of_a_web_server_is_read_in_ranges(files, knows_ranges, monkeypatch):
    monkeypatch.setattr("fdt_pipeline.storage.remote.BLOCK_BYTES", 5000)
    with web_server(files, knows_ranges) as web, RemoteFolder(f"{web.url}/set", QUICK).open("data") as file:
        assert file.read(7) + file.read(6000) + file.read() == DATA
        assert len(web.gets("data")) == (4 if knows_ranges else 1)
        file.seek(300)
        assert file.read(5) == DATA[300:305]


def test_a_web_server_that_fails_is_not_one_without_the_file(files):
    with web_server(files) as web:
        folder = RemoteFolder(f"{web.url}/set", QUICK)
        assert folder.size("nothing") is None
        web.put_in(Fault(method="", status=503), times=4)
        assert folder.size("data") == len(DATA)
        web.put_in(Fault(method="", status=500), times=3)
        assert folder.read("data") == DATA
        web.put_in(Fault(method="", status=503))
        with pytest.raises(OSError, match=rf"^{folder.url}/data: could not be reached in 4 tries: 503"):
            folder.size("data")
        web.reset()
        web.put_in(Fault(method="", status=403))
        for use in (folder.size, folder.read):
            with pytest.raises(PermissionError, match=rf"^{folder.url}/data: no access \(403"):
                use("data")
    with pytest.raises(OSError, match=rf"^{folder.url}/data: could not be reached in 4 tries"):
        folder.size("data")


def test_a_web_server_that_does_not_say_sizes_can_be_read(files):
    with web_server(files, says_sizes=False) as web:
        folder = RemoteFolder(f"{web.url}/set", QUICK)
        assert (folder.size("data"), folder.read("data"), folder.size("nothing")) == (len(DATA), DATA, None)


def test_a_web_server_that_hangs_is_given_up(files, monkeypatch):
    monkeypatch.setattr("fdt_pipeline.storage.remote.READ_SECONDS", 0.3)
    with web_server(files) as web:
        web.put_in(Fault(delay=1))
        with pytest.raises(OSError, match="could not be reached in 2 tries"):
            RemoteFolder(f"{web.url}/set", Retry(2, 0.01, 0.01)).read("data")
