"""The tokens that stand around questions and answers, so that computing needs no tokenizer."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from memgrid.digest import Digest, canonical_json, parse_digest
from memgrid.errors import InvalidError
from memgrid.kinds.asks import ASK, LEAD, every_opening

Ids = tuple[int, ...]
FRAME_FILE = "frame.json"
FRAME_BYTES_MAX = 1 << 20
_MARK = "memgrid question stands here"
_REPLY = "memgrid reply stands here"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatFrame:
    """A chat template taken apart.

    The teacher reads `context (a unit's tokens) + teacher_before + question + teacher_after + answer`, the student
    `student_before + question + student_after + answer`: what the template makes of the same turn when no
    document was ever mentioned, so that an adapter serves in ordinary chats. Bot A reads `context + asks[i]` and
    writes a question that begins with `openings[i]`; both end with one of `stops`, a question also with one of
    `question_stops`.
    """

    tokenizer: Digest
    """Of the tokenizer the ids are of."""
    vocab: int
    asks: tuple[Ids, ...]
    """Seed prompts; five families of questions, several phrasings each, follow from them and their openings."""
    teacher_before: Ids
    teacher_after: Ids
    student_before: Ids
    student_after: Ids
    stops: Ids
    openings: tuple[Ids, ...] = ()
    """The first tokens of the question that each seed prompt asks for; none when empty."""
    question_stops: Ids = ()

    def opening(self, ask: int) -> Ids:
        return self.openings[ask] if self.openings else ()

    def to_bytes(self) -> bytes:
        return canonical_json({"format": "memgrid.frame.v1", **asdict(self)})

    @staticmethod
    def from_bytes(content: bytes) -> ChatFrame:
        """Parse a frame; raises InvalidError naming the field."""
        if len(content) > FRAME_BYTES_MAX:
            raise InvalidError(f"{FRAME_FILE}: {len(content)} bytes, at most {FRAME_BYTES_MAX} are allowed")
        try:
            value = json.loads(content)
            if value.pop("format") != "memgrid.frame.v1":
                raise InvalidError(f"{FRAME_FILE}: expected format memgrid.frame.v1")
            asks, openings = (tuple(_ids(ids) for ids in value.pop(name)) for name in ("asks", "openings"))
            tokenizer, vocab = parse_digest(str(value.pop("tokenizer"))), int(value.pop("vocab"))
            frame = ChatFrame(
                tokenizer=tokenizer,
                vocab=vocab,
                asks=asks,
                openings=openings,
                **{name: _ids(ids) for name, ids in value.items()},
            )
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise InvalidError(f"{FRAME_FILE}: {type(error).__name__}: {error}"[:300]) from None
        every = [*asks, *openings, frame.teacher_before, frame.teacher_after, frame.student_before]
        every += [frame.student_after, frame.stops, frame.question_stops]
        if not 0 < vocab < 1 << 31:
            raise InvalidError(f"{FRAME_FILE}: expected a vocabulary, found {vocab}")
        if not frame.stops or not all(0 <= token < vocab for ids in every for token in ids):
            raise InvalidError(f"{FRAME_FILE}: expected tokens below {vocab}, and one at least that stops")
        if not asks or not all(asks) or len(openings) not in (0, len(asks)):
            raise InvalidError(f"{FRAME_FILE}: expected seed prompts, and an opening for each or none at all")
        return frame


def build_frame(tokenizer: Any) -> ChatFrame:
    """The frame of a loaded tokenizer (transformers); raises InvalidError when its template can't be taken apart.

    With a chat template, the student's prompt is what the template makes of one user's message, its own default
    system message included. Where the template has a place for a system message, the teacher has the document
    there; where it has none, the document stands as bare text before the conversation. A base model without a
    template gets lines that begin with `Question:` and `Answer:`, and a line's end stops both.
    """
    from memgrid.cube.wrap import digest_of_tokenizer  # the rest of this file should stay light

    parts = _chat_parts(tokenizer) if getattr(tokenizer, "chat_template", None) else _plain_parts(tokenizer)
    if not parts.stops:
        raise InvalidError("the tokenizer has no token that ends a text")
    return ChatFrame(
        tokenizer=digest_of_tokenizer(tokenizer),
        vocab=len(tokenizer),
        asks=(_encode(tokenizer, parts.ask_before + ASK + parts.ask_after),) * len(every_opening()),
        openings=tuple(_encode(tokenizer, words) for words in every_opening()),
        teacher_before=_encode(tokenizer, parts.teacher_before),
        teacher_after=_encode(tokenizer, parts.after),
        student_before=_encode(tokenizer, parts.student_before),
        student_after=_encode(tokenizer, parts.after),
        stops=tuple(sorted(parts.stops)),
        question_stops=_line_ends(tokenizer),
    )


def context_ids(tokenizer: Any, text: str) -> list[int]:
    """A text as conversations about it begin: in the system message where the template has one, else bare.

    What the frame's `teacher_before` continues.
    """
    from memgrid.cube.manifest import Wrap
    from memgrid.cube.wrap import document_ids

    return document_ids(tokenizer, text, Wrap.CHAT if _has_system(tokenizer) else Wrap.PLAIN)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """The same as text: what stands around a seed prompt, and around a question."""

    ask_before: str
    ask_after: str
    teacher_before: str
    student_before: str
    after: str
    stops: frozenset[int]


def _chat_parts(tokenizer: Any) -> _Parts:
    user = {"role": "user", "content": _MARK}
    student_before, after = _cut(_render(tokenizer, [user], answer=True), _MARK)
    if _has_system(tokenizer):
        turns = [{"role": "system", "content": _REPLY}]
        document = _render(tokenizer, turns, answer=False)
        whole = _render(tokenizer, [*turns, user], answer=True)
        if not whole.startswith(document):
            raise InvalidError("the chat template changes the system message when a question follows")
        before, teacher_after = _cut(whole[len(document) :], _MARK)
        if teacher_after != after:
            raise InvalidError("the chat template ends a question otherwise when there is a system message")
    else:
        # The bare document began with the token that begins a text: it must not come twice.
        before = student_before.removeprefix(tokenizer.bos_token or "")
    _, closing = _cut(_render(tokenizer, [user, {"role": "assistant", "content": _REPLY}], answer=False), _REPLY)
    closes = {token for token in _encode(tokenizer, closing)[:1] if token in set(tokenizer.all_special_ids)}
    return _Parts(
        ask_before=before,
        ask_after=after + LEAD,
        teacher_before=before,
        student_before=student_before,
        after=after,
        stops=frozenset(_ends(tokenizer) | closes),
    )


def _plain_parts(tokenizer: Any) -> _Parts:
    begins = tokenizer.bos_token if tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id] else ""
    return _Parts(
        ask_before="\n\n",
        ask_after=f"\n{LEAD}",
        teacher_before="\n\nQuestion:",
        student_before=f"{begins}Question:",
        after="\nAnswer:",
        stops=frozenset({*_ends(tokenizer), *_line_ends(tokenizer)}),
    )


def _line_ends(tokenizer: Any) -> Ids:
    """The tokens that are nothing but the end of a line."""
    return tuple(sorted({ids[0] for end in ("\n", "\n\n") if len(ids := _encode(tokenizer, end)) == 1}))


def _ends(tokenizer: Any) -> set[int]:
    return {tokenizer.eos_token_id} - {None}


def _has_system(tokenizer: Any) -> bool:
    if not getattr(tokenizer, "chat_template", None):
        return False
    try:
        rendered = _render(tokenizer, [{"role": "system", "content": _REPLY}], answer=False)
    except InvalidError:
        return False
    return rendered.count(_REPLY) == 1


def _render(tokenizer: Any, turns: list[dict[str, str]], *, answer: bool) -> str:
    from jinja2.exceptions import TemplateError

    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=answer))
    except TemplateError as error:
        raise InvalidError(f"the chat template refuses {turns[0]['role']} messages: {error}") from None


def _cut(rendered: str, mark: str) -> tuple[str, str]:
    before, found, after = rendered.partition(mark)
    if not found or mark in after:
        raise InvalidError("the chat template does not write each message once, as it is")
    return before, after


def _encode(tokenizer: Any, text: str) -> Ids:
    encoded = tokenizer(text, add_special_tokens=False, verbose=False, return_attention_mask=False)
    return tuple(int(token) for token in encoded["input_ids"])


def _ids(value: object) -> Ids:
    if not isinstance(value, list) or not all(type(token) is int for token in value):
        raise InvalidError(f"{FRAME_FILE}: expected lists of token ids, found {str(value)[:60]}")
    return tuple(value)
