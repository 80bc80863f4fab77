"""What one grid among several is called on this machine: its host and port, fit for the name of a folder."""

from __future__ import annotations

import re
from typing import NewType
from urllib.parse import urlsplit

from memgrid.endpoint import GridUrl

GridId = NewType("GridId", str)
_PORTS = {"https": 443, "http": 80}


def grid_id(url: str) -> GridId:
    """Raises InvalidError when it is no grid's address.

    >>> grid_id("https://Grid.example"), grid_id("https://[::1]:7070#sha256=" + "ab" * 32)
    ('grid.example-443', '--1-7070')
    """
    # Plain http to a grid that is not on this machine is for joining to refuse.
    parts = urlsplit(GridUrl.parse(url, insecure=True).base)
    host = re.sub(r"[^a-z0-9.-]", "-", (parts.hostname or "").lower())
    return GridId(f"{host}-{parts.port or _PORTS[parts.scheme]}")
