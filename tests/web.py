"""A web server of files that can be told to fail, and to know ranges or not."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

RESET = 0  # in place of a status: the connection breaks


@dataclass
class Web:
    """statuses: what the next requests are answered with, whatever they ask for; delay: seconds before an answer;
    requests: (method, name, range)."""

    url: str
    knows_ranges: bool
    says_sizes: bool = True
    lists: bool = False
    delay: float = 0
    statuses: list[int] = field(default_factory=list)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)

    def gets(self, name: str) -> list[str | None]:
        return [span for method, asked, span in self.requests if (method, asked) == ("GET", name)]


@contextmanager
def web_server(folder: Path, knows_ranges: bool = True) -> Iterator[Web]:
    web = Web("", knows_ranges)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_handler(web), directory=str(folder)))
    web.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield web
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(web: Web) -> type[SimpleHTTPRequestHandler]:
    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            """Silent."""

        def answer(self) -> None:
            span = self.headers.get("Range")
            web.requests.append((self.command, self.path.rpartition("/")[2], span))
            path = Path(self.translate_path(self.path))
            time.sleep(web.delay)
            if web.statuses:
                self.fail(web.statuses.pop(0))
            elif web.lists and path.is_dir():
                self.copyfile(self.list_directory(str(path)), self.wfile)
            elif not path.is_file():
                self.send_error(404)
            else:
                changed = self.date_time_string(path.stat().st_mtime)
                self.send_file(path.read_bytes(), span if web.knows_ranges else None, changed)

        do_GET = do_HEAD = answer  # noqa: N815

        def fail(self, status: int) -> None:
            if status == RESET:  # closed without lingering, a connection is not ended but reset
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
                raise ConnectionResetError
            self.send_error(status)

        def handle(self) -> None:
            with suppress(ConnectionResetError):
                super().handle()

        def send_file(self, data: bytes, span: str | None, changed: str) -> None:
            if span is not None:
                begin, _, end = span.removeprefix("bytes=").partition("-")
                data = data[int(begin) : int(end or len(data)) + 1]
            self.send_response(200 if span is None else 206)
            self.send_header("Last-Modified", changed)
            if web.says_sizes:
                self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command == "GET":
                with suppress(ConnectionError):  # a client that has waited long enough
                    self.wfile.write(data)

    return Handler
