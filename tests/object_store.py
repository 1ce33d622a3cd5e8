"""A real S3 API on this machine (moto's server), and a proxy in front of it that has faults put in."""

from __future__ import annotations

import http.client
import logging
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from unittest import mock


@dataclass
class Answer:
    """What the store says; a fault may change it. cut: bytes of the body after which the connection ends; reset: it is
    torn down then, or before anything is said if there is no cut; delay: seconds before anything is said."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    cut: int | None = None
    reset: bool = False
    delay: float = 0


# Takes a request (method, path, range header) and its answer; returns whether it changed the answer, which counts.
Fault = Callable[[str, str, str | None, Answer], bool]


@dataclass
class Proxy:
    port: int
    store_port: int
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    faults: list[tuple[Fault, int]] = field(default_factory=list)

    def put_in(self, fault: Fault, times: int = 10**9) -> None:
        """For the next so many requests that it does something to."""
        self.faults.append((fault, times))

    def reset(self) -> None:
        self.requests.clear()
        self.faults.clear()

    def gets(self, ending: str) -> list[str | None]:
        """The ranges of the requests for files of such a name."""
        return [span for method, path, span in self.requests if method == "GET" and path.split("?")[0].endswith(ending)]

    def apply(self, method: str, path: str, span: str | None, answer: Answer) -> None:
        for place, (fault, times) in enumerate(self.faults):
            if times > 0 and fault(method, path, span, answer):
                self.faults[place] = (fault, times - 1)
                return


def _fault(
    change: Callable[[Answer], None], ending: str, asked: str = "GET", when: Callable[[Answer], bool] = lambda _: True
) -> Fault:
    """A change of the answers to requests of a method for names with an ending."""

    def fault(method: str, path: str, span: str | None, answer: Answer) -> bool:
        is_met = method == asked and path.endswith(ending) and when(answer)
        if is_met:
            change(answer)
        return is_met

    return fault


def answers(status: int, ending: str, asked: str = "GET") -> Fault:
    """The store has done what was asked for by then, as it may have when a gateway fails."""

    def change(answer: Answer) -> None:
        answer.status, answer.headers, answer.body = status, [], b"<Error><Code>SlowDown</Code></Error>"

    return _fault(change, ending, asked)


def hangs(seconds: float, ending: str) -> Fault:
    def change(answer: Answer) -> None:
        answer.delay = seconds

    return _fault(change, ending)


def cuts(num_bytes: int, ending: str) -> Fault:
    """The body ends early, though its length was announced."""

    def change(answer: Answer) -> None:
        answer.cut = num_bytes

    return _fault(change, ending, when=lambda answer: len(answer.body) > num_bytes)


def resets(num_bytes: int | None, ending: str, asked: str = "GET") -> Fault:
    """The connection is torn down after so many bytes of the body, or before anything is said."""

    def change(answer: Answer) -> None:
        answer.cut, answer.reset = num_bytes, True

    return _fault(change, ending, asked)


def flips(ending: str) -> Fault:
    """A bit of the body flips, as on a bad cable."""

    def change(answer: Answer) -> None:
        middle = len(answer.body) // 2
        answer.body = answer.body[:middle] + bytes([answer.body[middle] ^ 1]) + answer.body[middle + 1 :]

    return _fault(change, ending, when=lambda answer: bool(answer.body))


@contextmanager
def object_store() -> Iterator[Proxy]:
    """The store behind the proxy; s3:// means it, in this process and in those that it starts."""
    from moto.server import ThreadedMotoServer
    from s3fs import S3FileSystem

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it logs every request
    store = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    store.start()
    proxy = Proxy(0, store.get_host_and_port()[1])
    _empty(proxy.store_port)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(proxy))
    server.daemon_threads = True
    proxy.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    environment = {
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "nothing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.port}",
    }
    S3FileSystem.clear_instance_cache()  # which knows the endpoint of the store before
    with mock.patch.dict(os.environ, environment):
        yield proxy
    server.shutdown()
    server.server_close()
    thread.join()
    store.stop()


def _empty(port: int) -> None:
    """Of what an earlier store of this process held: moto keeps it in its module."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("POST", "/moto-api/reset")
    assert connection.getresponse().status == 200
    connection.close()


def _handler(proxy: Proxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            """Silent."""

        def handle(self) -> None:
            try:
                super().handle()
            except ConnectionError:  # a client that has waited long enough
                self.close_connection = True

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            span = self.headers.get("Range")
            proxy.requests.append((self.command, self.path, span))
            answer = self._ask(body)
            proxy.apply(self.command, self.path.split("?")[0], span, answer)
            self._pass_on(answer)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = answer  # noqa: N815

        def _ask(self, body: bytes) -> Answer:
            connection = http.client.HTTPConnection("127.0.0.1", proxy.store_port)
            try:
                headers = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
                connection.request(self.command, self.path, body, headers)
                response = connection.getresponse()
                return Answer(response.status, response.getheaders(), response.read())
            finally:
                connection.close()

        def _pass_on(self, answer: Answer) -> None:
            time.sleep(answer.delay)
            if answer.reset and answer.cut is None:
                self._tear_down()
                return
            self.send_response_only(answer.status)
            skipped = {"content-length", "transfer-encoding", "connection"}
            length = str(len(answer.body))
            for name, value in answer.headers:
                if name.lower() == "content-length" and self.command == "HEAD":
                    length = value
                if name.lower() not in skipped:
                    self.send_header(name, value)
            self.send_header("Content-Length", length)
            self.end_headers()
            if self.command == "HEAD":
                return
            self.wfile.write(answer.body[: answer.cut])
            if answer.reset:
                self._tear_down()
            if answer.cut is not None:
                self.close_connection = True

        def _tear_down(self) -> None:
            """Closed without lingering, a connection is not ended but reset."""
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.rfile.close()
            self.connection.close()
            self.close_connection = True

    return Handler
