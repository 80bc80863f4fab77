"""Fill the templates: everything is escaped, and nothing on a page comes from elsewhere."""

from __future__ import annotations

from typing import Any

from aiohttp import web
from jinja2 import Environment, PackageLoader, StrictUndefined

from memgrid.digest import digest_of
from memgrid.nickname import nickname
from memgrid.text import bytes_text, count_text, flops_text
from memgrid_coordinator.web.pages.assets import Assets
from memgrid_coordinator.web.pages.words import (
    ago_text,
    left_text,
    line_text,
    long_text,
    moment_text,
    reason_text,
    share_text,
    speed_text,
)

_POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Referrer-Policy": "no-referrer",
    # A page may be shown again only after it was asked whether it still holds.
    "Cache-Control": "no-cache",
    "Vary": "Accept-Encoding",
}


class Rendering:
    """All templates, compiled once."""

    def __init__(self, assets: Assets) -> None:
        self._environment = Environment(
            loader=PackageLoader("memgrid_coordinator.web.pages"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        self._environment.globals["asset"] = assets.url
        self._environment.filters.update(
            ago=ago_text,
            bytes=bytes_text,
            count=count_text,
            flops=flops_text,
            left=left_text,
            line=line_text,
            long=long_text,
            moment=moment_text,
            nickname=nickname,
            reason=reason_text,
            share=share_text,
            speed=speed_text,
        )

    def text(self, template: str, **values: Any) -> str:
        return self._environment.get_template(template).render(values)

    def answer(self, request: web.Request, template: str, *, status: int = 200, **values: Any) -> web.Response:
        """A page, or that it has not changed since the browser saw it."""
        content = self.text(template, **values).encode()
        tag = f'W/"{digest_of(content).removeprefix("sha256:")[:32]}"'
        headers = {**_HEADERS, "ETag": tag}
        if status == 200 and tag in request.headers.get("If-None-Match", ""):
            return web.Response(status=304, headers=headers)
        answer = web.Response(status=status, body=content, content_type="text/html", charset="utf-8", headers=headers)
        answer.enable_compression()
        return answer
