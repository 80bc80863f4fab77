"""Identity, errors and timing of every gRPC call, once."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import grpc
import grpc.aio

from memgrid.channel import STATUS_BY_CODE, trailing_of
from memgrid.errors import InternalError, MemgridError
from memgrid.log import get_logger
from memgrid_coordinator.metrics import Metrics
from memgrid_coordinator.records import ANONYMOUS, Caller, Role
from memgrid_coordinator.rpc.receiving import MessageLimits, Receiver

log = get_logger(__name__)
_CALLER: ContextVar[Caller] = ContextVar("caller", default=ANONYMOUS)
_OPEN_TO_ALL = frozenset(
    {f"/memgrid.v1.Volunteers/{method}" for method in ("GetChallenge", "Enrol", "LogIn", "AskStanding")}
    | {"/memgrid.v1.Grid/GetLeaderboard", "/grpc.health.v1.Health/Check"}
)
"""Calls that ignore tokens: an expired one must not keep its owner from logging in again."""


def caller() -> Caller:
    """Who makes the call that is being served."""
    return _CALLER.get()


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps every handler: who calls, how long it took, and what went wrong in words the other side knows."""

    def __init__(
        self, identify: Callable[[str | None], Awaitable[Caller]], metrics: Metrics, limits: MessageLimits
    ) -> None:
        self._identify = identify
        self._metrics = metrics
        self._receiver = Receiver(limits)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler = await continuation(handler_call_details)
        if handler is None:
            return handler
        method = handler_call_details.method
        # As calls whose request is a stream: gRPC would read the message of any other before it asked us.
        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(
                self._streaming(method, handler.unary_stream, handler.request_deserializer),
                response_serializer=handler.response_serializer,
            )
        return grpc.stream_unary_rpc_method_handler(
            self._unary(method, handler.unary_unary, handler.request_deserializer),
            response_serializer=handler.response_serializer,
        )

    def _unary(self, method: str, behaviour: Any, parse: Any) -> Any:
        async def serve(_requests: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            async with _Served(self, method, context):
                return await behaviour(await self._message(method, context, parse), context)

        return serve

    def _streaming(self, method: str, behaviour: Any, parse: Any) -> Any:
        async def serve(_requests: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
            async with _Served(self, method, context):
                async for message in behaviour(await self._message(method, context, parse), context):
                    yield message

        return serve

    async def _message(self, method: str, context: grpc.aio.ServicerContext[Any, Any], parse: Any) -> Any:
        is_open = method in _OPEN_TO_ALL or caller().role is Role.ANONYMOUS
        return await self._receiver.receive(context, parse, is_open=is_open)


class _Served:
    """The time and the fate of one call."""

    def __init__(
        self, interceptor: CallInterceptor, method: str, context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        self._interceptor = interceptor
        self._method = method
        self._context = context
        self._started = time.perf_counter()

    async def __aenter__(self) -> None:
        try:
            known = ANONYMOUS
            if self._method not in _OPEN_TO_ALL:
                known = await self._interceptor._identify(_bearer(self._context.invocation_metadata()))
            _CALLER.set(known)
        except MemgridError as error:
            await self._abort(error)

    async def __aexit__(self, _kind: Any, error: BaseException | None, _trace: Any) -> None:
        if error is None:
            self._count("ok")
        elif isinstance(error, MemgridError):
            await self._abort(error)
        elif isinstance(error, Exception) and not isinstance(error, grpc.aio.AbortError):
            log.error("call failed", method=self._method, exc_info=error)
            await self._abort(InternalError("internal error; the coordinator's log says more"))

    async def _abort(self, error: MemgridError) -> None:
        self._count(error.code.value)
        await self._context.abort(STATUS_BY_CODE[error.code], str(error), trailing_metadata=trailing_of(error))

    def _count(self, code: str) -> None:
        seconds = time.perf_counter() - self._started
        self._interceptor._metrics.rpc_s.labels(self._method.rpartition("/")[2], code).observe(seconds)


def _bearer(metadata: Any) -> str | None:
    for key, value in metadata or ():
        if key == "authorization" and isinstance(value, str) and value.startswith("Bearer "):
            return value.removeprefix("Bearer ")
    return None
