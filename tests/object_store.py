"""A real S3 API on this machine (moto's server), and a proxy in front of it that has faults put in."""

from __future__ import annotations

import http.client
import logging
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from unittest import mock
from urllib.request import Request, urlopen


@dataclass
class Fault:
    """What is done to the answers to requests of `method` for paths with this ending; span begins their Range header.

    status: said in place of the answer, though the store has done what was asked for. cut: bytes of the body after
    which the connection ends; reset: it is torn down then, or before anything is said if there is no cut. flip: a bit
    of the body changes, as on a bad cable. delay: seconds before anything is said. times: how many answers.
    """

    ending: str
    method: str = "GET"
    span: str = ""
    status: int | None = None
    cut: int | None = None
    reset: bool = False
    flip: bool = False
    delay: float = 0
    times: int = 10**9

    def meets(self, method: str, path: str, span: str, body: bytes) -> bool:
        """An answer that is too short to be broken is not met."""
        least = 1 if self.flip else 0 if self.cut is None or self.reset else self.cut + 1
        is_asked = method == self.method and path.endswith(self.ending) and span.startswith(self.span)
        return self.times > 0 and is_asked and len(body) >= least


@dataclass
class Proxy:
    port: int
    store_port: int
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    def put_in(self, fault: Fault, times: int = 10**9) -> None:
        """For the next so many requests that it meets."""
        self.faults.append(replace(fault, times=times))

    def reset(self) -> None:
        self.requests.clear()
        self.faults.clear()

    def gets(self, ending: str) -> list[str]:
        """The ranges of the requests for files of such a name."""
        return [span for method, path, span in self.requests if method == "GET" and path.split("?")[0].endswith(ending)]

    def fault(self, method: str, path: str, span: str, body: bytes) -> Fault:
        """The first that meets the request, which counts; one that does nothing if none does."""
        for fault in self.faults:
            if fault.meets(method, path, span, body):
                fault.times -= 1
                return fault
        return Fault(path)


@contextmanager
def object_store() -> Iterator[Proxy]:
    """The store behind the proxy; s3:// means it, in this process and in those that it starts."""
    from moto.server import ThreadedMotoServer
    from s3fs import S3FileSystem

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it logs every request
    store = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    store.start()
    proxy = Proxy(0, store.get_host_and_port()[1])
    # Of what an earlier store of this process held: moto keeps it in its module.
    urlopen(Request(f"http://127.0.0.1:{proxy.store_port}/moto-api/reset", method="POST")).close()
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
            request = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path, span = self.path.split("?")[0], self.headers.get("Range") or ""
            proxy.requests.append((self.command, self.path, span))
            status, headers, body = self._asked(request)
            fault = proxy.fault(self.command, path, span, body)
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

        def _asked(self, request: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
            """The store's answer."""
            with closing(http.client.HTTPConnection("127.0.0.1", proxy.store_port)) as connection:
                headers = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
                connection.request(self.command, self.path, request, headers)
                response = connection.getresponse()
                return response.status, response.getheaders(), response.read()

        def _say(self, status: int, headers: list[tuple[str, str]], body: bytes, cut: int | None) -> None:
            self.send_response_only(status)
            length = str(len(body))
            for name, value in headers:
                if name.lower() == "content-length" and self.command == "HEAD":
                    length = value
                if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                    self.send_header(name, value)
            self.send_header("Content-Length", length)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body[:cut])
                self.close_connection = self.close_connection or cut is not None

        def _tear_down(self) -> None:
            """Closed without lingering, a connection is not ended but reset."""
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.rfile.close()
            self.connection.close()
            self.close_connection = True

    return Handler
