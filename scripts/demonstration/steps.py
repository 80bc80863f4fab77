"""Numbered headings, and how long it has been."""

from __future__ import annotations

import time

from rich.console import Console


class Steps:
    """Called with the heading of each part of the demo."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._number = 0
        self._began_s = time.monotonic()

    def __call__(self, text: str) -> None:
        self._number += 1
        self._console.print(
            f"\n[bold]{self._number}  {text}[/bold] [dim]({self.took_s():.0f} s)[/dim]", soft_wrap=True
        )

    def took_s(self) -> float:
        return time.monotonic() - self._began_s
