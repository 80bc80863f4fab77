"""The pool: finding, fetching and keeping cubes."""

from __future__ import annotations

from memgrid.pool.client import Pool
from memgrid.pool.offers import Listing, Offer
from memgrid.pool.reference import Reference

__all__ = ["Listing", "Offer", "Pool", "Reference"]
