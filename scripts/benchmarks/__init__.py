"""The measurements behind scripts/bench; each module has a `run` that returns a report."""
