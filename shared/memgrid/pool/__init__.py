"""The pool: finding, fetching and keeping cubes."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memgrid.pool.client import Pool
    from memgrid.pool.offers import Listing, Offer
    from memgrid.pool.reference import Reference

__all__ = ["Listing", "Offer", "Pool", "Reference"]

_HOMES = {"Listing": "offers", "Offer": "offers", "Pool": "client", "Reference": "reference"}


def __getattr__(name: str) -> Any:
    # Who only looks at the cache on this machine should not wait for an HTTP client.
    if name not in _HOMES:
        raise AttributeError(f"module 'memgrid.pool' has no attribute {name!r}")
    return getattr(import_module(f"memgrid.pool.{_HOMES[name]}"), name)
