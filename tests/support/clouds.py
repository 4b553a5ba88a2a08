"""Servers in this process that answer as Google's storage and the Hugging Face hub do, for what their clients read.

Both follow the services' documents: Google's JSON API (objects.list, objects.get, media by ranges and generation), and
the hub's tree with pages, its redirections to a store of another host, and its error codes. A folder below ``root`` is
a bucket, or USER/NAME a dataset.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from http_server import Handler, Website, serving

PAGE = 3
"""Entries of a page of a list."""
COMMIT = "c" * 40
LARGE = 1024
"""Bytes from which the hub keeps a file in its store."""


@dataclass
class Cloud(Website):
    """A website that asks for a token, and what was asked of its API."""

    token: str = ""
    """Which each request must bear; "": none."""
    refusals: list[tuple[int, str]] = field(default_factory=list)
    """(status, error code) of the next requests to the API."""
    calls: list[str] = field(default_factory=list)
    """Paths of the requests to the API."""
    bearers: set[str] = field(default_factory=set)
    """Tokens that came with any request."""
    api_stall: float = 0.0
    """Seconds before each answer of the API."""
    store: str = ""
    """Address of the hub's store."""
    epoch: int = 0
    """Part of each address of the store: earlier ones are good no more."""


class _CloudHandler(Handler):
    site: Cloud  # type: ignore[assignment]

    def bearer(self) -> str:
        told = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if told:
            self.site.bearers.add(told)
        return told

    def called(self) -> None:
        self.site.calls.append(self.path)
        time.sleep(self.site.api_stall)

    def answer(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        told = {"Content-Length": str(len(body)), "Content-Type": "application/json", **(headers or {})}
        for name, value in told.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def files_below(self, folder: Path) -> list[Path]:
        return sorted(path for path in folder.rglob("*") if path.is_file())


class _Google(_CloudHandler):
    def do_GET(self) -> None:
        url = urlsplit(self.path)
        parts = url.path.strip("/").split("/")
        asked = {name: values[-1] for name, values in parse_qs(url.query).items()}
        self.called()
        if self.site.refusals and parts[0] == "storage":
            status, says = self.site.refusals.pop(0)
            return self._refuse(status, says)
        if self.bearer() != self.site.token:
            says = "Anonymous caller does not have storage.objects.get access to the Google Cloud Storage object."
            return self._refuse(401, says)
        media = parts[0] == "download"
        bucket, _, rest = "/".join(parts[4 if media else 3 :]).partition("/")
        folder = self.site.root / bucket
        if not bucket or not folder.is_dir():
            return self._refuse(404, "The specified bucket does not exist.")
        if not rest:
            return self.answer({"kind": "storage#bucket", "name": bucket})
        if rest == "o":
            return self._list(folder, asked)
        path = folder / unquote(rest.removeprefix("o/"))
        if not path.is_file() or asked.get("generation", _generation(path)) != _generation(path):
            return self._refuse(404, f"No such object: {bucket}/{path.relative_to(folder)}")
        return self.send_file(path) if media else self.answer(_resource(folder, path))

    def do_POST(self) -> None:
        """The token of an account, for an assertion that it signed."""
        asked = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        if self.path != "/token" or len(asked["assertion"][0].split(".")) != 3:
            return self._refuse(400, "invalid_grant")
        return self.answer({"access_token": self.site.token, "expires_in": 3600, "token_type": "Bearer"})

    def _list(self, folder: Path, asked: dict[str, str]) -> None:
        prefix, delimiter = asked.get("prefix", ""), asked.get("delimiter", "")
        names = [path.relative_to(folder).as_posix() for path in self.files_below(folder)]
        names = [name for name in names if name.startswith(prefix)]
        entries: list[str] = []
        for name in names:
            head, found, _ = name[len(prefix) :].partition(delimiter) if delimiter else (name, "", "")
            entry = prefix + head + "/" if found else name
            if entry not in entries:
                entries.append(entry)
        start = int(asked.get("pageToken", 0))
        end = start + min(PAGE, int(asked.get("maxResults", PAGE)))
        page: dict[str, Any] = {"kind": "storage#objects"}
        for entry in entries[start:end]:
            if entry.endswith("/"):
                page.setdefault("prefixes", []).append(entry)
            else:
                page.setdefault("items", []).append(_resource(folder, folder / entry))
        if end < len(entries):
            page["nextPageToken"] = str(end)
        self.answer(page)

    def _refuse(self, status: int, says: str) -> None:
        self.answer({"error": {"code": status, "message": says, "errors": [{"message": says}]}}, status)


def _generation(path: Path) -> str:
    return str(path.stat().st_mtime_ns)


def _resource(folder: Path, path: Path) -> dict[str, str]:
    content = path.read_bytes()
    when = "2026-01-02T03:04:05.678Z"
    return {
        "kind": "storage#object",
        "name": path.relative_to(folder).as_posix(),
        "bucket": folder.name,
        "size": str(len(content)),
        "etag": base64.b64encode(_generation(path).encode()).decode(),
        "generation": _generation(path),
        "metageneration": "1",
        "md5Hash": base64.b64encode(hashlib.md5(content).digest()).decode(),
        "storageClass": "STANDARD",
        "timeCreated": when,
        "updated": when,
    }


class _Hub(_CloudHandler):
    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        parts = url.path.strip("/").split("/")
        api = parts[0] == "api"
        if parts[1:2] == ["agent-harnesses"]:  # which its client asks for by itself, once a process
            return self._refuse(404, "EntryNotFound")
        if api:
            parts = parts[1:]
            self.called()
        if self.site.refusals:
            return self._refuse(*self.site.refusals.pop(0))
        if self.bearer() != self.site.token and self.site.token:
            return self._refuse(401, "RepoNotFound")
        name, kind, revision = "/".join(parts[1:3]), (parts[3:4] or ["revision"])[0], (parts[4:5] or ["main"])[0]
        folder = self.site.root / name
        if parts[0] != "datasets" or not folder.is_dir():
            return self._refuse(404, "RepoNotFound")
        if unquote(revision) not in ("main", "refs/convert/parquet", COMMIT):
            return self._refuse(404, "RevisionNotFound")
        path = folder / unquote("/".join(parts[5:]))
        if kind == "revision":
            return self.answer({"id": name, "sha": COMMIT, "private": bool(self.site.token), "siblings": []})
        if kind == "tree":
            return self._tree(folder, path, parse_qs(url.query))
        if not path.is_file():
            return self._refuse(404, "EntryNotFound")
        self.site.calls.append(self.path)
        return self._resolve(path)

    def do_POST(self) -> None:
        """paths-info."""
        asked = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.bearer()
        parts = self.path.strip("/").split("/")
        folder = self.site.root / "/".join(parts[2:4])
        found = [folder / path for path in asked["paths"]]
        self.answer([_entry(folder, path) for path in found if path.exists()])

    def _tree(self, folder: Path, path: Path, asked: dict[str, list[str]]) -> None:
        if not path.is_dir():
            return self._refuse(404, "EntryNotFound")
        deep = asked.get("recursive", ["false"])[0].lower() == "true"
        entries = sorted(path.rglob("*") if deep else path.iterdir())
        start = int(asked.get("cursor", ["0"])[0])
        more: dict[str, str] = {}
        if start + PAGE < len(entries):
            url = urlsplit(self.path)
            query = f"recursive={deep}&expand=False&cursor={start + PAGE}"
            more = {"Link": f'<{self.site.address}{url.path}?{query}>; rel="next"'}
        return self.answer([_entry(folder, one) for one in entries[start : start + PAGE]], headers=more)

    def _resolve(self, path: Path) -> None:
        entry = _entry(self.site.root, path)
        if "lfs" not in entry:
            return self.send_file(path)
        self.send_response(302)
        for name, value in {
            "Location": f"{self.site.store}/{self.site.epoch}/{quote(str(path.relative_to(self.site.root)))}",
            "X-Linked-ETag": f'"{entry["lfs"]["oid"]}"',
            "X-Linked-Size": str(entry["size"]),
            "X-Repo-Commit": COMMIT,
            "Content-Length": "0",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        return None

    def describe(self, path: Path, size: int) -> None:
        self.send_header("Content-Length", str(size))
        self.send_header("ETag", f'"{_entry(self.site.root, path)["oid"]}"')
        self.send_header("Last-Modified", formatdate(path.stat().st_mtime, usegmt=True))

    def _refuse(self, status: int, code: str) -> None:
        self.answer({"error": code}, status, {"X-Error-Code": code, "X-Error-Message": "Refused"})


class _Store(_CloudHandler):
    """Of the hub: addresses are signed, and a token is refused."""

    def do_GET(self) -> None:
        epoch, _, name = unquote(self.path).strip("/").partition("/")
        if self.bearer():
            return self.send_error(400)
        if epoch != str(self.site.epoch):
            return self.send_error(403)
        return self.send_file(self.site.root / name)


def _entry(folder: Path, path: Path) -> dict[str, Any]:
    name = path.relative_to(folder).as_posix()
    if path.is_dir():
        return {"type": "directory", "oid": hashlib.sha1(name.encode()).hexdigest(), "size": 0, "path": name}
    content = path.read_bytes()
    entry = {"type": "file", "oid": hashlib.sha1(content).hexdigest(), "size": len(content), "path": name}
    if len(content) >= LARGE:
        oid = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": oid, "size": len(content), "pointerSize": 133}
    return entry


@contextlib.contextmanager
def google_storage(root: Path) -> Iterator[Cloud]:
    """Each folder below ``root`` as a bucket; ``STORAGE_EMULATOR_HOST`` is its ``address``."""
    site = Cloud(root)
    with serving(root, _Google, site):
        yield site


@contextlib.contextmanager
def hub(root: Path) -> Iterator[Cloud]:
    """Each ``root``/USER/NAME as a dataset; ``HF_ENDPOINT`` is its ``address``. Its store shares its failures."""
    site = Cloud(root)
    with serving(root, _Store, site) as store:
        site.store = store.address
        with serving(root, _Hub, site):
            yield site
