"""From tokens to text as it comes: whole characters only, and nothing behind a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_UNFINISHED = "�"
"""What a tokenizer writes for the beginning of a character whose other bytes are still to come."""


class TextStream:
    """Decodes one token after another; a character comes out when its last byte is there.

    Decoding starts again at the last place where text came out whole, so a long answer costs no more a token than a
    short one, and a tokenizer that joins neighbours sees them together.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._shown = 0
        """Of the tokens, those whose text has come out."""
        self._context = 0
        """Where decoding begins: some tokens before, which decide how the next is joined."""

    def add(self, token: int) -> str:
        """The text that this token finishes; often one word, sometimes none."""
        self._ids.append(token)
        before = self._decode(self._ids[self._context : self._shown])
        whole = self._decode(self._ids[self._context :])
        if whole.endswith(_UNFINISHED) or len(whole) <= len(before):
            return ""
        self._context, self._shown = self._shown, len(self._ids)
        return whole[len(before) :]

    def rest(self) -> str:
        """What is left at the end, whole or not."""
        before = self._decode(self._ids[self._context : self._shown])
        return self._decode(self._ids[self._context :])[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))


class StopWords:
    """Holds text back while it may be the beginning of a stop string, and ends at the first one found."""

    def __init__(self, words: Sequence[str]) -> None:
        self._words = tuple(word for word in words if word)
        self._held = ""
        self.is_stopped = False

    def add(self, text: str) -> str:
        """What of the text so far may be shown.

        >>> stop = StopWords(["END"])
        >>> [stop.add(piece) for piece in ("a E", "ND b", "c")], stop.is_stopped
        (['a ', '', ''], True)
        """
        if self.is_stopped:
            return ""
        self._held += text
        found = [at for word in self._words if (at := self._held.find(word)) >= 0]
        if found:
            self.is_stopped = True
            shown, self._held = self._held[: min(found)], ""
            return shown
        keep = self._beginning()
        shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return shown

    def rest(self) -> str:
        """What was held back and turned out to be no stop string."""
        shown, self._held = self._held, ""
        return shown

    def _beginning(self) -> int:
        """How many of the last characters could begin a stop string."""
        longest = max((len(word) - 1 for word in self._words), default=0)
        for size in range(min(longest, len(self._held)), 0, -1):
            if any(word.startswith(self._held[-size:]) for word in self._words):
                return size
        return 0
