"""Views as JSON: their own fields, moments as ISO 8601 in UTC."""

from __future__ import annotations

import json
from dataclasses import asdict, is_dataclass
from datetime import datetime, timedelta
from typing import Any

from aiohttp import web


def json_answer(view: Any) -> web.Response:
    """A view as an answer that anybody's script may read."""
    assert is_dataclass(view) and not isinstance(view, type)
    text = json.dumps(asdict(view), default=_plain)
    headers = {"Cache-Control": "no-cache", "Access-Control-Allow-Origin": "*"}
    answer = web.json_response(text=text, headers=headers)
    answer.enable_compression()
    return answer


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    raise TypeError(f"{type(value).__name__} has no place in a view")
