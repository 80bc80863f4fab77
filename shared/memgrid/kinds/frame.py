"""The tokens that stand around questions and answers, so that computing needs no tokenizer."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from memgrid.digest import Digest, canonical_json
from memgrid.errors import InvalidError

Ids = tuple[int, ...]
FRAME_FILE = "frame.json"
FRAME_BYTES_MAX = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatFrame:
    """A chat template taken apart.

    The teacher reads `context (a unit's tokens) + teacher_before + question + teacher_after + answer`, the student
    `student_before + question + student_after + answer`: what the template makes of the same turn when no
    document was ever mentioned, so that an adapter serves in ordinary chats. Bot A reads `context + asks[i]` and
    writes a question; both end with one of `stops`.
    """

    tokenizer: Digest
    """Of the tokenizer the ids are of."""
    vocab: int
    asks: tuple[Ids, ...]
    """Five families of seed prompts, several phrasings each."""
    teacher_before: Ids
    teacher_after: Ids
    student_before: Ids
    student_after: Ids
    stops: Ids

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
            asks = tuple(_ids(ask) for ask in value.pop("asks"))
            tokenizer, vocab = Digest(value.pop("tokenizer")), int(value.pop("vocab"))
            frame = ChatFrame(
                tokenizer=tokenizer, vocab=vocab, asks=asks, **{name: _ids(ids) for name, ids in value.items()}
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InvalidError(f"{FRAME_FILE}: {type(error).__name__}: {error}"[:300]) from None
        every = [*asks, frame.teacher_before, frame.teacher_after, frame.student_before, frame.student_after]
        if not frame.stops or not all(0 <= token < vocab for ids in [*every, frame.stops] for token in ids):
            raise InvalidError(f"{FRAME_FILE}: expected tokens below {vocab}, and one at least that stops")
        return frame


def _ids(value: object) -> Ids:
    if not isinstance(value, list) or not all(type(token) is int for token in value):
        raise InvalidError(f"{FRAME_FILE}: expected lists of token ids, found {str(value)[:60]}")
    return tuple(value)
