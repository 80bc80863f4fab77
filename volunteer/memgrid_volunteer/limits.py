"""How much one run may take on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """None: as much as there is."""

    max_units: int | None = None
    settle_limit_s: float = 600.0
    """After the last unit, how long to wait for verdicts and upload orders."""
    cache_bytes: int | None = None
    """Room for models and inputs; None: as the preferences say."""
    outbox_bytes: int = 20 << 30
    """Unsettled results beyond this, and nothing new is taken."""
