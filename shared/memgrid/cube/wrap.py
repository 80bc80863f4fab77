"""From a document to the tokens a cube holds, and from a question to the tokens that follow them.

Whoever plans a cube and whoever asks it must cut text into tokens at the same places: both do it here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from memgrid.cube.identity import tokenizer_digest
from memgrid.cube.manifest import Wrap
from memgrid.digest import Digest, digest_of
from memgrid.errors import InvalidError

ROLES = ("system", "user", "assistant")
_MARK = "memgrid document stands here"


def document_ids(tokenizer: Any, text: str, wrap: Wrap) -> list[int]:
    """The tokens of a document as a cube holds them; raises InvalidError when the template can't hold one.

    With `chat` it is the system message of the tokenizer's chat template, with `plain` the text as the tokenizer
    writes it, special tokens included.
    """
    return ids_of_documents(tokenizer, [text], wrap)[0]


def ids_of_documents(tokenizer: Any, texts: Sequence[str], wrap: Wrap) -> list[list[int]]:
    """The same of many at once: the tokenizer shares them out among the processors."""
    before, after = _around(tokenizer) if wrap is Wrap.CHAT else ("", "")
    encoded = tokenizer(
        [before + text + after for text in texts],
        add_special_tokens=wrap is Wrap.PLAIN,
        # A document longer than the model's context is the planner's business, not a warning.
        verbose=False,
        return_attention_mask=False,
        return_token_type_ids=False,
    )
    return list(encoded["input_ids"])


def turns_of(question: str | Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """A question, or a conversation so far, as the turns of a chat; raises InvalidError for anything else.

    >>> turns_of("When does it open?")
    [{'role': 'user', 'content': 'When does it open?'}]
    """
    given = (
        [{"role": "user", "content": question}] if isinstance(question, str) else [dict(turn) for turn in question]
    )
    for number, turn in enumerate(given, 1):
        if turn.get("role") not in ROLES or not isinstance(turn.get("content"), str):
            raise InvalidError(f"message {number}: expected a role of {', '.join(ROLES)} and content that is text")
        if turn["role"] == "system" and number > 1:
            raise InvalidError(f"message {number}: a system message can only be the first")
    if not given or given[-1]["role"] != "user" or not given[-1]["content"]:
        raise InvalidError("question: expected some text from the user at the end")
    return given


def chat_ids(tokenizer: Any, turns: list[dict[str, str]]) -> list[int]:
    """The tokens of a conversation up to where the answer starts, as adapters saw them when they were trained.

    A base model without a chat template reads lines that begin with `Question:` and `Answer:`.
    """
    if getattr(tokenizer, "chat_template", None):
        return _ids(tokenizer, _render(tokenizer, turns, answer=True), add_special_tokens=False)
    words = {"user": "Question: ", "assistant": "Answer: ", "system": ""}
    lines = [words[turn["role"]] + turn["content"] for turn in turns]
    return _ids(tokenizer, "\n".join([*lines, "Answer:"]), add_special_tokens=True)


def question_ids(tokenizer: Any, question: str | list[dict[str, str]], wrap: Wrap) -> list[int]:
    """The tokens that follow the document: the turns and the start of the answer, or the bare text."""
    turns = turns_of(question)
    if wrap is Wrap.PLAIN:
        return _ids(tokenizer, "\n".join(turn["content"] for turn in turns), add_special_tokens=False)
    if turns[0]["role"] == "system":
        raise InvalidError("message 1: the cube's text is the system message already; leave it out")
    turns = [{"role": "system", "content": _MARK}, *turns]
    document = _render(tokenizer, turns[:1], answer=False)
    whole = _render(tokenizer, turns, answer=True)
    if not whole.startswith(document):
        raise InvalidError("the chat template changes the system message when a question follows; use wrap: plain")
    return _ids(tokenizer, whole[len(document) :], add_special_tokens=False)


def digest_of_tokenizer(tokenizer: Any) -> Digest:
    """What `identity.tokenizer_digest` says of the tokenizer.json this loaded tokenizer came from."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise InvalidError(f"{type(tokenizer).__name__} has no tokenizer.json; load it with AutoTokenizer")
    return _digest_of_json(backend.to_str())


@lru_cache(maxsize=4)
def _digest_of_json(content: str) -> Digest:
    """Remembered: sorting a large vocabulary takes longer than answering many a question."""
    return tokenizer_digest(json.loads(content))


def digest_of_template(tokenizer: Any) -> Digest | None:
    """The digest of a loaded tokenizer's chat template."""
    template = getattr(tokenizer, "chat_template", None)
    return digest_of(template.encode()) if isinstance(template, str) else None


def _around(tokenizer: Any) -> tuple[str, str]:
    """What the chat template writes before and after a system message."""
    rendered = _render(tokenizer, [{"role": "system", "content": _MARK}], answer=False)
    before, found, after = rendered.partition(_MARK)
    if not found or _MARK in after:
        raise InvalidError("the chat template has no place for a system message; use wrap: plain")
    return before, after


def _render(tokenizer: Any, turns: list[dict[str, str]], *, answer: bool) -> str:
    from jinja2.exceptions import TemplateError

    if not getattr(tokenizer, "chat_template", None):
        raise InvalidError("the tokenizer has no chat template; use wrap: plain")
    try:
        rendered = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=answer)
    except TemplateError as error:
        raise InvalidError(f"the chat template refuses a system message ({error}); use wrap: plain") from None
    return str(rendered)


def _ids(tokenizer: Any, text: str, *, add_special_tokens: bool) -> list[int]:
    # verbose=False: a document longer than the model's context is the planner's business, not a warning.
    encoded = tokenizer(text, add_special_tokens=add_special_tokens, verbose=False, return_attention_mask=False)
    return [int(token) for token in encoded["input_ids"]]
