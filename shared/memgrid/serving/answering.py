"""Answers from one loaded model and the cubes attached to it, a piece of text at a time, one answer at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from memgrid.cube.attach import Attachment, attach
from memgrid.cube.caches import forget_last, new_cache
from memgrid.cube.cube import MemCube
from memgrid.cube.wrap import chat_ids, turns_of
from memgrid.digest import Digest
from memgrid.errors import InvalidError
from memgrid.kinds.frame import build_frame
from memgrid.serving.loading import Loaded
from memgrid.serving.sampling import Sampler, Settings
from memgrid.serving.writing import StopWords, TextStream

if TYPE_CHECKING:
    import torch
    from transformers import DynamicCache

Turns = Sequence[Mapping[str, str]]


class TooLongError(InvalidError):
    """A conversation that does not fit into what the model can read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """How an answer ended: `stop` by itself or at a stop string, `length` at its limit, `cancelled` by whoever asked.

    `prompt_tokens` are all positions before the answer, of which `cached_tokens` needed no computing: the cubes'
    and those of a conversation that goes on.
    """

    reason: str
    prompt_tokens: int
    cached_tokens: int
    answer_tokens: int


@dataclass(slots=True, kw_only=True, eq=False)
class _Read:
    """What the model has in its cache from the last answer."""

    ids: list[int]
    cache: DynamicCache


class Answerer:
    """One model; cubes are attached as an answer needs them and stay until another needs others."""

    def __init__(self, loaded: Loaded) -> None:
        self._model, self._tokenizer = loaded.model, loaded.tokenizer
        self._lock = threading.Lock()
        self._attached: tuple[tuple[Digest, ...], Attachment] | None = None
        self._read: _Read | None = None
        self._stops = _stops(loaded.model, loaded.tokenizer)

    def answer(
        self,
        turns: str | Turns,
        cubes: Sequence[MemCube] = (),
        settings: Settings | None = None,
        is_cancelled: Callable[[], bool] = lambda: False,
    ) -> Generator[str | Finish]:
        """Pieces of text as they come, and last how it ended; closing the iterator ends the answer.

        Raises TooLongError for a conversation beyond the model's context, and what `memgrid.attach` raises.
        """
        settings = settings or Settings()
        with self._lock:
            memory = self._attach(cubes)
            ids = self._ids(memory, turns_of(turns))
            room = self._room(len(ids))
            cached = self._resume(memory, ids)
            yield from self._write(ids, cached, settings, room, is_cancelled)

    def close(self) -> None:
        """Leave the model as it was."""
        with self._lock:
            self._attach(())

    def _attach(self, cubes: Sequence[MemCube]) -> Attachment | None:
        wanted = tuple(cube.digest for cube in cubes)
        if self._attached is not None and self._attached[0] != wanted:
            self._attached[1].detach()
            self._attached = self._read = None
        elif self._attached is None and wanted:
            self._read = None
        if wanted and self._attached is None:
            self._attached = (wanted, attach(self._model, cubes))
        return self._attached[1] if self._attached else None

    def _ids(self, memory: Attachment | None, turns: list[dict[str, str]]) -> list[int]:
        if memory is None:
            return chat_ids(self._tokenizer, turns)
        return memory.ids(self._tokenizer, turns)

    def _room(self, length: int) -> int:
        limit = getattr(self._model.config.get_text_config(decoder=True), "max_position_embeddings", None)
        if limit is not None and length >= limit:
            raise TooLongError(f"the conversation takes {length} tokens, the model reads at most {limit}")
        return (limit - length) if limit is not None else 1 << 31

    def _resume(self, memory: Attachment | None, ids: list[int]) -> int:
        """Have a cache with as much of the conversation as was read before; returns how much that is."""
        held = 0 if memory is None else memory.positions
        if self._read is None:
            self._read = _Read(ids=ids[:held], cache=new_cache() if memory is None else memory.cache())
        pairs = zip(self._read.ids[held:], ids[held:], strict=False)
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        # At least one token has to be read, for there is no next one without it.
        shared = min(held + same, len(ids) - 1)
        forget_last(self._read.cache, len(self._read.ids) - shared)
        self._read.ids = ids[:shared]
        return shared

    def _write(
        self, ids: list[int], cached: int, settings: Settings, room: int, is_cancelled: Callable[[], bool]
    ) -> Iterator[str | Finish]:
        text, stop = TextStream(self._tokenizer), StopWords(settings.stop)
        sampler = Sampler(settings, self._model.device)
        count, reason, unread = 0, "length", ids[cached:]
        while count < min(settings.max_tokens, room):
            if is_cancelled():
                reason = "cancelled"
                break
            token = sampler.choose(self._next_logits(unread))
            count, unread = count + 1, [token]
            if token in self._stops:
                reason = "stop"
                break
            if shown := stop.add(text.add(token)):
                yield shown
            if stop.is_stopped:
                reason = "stop"
                break
        if not stop.is_stopped and (shown := stop.add(text.rest()) + stop.rest()):
            yield shown
        yield Finish(reason=reason, prompt_tokens=len(ids), cached_tokens=cached, answer_tokens=count)

    def _next_logits(self, unread: list[int]) -> torch.Tensor:
        """Read some tokens behind what was read before; logits [vocabulary] of the next."""
        import torch

        assert self._read is not None
        read, self._read = self._read, None  # a failure half-way leaves a cache that nobody should go on with
        with torch.inference_mode():
            ids = torch.tensor([unread], device=self._model.device)
            output = self._model(input_ids=ids, past_key_values=read.cache, use_cache=True, logits_to_keep=1)
        read.ids += unread
        self._read = read
        logits: torch.Tensor = output.logits[0, -1]
        return logits


def _stops(model: Any, tokenizer: Any) -> frozenset[int]:
    """The tokens that end an answer: what model and template say, and a line's end for base models."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    ends = [*(configured if isinstance(configured, list) else [configured]), tokenizer.eos_token_id]
    # A template that can't be taken apart can still be answered; distilling is what it is no good for.
    with suppress(InvalidError):
        ends += build_frame(tokenizer).stops
    return frozenset(end for end in ends if end is not None)
