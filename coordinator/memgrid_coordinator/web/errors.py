"""Every error leaves as an HTTP status and the JSON that OCI clients read; here only."""

from __future__ import annotations

from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler

from memgrid.errors import ErrorCode, MemgridError
from memgrid.log import get_logger
from memgrid_coordinator.services.admission import RefusedUpload
from memgrid_coordinator.services.uploads import OutOfOrderError
from memgrid_coordinator.web.identity import challenge
from memgrid_coordinator.web.requests import OciError, Resource, resource_of, upload_headers

log = get_logger(__name__)

_STATUS: dict[ErrorCode, int] = {
    ErrorCode.INVALID: 400,
    ErrorCode.AMBIGUOUS_ID: 400,
    ErrorCode.DIGEST_MISMATCH: 400,
    ErrorCode.DOES_NOT_FIT: 400,
    ErrorCode.NOT_VERIFIED: 400,
    ErrorCode.TOKEN_REQUIRED: 401,
    ErrorCode.TOKEN_EXPIRED: 401,
    ErrorCode.BAD_SIGNATURE: 401,
    ErrorCode.BAD_CHALLENGE: 401,
    ErrorCode.NOT_ALLOWED: 403,
    ErrorCode.INVITE_REQUIRED: 403,
    ErrorCode.SESSION_REPLACED: 403,
    ErrorCode.UNKNOWN_ID: 404,
    ErrorCode.UNKNOWN_CUBE: 404,
    ErrorCode.UNKNOWN_MODEL: 404,
    ErrorCode.UNKNOWN_SOURCE: 404,
    ErrorCode.UNKNOWN_CAMPAIGN: 404,
    ErrorCode.UNKNOWN_HOST: 404,
    ErrorCode.STALE_SEQUENCE: 409,
    ErrorCode.TOO_LARGE: 413,
    ErrorCode.UNAVAILABLE: 503,
    ErrorCode.DRAINING: 503,
}
_RETRY_AFTER_S = "2"

_INVALID: dict[Resource, str] = {
    Resource.BLOB: "DIGEST_INVALID",
    Resource.UPLOAD: "BLOB_UPLOAD_INVALID",
    Resource.MANIFEST: "MANIFEST_INVALID",
}
_UNKNOWN: dict[Resource, str] = {
    Resource.BLOB: "BLOB_UNKNOWN",
    Resource.UPLOAD: "BLOB_UPLOAD_UNKNOWN",
    Resource.MANIFEST: "MANIFEST_UNKNOWN",
    Resource.NAME: "NAME_UNKNOWN",
}
_OCI_CODE: dict[int, str] = {
    401: "UNAUTHORIZED",
    403: "DENIED",
    413: "SIZE_INVALID",
    429: "TOOMANYREQUESTS",
    503: "TOOMANYREQUESTS",
}


@web.middleware
async def errors_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn whatever a handler raised into an answer; only what is nobody's fault but ours is logged with a trace."""
    try:
        return await handler(request)
    except RefusedUpload as refused:
        return _answer(request, refused.error, reason=refused.reason.code)
    except MemgridError as error:
        return _answer(request, error)
    except OciError as error:
        return _response(error.status, error.code, str(error), headers=error.headers)
    except web.HTTPRequestEntityTooLarge:
        return _response(413, "SIZE_INVALID", "the body is too large")
    except web.HTTPRedirection:
        raise  # no error: a browser is sent on
    except web.HTTPException as error:
        allowed = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
        code = "NAME_UNKNOWN" if error.status == 404 else "UNSUPPORTED"
        return _response(error.status, code, error.reason, headers=allowed)
    except (ConnectionError, web.RequestPayloadError):
        # The other side has gone: nobody reads this answer, and it is no fault of ours.
        return _response(400, "BLOB_UPLOAD_INVALID", "the connection broke")
    except Exception:  # the top of every request
        log.exception("request failed", method=request.method, path=request.path)
        return _response(500, "UNKNOWN", "internal error")


def _answer(request: web.Request, error: MemgridError, **detail: str) -> web.Response:
    status = _STATUS.get(error.code, 500)
    headers: dict[str, str] = {}
    if isinstance(error, OutOfOrderError):
        status, headers = 416, upload_headers(error.progress)
    elif status == 401:
        headers = challenge(request)
    elif status == 503:
        headers = {"Retry-After": _RETRY_AFTER_S}
    elif status == 500:
        log.error("request failed", method=request.method, path=request.path, error=str(error))
    code = _oci_code(request, error, status)
    return _response(status, code, str(error), {"memgrid": error.code.value, **detail}, headers)


def _oci_code(request: web.Request, error: MemgridError, status: int) -> str:
    resource = resource_of(request)
    if error.code is ErrorCode.DIGEST_MISMATCH:
        return "DIGEST_INVALID"
    if status == 404 and resource is Resource.MANIFEST and request.method == "PUT":
        return "MANIFEST_BLOB_UNKNOWN"
    if status in (400, 416):
        return _INVALID.get(resource, "UNSUPPORTED")
    if status == 404:
        return _UNKNOWN.get(resource, "NAME_UNKNOWN")
    return _OCI_CODE.get(status, "UNKNOWN")


def _response(
    status: int,
    code: str,
    message: str,
    detail: dict[str, Any] | None = None,
    headers: dict[str, str] | None = None,
) -> web.Response:
    entry = {"code": code, "message": message, **({"detail": detail} if detail else {})}
    return web.json_response({"errors": [entry]}, status=status, headers=headers)
