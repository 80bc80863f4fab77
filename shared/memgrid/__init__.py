"""Memory for language models, computed by volunteers, checked, and shared."""

from __future__ import annotations
