"""The file systems behind addresses: how each is opened, how it names a file's content, and why it refused.

fsspec's clients are taken as they are, but for two: Google's repeats by itself what fails, for half a minute and with
tracebacks in the log, and the hub's reads 5 MiB ahead and asks anew where a file lies for each range (``hub``).
"""

from __future__ import annotations

import asyncio
import base64
import functools
from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import Any, TypeVar

from fastvicreg.errors import UserError
from fastvicreg.pipelines.fetch.address import GOOGLE, HUB, WEB

TRANSIENT = frozenset({408, 425, 429})
"""HTTP's answers below 500 that another time may be others."""
OTHER_CONTENT = 412
"""HTTP's answer where the file is not the one of the ETag that was sent along."""
_DENIED = frozenset({401, 403})
_ACCESS = {
    "s3": "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS, or run: gcloud auth application-default login",
    "gcs": "set GOOGLE_APPLICATION_CREDENTIALS, or run: gcloud auth application-default login",
    "hf": "set HF_TOKEN, or run: hf auth login",
}
"""By protocol what gives access to what is not public."""
_HUB_SAYS = {
    "GatedRepoError": "its terms have not been accepted on its page, or HF_TOKEN is another's",
    "RepositoryNotFoundError": "the hub has no such repository, or it is private (set HF_TOKEN, or run: hf auth login)",
    "RevisionNotFoundError": "the repository has no such revision",
    "EntryNotFoundError": "there is no such file",
    "HFValidationError": "that is no name of a repository (hf://datasets/USER/NAME[@REVISION]/PATH)",
}
"""By the error of the hub's client, the special ones first."""
_NO_CREDENTIALS = frozenset({"NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError"})

Result = TypeVar("Result")


def open_system(address: str, timeout: float) -> tuple[Any, str]:
    """(file system, path in it), with what credentials are found within ``timeout`` seconds.

    ``UserError`` where there is no such protocol, its package is missing, or the search takes longer.
    """
    protocol = address.partition("://")[0]
    try:
        import fsspec

        kind = google_client() if protocol in GOOGLE else fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        raise UserError(f"{address}: {error}: pip install 'fastvicreg[remote]'.") from error
    except ValueError as error:
        raise UserError(f"{address}: {error}; give https://, s3://, gs:// or hf://.") from error
    try:
        options = kind._get_kwargs_from_urls(address)
        if protocol in HUB:
            from huggingface_hub import get_token  # type: ignore[import-not-found]

            options["token"] = get_token()  # else a file system of before is given, with what another token was refused
        system = within(timeout, lambda: kind(**options))
    except TimeoutError as error:
        without = "; NO_GCE_CHECK=true looks for none of a Google machine" if protocol in GOOGLE else ""
        raise UserError(f"cannot open {address}: no credentials were found within {timeout:g} s{without}.") from error
    return system, kind._strip_protocol(address)


@functools.cache
def google_client() -> Any:
    """Google's client by the JSON API alone, which asks once: ``Remote`` asks again, and says why it had to.

    The class that the package offers first asks by gRPC, before each range, of what kind the bucket is, where that
    is not allowed.
    """
    from gcsfs.core import GCSFileSystem  # type: ignore[import-not-found]

    request = GCSFileSystem._request
    return type("GoogleStorage", (GCSFileSystem,), {"_request": getattr(request, "__wrapped__", request)})


def within(timeout: float, call: Callable[[], Result]) -> Result:
    """What ``call`` gives; ``TimeoutError`` after ``timeout`` seconds, when it is left to itself."""
    future: Future[Result] = Future()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # handed to whoever waits
            future.set_exception(error)

    Thread(target=work, name="fastvicreg-remote", daemon=True).start()
    return future.result(timeout)


def content_tag(protocol: str, info: dict[str, Any]) -> str:
    """What stands for the very bytes of a file and can be sent along with a request for them; "" where there is none.

    A web server's strong ETag, Google's generation, and the hub's ETag, which is the SHA-256 of large files.
    """
    if protocol in WEB:
        told = str(info.get("ETag") or "")
        return told if told.startswith('"') else ""
    if protocol in GOOGLE:
        return str(info.get("generation") or "")
    if protocol in HUB:
        return _large(info) or str(info.get("blob_id") or "")
    return ""


def pinned(protocol: str, tag: str) -> dict[str, Any]:
    """The arguments of ``cat_file`` with which no bytes of another content come."""
    if protocol in WEB:
        return {"headers": {"If-Match": tag}}
    return {"generation": tag} if protocol in GOOGLE else {"tag": tag}


def tells_of_other_content(protocol: str, error: BaseException) -> bool:
    """Whether a pinned request failed as there is no such content any more."""
    return _status(error) == OTHER_CONTENT or (protocol in GOOGLE and isinstance(error, FileNotFoundError))


def checksum(info: dict[str, Any], etag: str) -> tuple[str, str] | None:
    """What the other side says of the whole content: the hub's SHA-256, Google's MD5, S3's ETag of one part."""
    if sha256 := _large(info):
        return "sha256", sha256
    if isinstance(info.get("md5Hash"), str):
        return "md5", base64.b64decode(info["md5Hash"]).hex()
    whole = "StorageClass" in info and len(etag) == 32 and set(etag) <= set("0123456789abcdef")
    return ("md5", etag) if whole else None


def reason(protocol: str, error: BaseException, timeout: float) -> tuple[str, bool]:
    """(what went wrong, whether trying again would not help)."""
    cause = error.__cause__ or error
    for name in (kind.__name__ for kind in type(cause).__mro__):
        if name in _HUB_SAYS:
            return _HUB_SAYS[name], True
        if name in _NO_CREDENTIALS:
            return _denied(protocol, f"there are no credentials ({_line(cause)})"), True
    status = _status(error)
    if status >= 400:
        message = "" if hasattr(cause, "response") else getattr(error, "message", "") or getattr(cause, "message", "")
        says = f"the server answers {status} {_line(message).removesuffix(f', {status}').rstrip('.')}".strip()
        final = status < 500 and status not in TRANSIENT and not getattr(cause, "retryable", False)
        return (_denied(protocol, says) if status in _DENIED else says), final
    if isinstance(error, TimeoutError | asyncio.TimeoutError) or "Timeout" in type(error).__name__:
        return f"nothing came for {timeout:g} s", False
    if isinstance(error, PermissionError):
        return _denied(protocol, f"access is denied ({_line(error)})"), True
    if isinstance(error, FileNotFoundError) and not _unreachable(cause):
        return "there is no such file", True
    final = isinstance(error, NotImplementedError | ImportError | ValueError)
    if protocol in HUB and isinstance(error, ValueError):
        return f"{_line(cause)} (hf://datasets/USER/NAME[@REVISION]/PATH)", True
    return _line(cause) or type(cause).__name__, final


def _denied(protocol: str, says: str) -> str:
    return f"{says}: {_ACCESS[protocol]}" if protocol in _ACCESS else says


def _status(error: BaseException) -> int:
    """The answer of HTTP that an error tells of, in the words of aiohttp, gcsfs, or the hub's client; else 0."""
    for one in (error.__cause__ or error, error):
        found = getattr(one, "status", getattr(getattr(one, "response", None), "status_code", 0))
        if type(one).__module__.startswith("gcsfs"):
            found = getattr(one, "code", 0)
        if isinstance(found, int) and found:
            return found
        if isinstance(one, OSError) and str(one).startswith("Forbidden:"):  # gcsfs of 403
            return 403
    return 0


def _line(message: object) -> str:
    return " ".join(str(message).split())


def _large(info: dict[str, Any]) -> str:
    """The SHA-256 of a large file of the hub."""
    large = info.get("lfs")
    sha256 = large.get("sha256") if isinstance(large, dict) else getattr(large, "sha256", None)
    return sha256 if isinstance(sha256, str) else ""


def _unreachable(cause: BaseException) -> bool:
    """Whether a file that was not found may be there, but the connection is not: fsspec's web client says no more."""
    other = isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError)
    return other or type(cause).__module__.startswith("aiohttp")
