"""What a client of the chat completions API is told: whole answers, pieces of them, and errors. No HTTP."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from memgrid.serving.answering import Finish
from memgrid.serving.choosing import Choice


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One answer's name and address; every piece of it carries them."""

    reply_id: str
    created_s: int
    model: str
    choice: Choice

    def whole(self, text: str, finish: Finish) -> dict[str, Any]:
        """A `chat.completion`."""
        message = {"role": "assistant", "content": text, "refusal": None}
        ended = {"index": 0, "message": message, "finish_reason": finish.reason, "logprobs": None}
        return {**self._head("chat.completion"), "choices": [ended], "usage": usage(finish), **self._cubes()}

    def first(self) -> dict[str, Any]:
        """The chunk that opens a stream, with the cubes that answer."""
        return {**self._chunk({"role": "assistant", "content": ""}, None), **self._cubes()}

    def piece(self, text: str) -> dict[str, Any]:
        return self._chunk({"content": text}, None)

    def last(self, finish: Finish) -> dict[str, Any]:
        return self._chunk({}, finish.reason)

    def usage(self, finish: Finish) -> dict[str, Any]:
        """The chunk behind the last, for who asked for it."""
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": usage(finish)}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.reply_id, "object": kind, "created": self.created_s, "model": self.model}

    def _chunk(self, delta: dict[str, str], reason: str | None) -> dict[str, Any]:
        piece = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
        return {**self._head("chat.completion.chunk"), "choices": [piece]}

    def _cubes(self) -> dict[str, Any]:
        """Beyond the API: which cubes answered, and why these."""
        used = [
            {"name": cube.manifest.name, "version": cube.manifest.version, "digest": cube.digest}
            for cube in self.choice.cubes
        ]
        return {"memgrid": {"cubes": used, "why": self.choice.why}}


def usage(finish: Finish) -> dict[str, Any]:
    """Tokens as the API counts them; a cube's positions are part of the prompt, and cached."""
    return {
        "prompt_tokens": finish.prompt_tokens,
        "completion_tokens": finish.answer_tokens,
        "total_tokens": finish.prompt_tokens + finish.answer_tokens,
        "prompt_tokens_details": {"cached_tokens": finish.cached_tokens},
    }


def error_body(message: str, kind: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def event(value: dict[str, Any] | str) -> bytes:
    """A server-sent event.

    >>> event("[DONE]")
    b'data: [DONE]\\n\\n'
    """
    content = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return f"data: {content}\n\n".encode()
