"""Draw a simulation: wrong results against cost, what stands wrong day by day, and how soon cheats are caught."""

from __future__ import annotations

from typing import Any

from memgrid_coordinator.heavy.plots import BLUE, GREEN, GREY, drawing, svg_of

_NONE = 1e-7
"""Where logarithmic axes show nought."""
_COLOURS = {"memgrid": BLUE, "quorum2": GREY, "boinc_adaptive": "#bf8700", "poco": GREEN}


def pictures(found: dict[str, Any]) -> dict[str, bytes]:
    """File names and SVG."""
    policies: dict[str, Any] = found["policies"]
    return {
        "wrong-and-cost.svg": wrong_and_cost(policies),
        "days.svg": days(policies),
        "detection.svg": detection(policies),
    }


def wrong_and_cost(policies: dict[str, Any]) -> bytes:
    """A dot a policy: what an accepted unit costs, and how many of them are wrong; hollow before looking back."""
    with drawing() as (figure, axes):
        for name, found in policies.items():
            if found["cost"] is None or found["wrong_standing"] is None:
                continue
            cost, colour = found["cost"], _COLOURS[name]
            before, after = (max(_NONE, found[key]) for key in ("wrong_when_counted_on", "wrong_standing"))
            axes.plot([cost, cost], [before, after], color=colour, linewidth=1)
            axes.scatter([cost], [before], s=36, facecolors="none", edgecolors=colour)
            axes.scatter([cost], [after], s=36, color=colour, label=name)
        axes.set_yscale("log")
        axes.set_ylim(_NONE / 2, 1)
        axes.set_xlim(left=1)
        axes.set_xlabel("cost of an accepted unit, in units")
        axes.set_ylabel("share of wrong results")
        _legend(axes)
        return svg_of(figure, "Wrong results and cost: hollow when first counted on, filled after looking back")


def days(policies: dict[str, Any]) -> bytes:
    """The share of each day's accepted results that is wrong and was not found."""
    with drawing() as (figure, axes):
        for name, found in policies.items():
            shares = [max(_NONE, day["wrong_standing"] / max(1, day["accepted"])) for day in found["days"]]
            axes.plot(range(1, len(shares) + 1), shares, color=_COLOURS[name], linewidth=2, label=name)
        axes.set_yscale("log")
        axes.set_ylim(_NONE / 2, 1)
        axes.set_xlabel("day of acceptance")
        axes.set_ylabel("share wrong and not found")
        _legend(axes)
        return svg_of(figure, "Wrong results that stand, by the day of their acceptance")


def detection(policies: dict[str, Any]) -> bytes:
    """Of the hosts that were caught, how many within so many hours of their first wrong result."""
    with drawing() as (figure, axes):
        for name, found in policies.items():
            hours = [max(1 / 60, value) for value in found["caught_hours"]]
            if hours:
                shares = [(at + 1) / len(hours) for at in range(len(hours))]
                axes.step(hours, shares, where="post", color=_COLOURS[name], linewidth=2, label=name)
        axes.set_xscale("log")
        axes.set_ylim(0, 1.05)
        axes.set_xlabel("hours from the first wrong result to the first fault")
        axes.set_ylabel("share of the hosts caught")
        _legend(axes)
        return svg_of(figure, "How soon hosts with wrong results are caught")


def _legend(axes: Any) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=9)
