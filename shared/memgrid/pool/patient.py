"""HTTP requests that try again what may pass, and raise the grid's own errors for the rest."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import httpx

from memgrid.errors import (
    InternalError,
    InvalidError,
    MemgridError,
    NotAllowedError,
    TokenRequiredError,
    TooLargeError,
    UnavailableError,
    UnknownIdError,
)

Answer = TypeVar("Answer")
_ATTEMPTS = 6
_FIRST_WAIT_S = 0.25
_ERROR_BYTES_MAX = 64 * 1024
_TRY_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
_BY_STATUS: dict[int, type[MemgridError]] = {
    400: InvalidError,
    401: TokenRequiredError,
    403: NotAllowedError,
    404: UnknownIdError,
    413: TooLargeError,
}


class TryAgainError(Exception):
    """The other side has trouble that may pass."""


class PatientClient:
    """An HTTP client of one grid."""

    def __init__(
        self,
        client: httpx.Client,
        *,
        rng: random.Random | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._client = client
        self._rng = rng or random.Random()
        self._sleep = sleep

    @contextmanager
    def stream(
        self,
        method: str,
        path: str,
        headers: dict[str, str] | None = None,
        content: bytes | Iterable[bytes] | None = None,
    ) -> Iterator[httpx.Response]:
        """One request; raises TryAgainError or what the grid answered."""
        follow = method in ("GET", "HEAD")
        with self._client.stream(method, path, headers=headers, content=content, follow_redirects=follow) as response:
            if response.status_code >= 400:
                raise _error_of(response, path)
            yield response

    def read(self, path: str, bytes_max: int, *, accept: str = "*/*") -> bytes:
        """A small answer whole; raises TooLargeError before it is not small any more."""

        def attempt() -> bytes:
            with self.stream("GET", path, {"accept": accept}) as response:
                content = bytearray()
                for block in response.iter_bytes():
                    content += block
                    if len(content) > bytes_max:
                        raise TooLargeError(f"{path}: more than {bytes_max} bytes")
                return bytes(content)

        return self.persist(attempt, path)

    def persist(self, attempt: Callable[[], Answer], what: str, mark: Callable[[], int] = lambda: 0) -> Answer:
        """Try until it works, with longer and longer waits; raises UnavailableError in the end.

        `mark` tells how far things have got: as long as it moves, patience begins anew.
        """
        failures, reached = 0, mark()
        while True:
            try:
                return attempt()
            except (httpx.TransportError, TryAgainError) as error:
                now = mark()
                failures, reached = (1 if now != reached else failures + 1), now
                if failures == _ATTEMPTS:
                    raise UnavailableError(f"{what}: gave up after {_ATTEMPTS} attempts: {error}") from None
                self._sleep(self._rng.uniform(0, _FIRST_WAIT_S * 2**failures))


def _error_of(response: httpx.Response, path: str) -> Exception:
    """The grid's own error when it tells it, else one by HTTP status."""
    message, code = f"{path}: the server answers {response.status_code}", None
    try:
        content = bytearray()
        for block in response.iter_bytes():
            content += block
            if len(content) > _ERROR_BYTES_MAX:
                break
        entry = httpx.Response(200, content=bytes(content)).json()["errors"][0]
        message = str(entry["message"])
        code = entry["detail"]["memgrid"]
    except (ValueError, KeyError, IndexError, TypeError, httpx.StreamError):
        pass  # not our server, or a proxy before it: the status has to do
    if response.status_code in _TRY_AGAIN:
        return TryAgainError(message)
    if isinstance(code, str):
        return MemgridError.of(code, message)
    return _BY_STATUS.get(response.status_code, InternalError)(message)
