"""What a client of the chat completions API may ask, checked field by field. Knows JSON, and no HTTP."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from memgrid.errors import InvalidError
from memgrid.serving.sampling import TOKENS_MAX, Settings

MESSAGES_MAX = 1000


class RequestError(InvalidError):
    """A request that can't be answered; `param` is the field, where one is to blame."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class _Part(BaseModel):
    """What this API ignores in others' requests is ignored, and what would change the answer is refused."""

    model_config = ConfigDict(extra="ignore", strict=True)


class TextPart(_Part):
    type: Literal["text"]
    text: str


class Message(_Part):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

    def as_turn(self) -> dict[str, str]:
        """`developer` is the newer name of `system`."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class StreamOptions(_Part):
    include_usage: bool = False


class ResponseFormat(_Part):
    type: Literal["text"]


Stop = Annotated[list[Annotated[str, Field(min_length=1, max_length=200)]], Field(max_length=4)]


class ChatRequest(_Part):
    """The fields of `POST /v1/chat/completions` that mean something here."""

    model: str = Field(max_length=2000)
    messages: list[Message] = Field(min_length=1, max_length=MESSAGES_MAX)
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    stop: Annotated[str, Field(min_length=1, max_length=200)] | Stop | None = None
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    n: Literal[1] | None = None
    logprobs: Literal[False] | None = None
    presence_penalty: float | None = Field(default=None, ge=0, le=0)
    frequency_penalty: float | None = Field(default=None, ge=0, le=0)
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None

    def turns(self) -> list[dict[str, str]]:
        return [message.as_turn() for message in self.messages]

    def settings(self) -> Settings:
        """Temperature is 0 when left out: small models answer best with what they find likeliest."""
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return Settings(
            max_tokens=self.max_completion_tokens or self.max_tokens or TOKENS_MAX,
            temperature=self.temperature or 0.0,
            top_p=1.0 if self.top_p is None else self.top_p,
            seed=self.seed,
            stop=stop,
        )


def parse_request(body: bytes) -> ChatRequest:
    """A request from outside; raises RequestError naming the first field that is wrong.

    >>> parse_request(b'{"model": "m", "messages": [{"role": "user", "content": "Hi"}]}').turns()
    [{'role': 'user', 'content': 'Hi'}]
    """
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body is not JSON: {str(error)[:120]}") from None
    if not isinstance(value, dict):
        raise RequestError("the body is no JSON object")
    try:
        return ChatRequest.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        # Where several forms are allowed, pydantic names each; the field itself is what people look for.
        where = ".".join(str(step) for step in first["loc"] if not str(step).startswith(("list[", "constrained")))
        raise RequestError(f"{where}: {first['msg']}", where.partition(".")[0]) from None
