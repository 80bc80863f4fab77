"""Show a campaign while it runs: bars on a terminal, a line now and then elsewhere."""

from __future__ import annotations

from typing import Protocol

from rich.console import Console
from rich.live import Live
from rich.markup import escape

from memgrid.campaign_status import CampaignStatus
from memgrid.cli.picturing import ending_of, picture, summary_of
from memgrid.clock import Clock

SPARSE_EVERY_S = 5.0


class Display(Protocol):
    """Where a campaign's progress is shown."""

    def update(self, status: CampaignStatus) -> None: ...

    def say(self, line: str) -> None:
        """A line that stays, above the bars."""

    def close(self) -> None: ...


def display_for(console: Console, clock: Clock) -> Display:
    """Bars where they can move."""
    return Bars(console) if console.is_terminal else Lines(console, clock)


class Bars:
    """A live picture on a terminal."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, refresh_per_second=8, transient=False)
        self._live.start()

    def update(self, status: CampaignStatus) -> None:
        self._live.update(picture(status))

    def say(self, line: str) -> None:
        self._live.console.print(escape(line), highlight=False)

    def close(self) -> None:
        self._live.stop()


class Lines:
    """For logs and pipes: every document's end, and a summary when some seconds have passed."""

    def __init__(self, console: Console, clock: Clock) -> None:
        self._console = console
        self._clock = clock
        self._said: set[tuple[str, str]] = set()
        self._summary_at_s = float("-inf")
        self._last_summary = ""

    def update(self, status: CampaignStatus) -> None:
        for document in status.documents:
            if document.state != "running" and (document.name, document.state) not in self._said:
                self._said.add((document.name, document.state))
                self.say(ending_of(document))
        now_s = self._clock.monotonic_s()
        summary = summary_of(status)
        if summary != self._last_summary and (status.is_over or now_s - self._summary_at_s >= SPARSE_EVERY_S):
            self._summary_at_s, self._last_summary = now_s, summary
            self.say(summary)

    def say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Nothing is kept open."""
