"""The real worker, forked by `tests.warm`, that commits after every micro-batch."""

from __future__ import annotations

import sys

from tests.warm import stand_in

if __name__ == "__main__":
    sys.argv += ["--commit-every", "0"]
    stand_in("worker")
