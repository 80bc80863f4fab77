"""A worker that starts at once: the real one, forked by `tests.warm` instead of importing torch for seconds."""

from __future__ import annotations

from tests.warm import stand_in

if __name__ == "__main__":
    stand_in("worker")
