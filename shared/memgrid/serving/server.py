"""An OpenAI-compatible address for a model with cubes: /v1/models and /v1/chat/completions."""

from __future__ import annotations

import asyncio
import hmac
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

from memgrid.errors import DoesNotFitError, InvalidError, MemgridError, UnknownCubeError, UnknownModelError
from memgrid.log import get_logger
from memgrid.serving.answering import Answerer, Finish, TooLongError
from memgrid.serving.choosing import AUTO, Choice, Shelf, split_model
from memgrid.serving.desk import BusyError, Desk
from memgrid.serving.openai_replies import Reply, error_body, event
from memgrid.serving.openai_requests import ChatRequest, RequestError, parse_request

REQUEST_BYTES_MAX = 1 << 20
WAITING_MAX = 8
_RETRY_AFTER_S = 1
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
log = get_logger(__name__)


class Server:
    """One model behind HTTP; `base` is what clients call it."""

    def __init__(
        self,
        base: str,
        answerer: Answerer,
        shelf: Shelf,
        *,
        api_key: str | None = None,
        waiting_max: int = WAITING_MAX,
    ) -> None:
        self._base, self._answerer, self._shelf = base, answerer, shelf
        self._api_key = api_key
        self._desk = Desk(waiting_max)
        self._started_s = int(time.time())

    def app(self) -> web.Application:
        app = web.Application(client_max_size=REQUEST_BYTES_MAX, middlewares=[self._errors, self._doorkeeper])
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/v1/models/{model:.+}", self._model)
        app.router.add_post("/v1/chat/completions", self._chat)
        return app

    async def _models(self, request: web.Request) -> web.Response:
        names = await self._names()
        return web.json_response({"object": "list", "data": [self._listed(name) for name in names]})

    async def _model(self, request: web.Request) -> web.Response:
        name = request.match_info["model"]
        if name not in await self._names():
            raise UnknownModelError(f"the model {name[:200]!r} does not exist; GET /v1/models lists them")
        return web.json_response(self._listed(name))

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        if request.content_type != "application/json":
            # Forms and plain text are what a foreign web page may send here without the browser asking us first.
            raise RequestError(f"expected content type application/json, found {request.content_type}")
        asked = parse_request(await request.read())
        names = split_model(asked.model, self._base)
        async with self._desk.turn(self._work(asked, names)) as results:
            choice = await anext(results)
            # The first piece comes before the first byte goes out: what fails before it is told by a status.
            piece = await anext(results)
            assert isinstance(choice, Choice) and isinstance(piece, str | Finish)
            reply = Reply(
                reply_id=f"chatcmpl-{uuid.uuid4().hex}", created_s=int(time.time()), model=asked.model, choice=choice
            )
            if asked.stream:
                return await self._stream(request, asked, reply, piece, results)
            return await self._whole(reply, piece, results)

    def _work(self, asked: ChatRequest, names: tuple[str, ...]) -> Callable[[Callable[[], bool]], Iterator[Any]]:
        """First the cubes that answer, then pieces of text, then how it ended; runs in a thread."""

        def work(is_cancelled: Callable[[], bool]) -> Iterator[Choice | str | Finish]:
            turns = asked.turns()
            if names == (AUTO,):
                choice = self._shelf.about(turns)
            else:
                choice = Choice(cubes=tuple(self._shelf.named(name) for name in names), why="named in the request")
            yield choice
            yield from self._answerer.answer(turns, choice.cubes, asked.settings(), is_cancelled)

        return work

    async def _whole(self, reply: Reply, piece: str | Finish, rest: AsyncIterator[Any]) -> web.Response:
        pieces: list[str] = []
        while isinstance(piece, str):
            pieces.append(piece)
            piece = await anext(rest)
        return web.json_response(reply.whole("".join(pieces), piece))

    async def _stream(
        self, request: web.Request, asked: ChatRequest, reply: Reply, piece: str | Finish, rest: AsyncIterator[Any]
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
        await response.prepare(request)
        try:
            await response.write(event(reply.first()))
            while isinstance(piece, str):
                await response.write(event(reply.piece(piece)))
                piece = await anext(rest)
            await response.write(event(reply.last(piece)))
            if asked.stream_options is not None and asked.stream_options.include_usage:
                await response.write(event(reply.usage(piece)))
            await response.write(event("[DONE]"))
        except ConnectionError:
            log.info("a client left before its answer ended", reply=reply.reply_id)
        except MemgridError as error:
            await response.write(event(error_body(str(error), "server_error", error.code)))
        return response

    async def _names(self) -> list[str]:
        """The model alone, with whatever fits a question, and with each cube at hand."""
        cubes = await asyncio.to_thread(self._shelf.at_hand)
        named = (f"{self._base}+{cube.manifest.name}:{cube.manifest.version}" for cube in cubes)
        return [self._base, f"{self._base}+{AUTO}", *named]

    def _listed(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._started_s, "owned_by": "memgrid"}

    @web.middleware
    async def _doorkeeper(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        if self._api_key is None:
            # A web page can make its own name mean this machine; without a key, only our names for it are answered.
            if not is_loopback(_host_of(request)):
                return _refusal(403, f"without an API key only this machine is answered, not {request.host[:120]!r}")
            return await handler(request)
        given = request.headers.get("Authorization", "").removeprefix("Bearer ").encode()
        if not hmac.compare_digest(given, self._api_key.encode()):
            return _refusal(401, "the API key is missing or wrong", code="invalid_api_key")
        return await handler(request)

    @web.middleware
    async def _errors(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except web.HTTPException as error:
            return _refusal(error.status, f"{request.method} {request.path}: {error.reason}")
        except MemgridError as error:
            return _told(error)
        except Exception:
            log.exception("this is a bug in memgrid", path=request.path)
            return web.json_response(error_body("internal error; the log says more", "server_error"), status=500)


def is_loopback(host: str) -> bool:
    """Whether a host is this machine by a name that nobody else can take.

    >>> [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "evil.example")]
    [True, True, True, False, False]
    """
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _host_of(request: web.Request) -> str:
    """The host a client asked for, without its port."""
    try:
        return urlsplit(f"//{request.host}").hostname or ""
    except ValueError:
        return ""


def _told(error: MemgridError) -> web.Response:
    match error:
        case BusyError():
            headers = {"Retry-After": str(_RETRY_AFTER_S)}
            body = error_body(str(error), "rate_limit_error", "rate_limit_exceeded")
            return web.json_response(body, status=429, headers=headers)
        case UnknownModelError() | UnknownCubeError():
            return _refusal(404, str(error), code="model_not_found", param="model")
        case TooLongError():
            return _refusal(400, str(error), code="context_length_exceeded", param="messages")
        case RequestError():
            return _refusal(400, str(error), param=error.param)
        case InvalidError() | DoesNotFitError():
            return _refusal(400, str(error), code=error.code)
    log.warning("a question could not be answered", why=str(error))
    return web.json_response(error_body(str(error), "server_error", error.code), status=503)


def _refusal(status: int, message: str, *, code: str | None = None, param: str | None = None) -> web.Response:
    return web.json_response(error_body(message, "invalid_request_error", code, param), status=status)
