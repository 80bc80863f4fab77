"""Which token comes next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

TOKENS_MAX = 512
"""How long an answer may become when nobody says otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How to answer. Temperature 0 takes the likeliest token; `seed` makes chance repeatable on one machine."""

    max_tokens: int = TOKENS_MAX
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()


class Sampler:
    """Draws tokens with chance of its own, so that nothing else in the process is disturbed."""

    def __init__(self, settings: Settings, device: torch.device) -> None:
        import torch

        self._settings = settings
        self._chance = torch.Generator(device=device)
        if settings.seed is None:
            self._chance.seed()
        else:
            self._chance.manual_seed(settings.seed)

    def choose(self, logits: torch.Tensor) -> int:
        """A token from logits [vocabulary]."""
        import torch

        if self._settings.temperature <= 0:
            return int(logits.argmax())
        probabilities = (logits.float() / self._settings.temperature).softmax(-1)
        if self._settings.top_p < 1:
            probabilities = _nucleus(probabilities, self._settings.top_p)
        return int(torch.multinomial(probabilities, 1, generator=self._chance))


def _nucleus(probabilities: torch.Tensor, top_p: float) -> torch.Tensor:
    """Only the likeliest tokens that together reach `top_p`, the likeliest always among them.

    Source: "The Curious Case of Neural Text Degeneration", 2020.
    """
    import torch

    ordered, order = probabilities.sort(descending=True)
    before = ordered.cumsum(-1) - ordered
    kept = torch.where(before < top_p, ordered, 0.0)
    kept[0] = ordered[0]
    return torch.zeros_like(probabilities).scatter(0, order, kept)
