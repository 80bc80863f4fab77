"""Show a campaign while it runs: bars on a terminal, a line now and then elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from memgrid.campaign_status import COMPLETED, CampaignStatus, DocumentStatus
from memgrid.clock import Clock
from memgrid.text import seconds_text

DOCUMENTS_SHOWN_MAX = 16
SPARSE_EVERY_S = 5.0
_STATES = ("waiting", "open", "checking", "accepted", "failed", "cancelled")
_COLOURS = {"published": "green", "failed": "red", "cancelled": "yellow"}


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
                self.say(_ending(document))
        now_s = self._clock.monotonic_s()
        summary = summary_of(status)
        if summary != self._last_summary and (status.is_over or now_s - self._summary_at_s >= SPARSE_EVERY_S):
            self._summary_at_s, self._last_summary = now_s, summary
            self.say(summary)

    def say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Nothing is kept open."""


def summary_of(status: CampaignStatus) -> str:
    """One line: how far, what the units do, how long still.

    >>> summary_of(CampaignStatus(campaign_id="c", name="handbook", state="running", model="m", created_at=None,
    ...     ended_at=None, units=4, units_by_state={"accepted": 1, "open": 3}, reports_by_verdict={},
    ...     rejections_by_reason={"disagrees": 2}, tokens=1000, tokens_accepted=250, produced_flops=0,
    ...     spent_flops=0, documents=(), eta_s=75.0))
    'handbook running: 250 of 1,000 tokens, units: 3 open, 1 accepted, 2 reports rejected, about 1 min 15 s to go'
    """
    parts = [f"{status.tokens_accepted:,} of {status.tokens:,} tokens", f"units: {_units(status)}"]
    if status.rejections:
        parts.append(f"{status.rejections} reports rejected")
    if status.eta_s is not None and not status.is_over:
        parts.append(f"about {_rough(status.eta_s)} to go")
    return f"{status.name} {status.state}: {', '.join(parts)}"


def picture(status: CampaignStatus) -> RenderableType:
    """The bars of all documents (or the most telling ones), and what the units do."""
    table = Table.grid(padding=(0, 2))
    table.add_column(max_width=32, no_wrap=True)
    for column in ("bar", "tokens", "state"):
        table.add_column(column, no_wrap=True, justify="right" if column == "tokens" else "left")
    for document in shown(status.documents):
        bar = ProgressBar(total=max(document.units, 1), completed=document.units_accepted, width=30)
        colour = _COLOURS.get(document.state, "default")
        state = Text(document.cube or document.state, style=colour)
        table.add_row(document.name, bar, f"{document.tokens:,} tokens", state)
    hidden = len(status.documents) - DOCUMENTS_SHOWN_MAX
    if hidden > 0:
        table.add_row(f"… and {hidden} more", "", "", "")
    style = "green" if status.state == COMPLETED else "default" if not status.is_over else "red"
    return Group(table, Text(summary_of(status), style=style))


def shown(documents: Iterable[DocumentStatus]) -> list[DocumentStatus]:
    """When there are too many to show: those under way first, then failed ones, then the rest."""
    everything = list(documents)
    if len(everything) <= DOCUMENTS_SHOWN_MAX:
        return everything
    order = {"running": 0, "failed": 1}
    ranked = sorted(everything, key=lambda each: (order.get(each.state, 2), each.units_accepted == 0))
    return ranked[:DOCUMENTS_SHOWN_MAX]


def _rough(seconds: float) -> str:
    """No estimate is good to a tenth of a second."""
    return f"{max(1, round(seconds))} s" if seconds < 60 else seconds_text(seconds)


def _units(status: CampaignStatus) -> str:
    present = [f"{status.units_by_state[state]} {state}" for state in _STATES if status.units_by_state.get(state)]
    return ", ".join(present) or "none"


def _ending(document: DocumentStatus) -> str:
    if document.state == "published":
        return f"published {document.cube} ({document.tokens:,} tokens)"
    return f"{document.name}: {document.state}: {document.reason}"
