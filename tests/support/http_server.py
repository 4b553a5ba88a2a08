"""A web server in this process that serves a folder by ranges, and fails as it is told."""

from __future__ import annotations

import contextlib
import email.utils
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class Website:
    """What is served, how it fails, and what was asked for."""

    root: Path
    address: str = ""
    ranges: bool = True
    matching: bool = True
    """Whether If-Match is heeded."""
    failures: list[int | str] = field(default_factory=list)
    """Of the next GET requests: a status, "cut" (half of the body comes) or "stall" (nothing does)."""
    asked: list[tuple[str, int, int]] = field(default_factory=list)
    """(path, first byte, after the last) of each answered GET."""
    stall: float = 3.0


class Handler(SimpleHTTPRequestHandler):
    """Of a plain web server."""

    protocol_version = "HTTP/1.1"
    # The head and the body are two writes: the second would wait 40 ms for the first to be acknowledged.
    disable_nagle_algorithm = True

    def __init__(self, site: Website, *arguments: object) -> None:
        self.site = site
        super().__init__(*arguments, directory=str(site.root))  # type: ignore[arg-type]

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            return super().do_GET()  # a listing, or 404
        return self.send_file(path)

    def send_file(self, path: Path) -> None:
        """The file or a range of it, unless the next failure is due."""
        failure = self.site.failures.pop(0) if self.site.failures else None
        if isinstance(failure, int):
            return self.send_error(failure)
        if failure == "stall":
            time.sleep(self.site.stall)
        size = path.stat().st_size
        if self.site.matching and self.headers.get("If-Match", _etag(path)) != _etag(path):
            return self.send_error(412)
        start, end = 0, size
        wanted = self.headers.get("Range") if self.site.ranges else None
        if wanted:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last) + 1 if last else size, size)
        self.send_response(206 if wanted else 200)
        self.describe(path, end - start)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        self.end_headers()
        with path.open("rb") as file:
            file.seek(start)
            body = file.read(end - start)
        if failure == "cut":
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
            return None
        self.site.asked.append((self.path, start, end))
        self.wfile.write(body)
        return None

    def do_HEAD(self) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            return super().do_HEAD()
        self.send_response(200)
        self.describe(path, path.stat().st_size)
        self.end_headers()
        return None

    def describe(self, path: Path, size: int) -> None:
        """The headers that go with a file, ``size`` bytes of which come."""
        status = path.stat()
        self.send_header("Content-Length", str(size))
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("ETag", _etag(path))
        self.send_header("Last-Modified", email.utils.formatdate(status.st_mtime, usegmt=True))
        if self.site.ranges:
            self.send_header("Accept-Ranges", "bytes")


def _etag(path: Path) -> str:
    status = path.stat()
    return f'"{status.st_mtime_ns:x}-{status.st_size:x}"'


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Nothing: a client that gave up waiting is no error here."""


@contextlib.contextmanager
def serving(root: Path, handler: type[Handler] = Handler, site: Website | None = None) -> Iterator[Website]:
    """``root`` at ``Website.address`` on this machine, as ``site`` where one is given."""
    site = site or Website(root)
    server = _Server(("127.0.0.1", 0), partial(handler, site))
    site.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
