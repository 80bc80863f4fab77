"""A volunteer's worker that cheats at training: it computes every second step only, and says it did them all.

For the demonstration only. Its states have the right form, its loss falls, its digests fit its files; the grid has to
notice by replaying a part of it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from memgrid.distill import training
from memgrid_volunteer.worker import main


class Lazy(training._Run):
    """Takes the loss of the step before for that of each step it leaves out."""

    def advance(self, micro_batch: int) -> Any:
        if self.step % 2 == 0 or not self.trace:
            return super().advance(micro_batch)
        entry = replace(self.trace[-1], step=self.step)
        self.step += 1
        self.trace.append(entry)
        return entry


if __name__ == "__main__":
    training._Run = Lazy  # type: ignore[misc]
    main()
