"""May something go over the network now, and may this unit be taken? Two small decisions beside the large one."""

from __future__ import annotations

from collections.abc import Collection

from memgrid.units import Reason, ReasonCode
from memgrid_volunteer.owner.preferences import Metered, Preferences, Work
from memgrid_volunteer.owner.signals import Signals


def transfers_held(signals: Signals, preferences: Preferences) -> Reason | None:
    """Why nothing large may be fetched or sent now; None when it may. What is computed already goes on.

    >>> from memgrid_volunteer.owner.preferences import preferences_of
    >>> transfers_held(Signals(devices={}, is_metered=True), preferences_of({})).text
    'the connection is metered (network.metered)'
    """
    metered = preferences.network.metered
    if signals.is_metered is True and metered is not Metered.USE:
        return _spared("the connection is metered (network.metered)")
    if signals.is_metered is None and metered is Metered.NEVER:
        why = signals.unseen.get("network", "")
        return _spared(f"nobody can tell whether the connection is metered{f' ({why})' if why else ''}")
    most = preferences.network.month_gb
    if most is not None and signals.month_bytes >= most * 1e9:
        return _spared(f"{signals.month_bytes / 1e9:.1f} GB have gone over it this month (network.month_gb)")
    return None


def refused(work: Work, *, kind: str, campaign: Collection[str] = (), estimate_s: float = 0.0) -> Reason | None:
    """Why the owner does not want a unit; None when it is welcome. `campaign`: all names its campaign goes by.

    >>> refused(Work(kinds_avoided=("train",)), kind="train").text
    'units of the kind train are not taken (work.kinds_avoided)'
    """
    if kind in work.kinds_avoided:
        return _not_taken(f"units of the kind {kind} are not taken (work.kinds_avoided)")
    if work.kinds and kind not in work.kinds:
        return _not_taken(f"only units of the kinds {', '.join(work.kinds)} are taken (work.kinds)")
    if avoided := sorted(set(campaign) & set(work.campaigns_avoided)):
        return _not_taken(f"units of {avoided[0]} are not taken (work.campaigns_avoided)")
    if work.campaigns and not set(campaign) & set(work.campaigns):
        return _not_taken(f"only units of {', '.join(work.campaigns)} are taken (work.campaigns)")
    most = work.max_runtime_minutes
    if most is not None and estimate_s > most * 60:
        return _not_taken(f"it would take {estimate_s / 60:.0f} min (work.max_runtime_minutes)")
    return None


def _spared(text: str) -> Reason:
    return Reason(code=ReasonCode.NETWORK_SPARED, text=text)


def _not_taken(text: str) -> Reason:
    return Reason(code=ReasonCode.NOT_TAKEN, text=text)
