"""An S3 store (moto's) and a web server of files on this machine, behind a front that can be told to fail."""

import http.client
import logging
import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from unittest import mock
from urllib.parse import unquote
from urllib.request import Request, urlopen


@dataclass
class Fault:
    """What is done to the answers to requests of `method` (any if "") for paths with this ending.

    span: how their Range header begins. status: said in place of the answer, though the server has done what was asked
    for. cut: bytes of the body after which the connection ends; reset: it is torn down then, or before anything is said
    if there is no cut. flip: a bit of the body changes, as on a bad cable. delay: seconds before anything is said.
    times: how many answers.
    """

    ending: str = ""
    method: str = "GET"
    span: str = ""
    status: int | None = None
    cut: int | None = None
    reset: bool = False
    flip: bool = False
    delay: float = 0
    times: int = 10**9

    def meets(self, method, path, span, body):
        """An answer that is too short to be broken is not met."""
        least = 1 if self.flip else 0 if self.cut is None or self.reset else self.cut + 1
        is_asked = self.method in ("", method) and path.endswith(self.ending) and span.startswith(self.span)
        return self.times > 0 and is_asked and len(body) >= least


@dataclass
class Front:
    """answer: (method, path, headers, body) of a request -> (status, headers, body) before any fault.

    says_sizes: whether answers have a Content-Length. closes: the connection, after each answer. requests: (method,
    path, range) of each request so far.
    """

    answer: Callable
    says_sizes: bool = True
    closes: bool = False
    url: str = ""
    requests: list = field(default_factory=list)
    faults: list = field(default_factory=list)

    def put_in(self, fault, times=10**9):
        """Put the fault into the next `times` answers that it meets."""
        self.faults.append(replace(fault, times=times))

    def reset(self):
        self.requests.clear()
        self.faults.clear()

    def gets(self, ending):
        """The ranges of the requests for files of such a name."""
        return [span for method, path, span in self.requests if method == "GET" and path.split("?")[0].endswith(ending)]

    def fault(self, method, path, span, body):
        """The first fault that meets the request, counted down; one that does nothing if none does."""
        for fault in self.faults:
            if fault.meets(method, path, span, body):
                fault.times -= 1
                return fault
        return Fault()

    @contextmanager
    def running(self):
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, self))
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


@contextmanager
def web_server(folder, knows_ranges=True, says_sizes=True, lists=False):
    """lists: it answers requests for folders with links to what lies there."""

    def answer(method, path, headers, body):
        file = folder / unquote(path.strip("/"))
        if lists and file.is_dir():
            links = [f'<a href="{below.name}{"/" * below.is_dir()}">x</a>' for below in sorted(file.iterdir())]
            return 200, [("Content-Type", "text/html")], "".join(links).encode()
        if not file.is_file():
            return 404, [], b""
        data, changed = file.read_bytes(), [("Last-Modified", formatdate(file.stat().st_mtime, usegmt=True))]
        if not knows_ranges or "Range" not in headers:
            return 200, changed, data
        begin, _, end = headers["Range"].removeprefix("bytes=").partition("-")
        return 206, changed, data[int(begin) : int(end or len(data)) + 1]

    with Front(answer, says_sizes, closes=True).running() as web:
        yield web


@contextmanager
def object_store():
    """s3:// means the store, in this process and in those that it starts; it has one bucket, called bucket."""
    from moto.server import ThreadedMotoServer
    from s3fs import S3FileSystem

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it logs every request
    store = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    store.start()
    port = store.get_host_and_port()[1]
    # Of what an earlier store of this process held: moto keeps it in its module.
    urlopen(Request(f"http://127.0.0.1:{port}/moto-api/reset", method="POST")).close()

    def answer(method, path, headers, body):
        with closing(http.client.HTTPConnection("127.0.0.1", port)) as connection:
            passed_on = {name: value for name, value in headers.items() if name.lower() != "connection"}
            connection.request(method, path, body, passed_on)
            response = connection.getresponse()
            return response.status, response.getheaders(), response.read()

    with Front(answer).running() as front:
        environment = {
            "AWS_ACCESS_KEY_ID": "nobody",
            "AWS_SECRET_ACCESS_KEY": "nothing",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": front.url,
        }
        S3FileSystem.clear_instance_cache()  # which knows the endpoint of the store before
        with mock.patch.dict(os.environ, environment):
            S3FileSystem().mkdir("bucket")
            yield front
    store.stop()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, front, *arguments):
        self.front = front
        super().__init__(*arguments)

    def log_message(self, *_):
        """Silent."""

    def handle(self):
        with suppress(ConnectionError):  # a client that has waited long enough
            super().handle()

    def answer(self):
        request = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path, span = self.path.split("?")[0], self.headers.get("Range") or ""
        self.front.requests.append((self.command, self.path, span))
        status, headers, body = self.front.answer(self.command, self.path, self.headers, request)
        fault = self.front.fault(self.command, path, span, body)
        if fault.status is not None:
            status, headers, body = fault.status, [], b"<Error><Code>SlowDown</Code></Error>"
        if fault.flip:
            body = bytes([body[0] ^ 1]) + body[1:]
        time.sleep(fault.delay)
        if not fault.reset or fault.cut is not None:
            self._say(status, headers, body, fault.cut)
        if fault.reset:
            self._tear_down()

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = answer  # noqa: N815

    def _say(self, status, headers, body, cut):
        self.send_response_only(status)
        length = str(len(body))
        for name, value in headers:
            if name.lower() == "content-length" and self.command == "HEAD":
                length = value
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        if self.front.says_sizes:
            self.send_header("Content-Length", length)
        if self.front.closes:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:cut])
            self.close_connection = self.close_connection or cut is not None

    def _tear_down(self):
        """Closed without lingering, a connection is not ended but reset."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.rfile.close()
        self.connection.close()
        self.close_connection = True
