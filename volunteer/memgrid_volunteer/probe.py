"""Ends well where a worker would have no network: run behind the walls that are to be tried."""

from __future__ import annotations

import socket
import sys
import tempfile


def main() -> None:
    import memgrid_volunteer.kinds.job  # noqa: F401 - the package and its libraries must be reachable

    names = {name for _, name in socket.if_nameindex()} if hasattr(socket, "if_nameindex") else set()
    with tempfile.TemporaryFile(dir="."):
        pass
    sys.exit(0 if names <= {"lo"} else 1)


if __name__ == "__main__":
    main()
