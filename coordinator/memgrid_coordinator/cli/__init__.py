"""`memgrid coordinator`: the commands of whoever hosts a grid."""

from __future__ import annotations

from memgrid_coordinator.cli.main import app

__all__ = ["app"]
