"""A small web server on loopback that behaves as servers of data sets do: ranges or none, refusals, a login page."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LOGIN = b"<!DOCTYPE html><title>Log in</title>"


class Handler(BaseHTTPRequestHandler):
    """/ranges/x.zip, /whole/x.zip, /shaky/x.zip (every second request breaks off); others by what they are called."""

    archive = b""
    asked = 0

    def do_GET(self) -> None:
        kind = self.path.split("/")[1]
        type(self).asked += 1
        if kind in ("missing", "denied", "busy"):
            self.send_error({"missing": 404, "denied": 403, "busy": 503}[kind])
        elif kind == "private":
            self.send_response(302)
            self.send_header("Location", "/login")
            self.end_headers()
        elif kind in ("login", "folder"):
            self._send(200, LOGIN, "text/html")
        else:
            part = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            if part is None or kind == "whole":
                self._send(200, self.archive, "application/zip")
                return
            first, last = int(part[1]), int(part[2])
            data, content_range = self.archive[first : last + 1], f"bytes {first}-{last}/{len(self.archive)}"
            cut = kind == "shaky" and self.asked % 2 == 0
            self._send(206, data[: len(data) // 2] if cut else data, "application/zip", content_range, len(data))

    def _send(self, status: int, data: bytes, kind: str, part: str = "", n_bytes: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data) if n_bytes is None else n_bytes))
        if part:
            self.send_header("Content-Range", part)
        self.end_headers()
        with suppress(BrokenPipeError, ConnectionResetError):  # the client has seen enough of a whole file
            self.wfile.write(data)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@contextmanager
def web_server(archive: bytes) -> Iterator[str]:
    """The address of a server that has the archive; it ends with the block."""
    handler = type("Handler", (Handler,), {"archive": archive})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
