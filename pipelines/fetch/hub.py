"""Ranges of files on the Hugging Face hub: where a file lies is asked once, and its bytes come from there.

The hub redirects each request to a store of its own, by an address that is good for an hour or so. Its limits count
the requests to the hub, not those to the store.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urljoin, urlsplit

from fastvicreg.pipelines.fetch.systems import OTHER_CONTENT, within

REDIRECTS = frozenset({301, 302, 303, 307, 308})
EXPIRED = frozenset({400, 401, 403, 404, 410})
"""Answers of a store to an address that is good no more."""
MOST_REDIRECTS = 5


class OtherContentError(Exception):
    """The hub has another content under the name."""

    status = OTHER_CONTENT


class HubRanges:
    """Reads ranges; any number of threads may."""

    def __init__(self, system: Any) -> None:
        """``system``: the hub's own, which knows paths and access."""
        from fsspec.implementations.http import HTTPFileSystem

        self._system = system
        self._web = HTTPFileSystem(skip_instance_cache=True)
        self._url: dict[str, str] = {}  # by path: at the hub
        self._store: dict[str, str] = {}  # by path: at its store

    def cat_file(self, path: str, start: int, end: int, *, tag: str = "", timeout: float) -> bytes:
        """These bytes; ``OtherContentError`` where the hub tells another content than ``tag``, and HTTP's errors."""
        from fsspec.asyn import sync

        if path not in self._url:
            self._url[path] = within(timeout, lambda: self._system.url(path))
        range_ = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
        return sync(self._web.loop, self._get, path, range_, tag, timeout=timeout)  # type: ignore[return-value]

    async def _get(self, path: str, range_: dict[str, str], tag: str) -> bytes:
        session = await self._web.set_session()
        if (store := self._store.get(path)) is not None:
            async with session.get(store, headers=range_) as answer:
                if answer.status not in EXPIRED:
                    answer.raise_for_status()
                    return await answer.read()
            self._store.pop(path, None)
        return await self._ask(session, path, range_, tag)

    async def _ask(self, session: Any, path: str, range_: dict[str, str], tag: str) -> bytes:
        """By way of the hub, whose token goes to the hub alone."""
        from huggingface_hub.utils import build_hf_headers  # type: ignore[import-not-found]

        url, hub = self._url[path], urlsplit(self._url[path]).netloc
        access = build_hf_headers()
        for _ in range(MOST_REDIRECTS):
            at_hub = urlsplit(url).netloc == hub
            headers = {**access, **range_} if at_hub else range_
            async with session.get(url, headers=headers, allow_redirects=False) as answer:
                moved = answer.status in REDIRECTS  # with an ETag of its own, maybe
                told = answer.headers.get("X-Linked-ETag") or ("" if moved else answer.headers.get("ETag", ""))
                told = told.removeprefix("W/").strip('"')
                if at_hub and tag and told and told != tag and answer.status < 400:
                    raise OtherContentError(told)
                if not moved:
                    answer.raise_for_status()
                    if not at_hub:
                        self._store[path] = url
                    return await answer.read()
                url = urljoin(url, answer.headers["Location"])
        raise OSError(f"more than {MOST_REDIRECTS} redirections")
