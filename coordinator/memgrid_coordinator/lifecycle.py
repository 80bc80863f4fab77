"""The states of units, leases, campaigns, documents and uploads, and the moves between them.

A unit::

    waiting ──open──► open ──agree──► checking ──accept──► accepted
      ▲                ▲ ▲               │  │                ▲ │
      │                │ └────reopen─────┘ hold            accept
      │                │                    └► provisional ──┘ │
      │                └───recall──(its host failed an audit)──┴─ (from accepted too: it was found to be wrong)
      └──close── open, checking, provisional, accepted             (what it continues was recalled)
    waiting, open, checking ──fail──► failed      waiting, open, checking ──cancel──► cancelled
    failed, cancelled ──revive──► waiting         (a later campaign wants it again)
    accepted ──take_up──► waiting                 (its result has left the content store, and somebody wants it)

Provisional is a result that nobody has looked at: audits of its host that pass make it an accepted one.

A lease::

    leased ──report──► reported ──agree──► agreed      (its credit is written when the unit is accepted)
      │ │ │                │  ▲               │
      │ │ └─cancel─►       │  └───unagree─────┤         (the chosen upload fell through: count again)
      │ └─release─► released                  │
      └─expire──► expired  └──────reject──────┴──► rejected      (from leased too: a report turned down at the door)

    cancelled ──report──► reported                    (the grid ended the lease, its host reports before the deadline)
    reported ──cancel──► cancelled ──agree, reject──► (nobody could judge the report, until another one came)

A campaign::

    running ──pause──► paused       running ──complete, fail──► completed, failed
       ▲                 │          running, paused ──cancel──► cancelled
       └─────resume──────┘       failed ──retry──► running            (an operator has failed documents tried again)
                                 completed, failed ──reopen──► running      (a cube of it was retracted)
"""

from __future__ import annotations

from enum import StrEnum
from typing import TypeVar


class UnitState(StrEnum):
    WAITING = "waiting"
    OPEN = "open"
    CHECKING = "checking"
    PROVISIONAL = "provisional"
    ACCEPTED = "accepted"
    FAILED = "failed"
    CANCELLED = "cancelled"


class LeaseState(StrEnum):
    LEASED = "leased"
    REPORTED = "reported"
    AGREED = "agreed"
    REJECTED = "rejected"
    EXPIRED = "expired"
    RELEASED = "released"
    CANCELLED = "cancelled"


class CampaignState(StrEnum):
    RUNNING = "running"
    PAUSED = "paused"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class DocumentState(StrEnum):
    RUNNING = "running"
    PUBLISHED = "published"
    FAILED = "failed"
    CANCELLED = "cancelled"


class UploadState(StrEnum):
    ORDERED = "ordered"
    RECEIVED = "received"
    VERIFIED = "verified"
    REFUSED = "refused"


State = TypeVar("State", UnitState, LeaseState, CampaignState, DocumentState, UploadState)

UNIT_MOVES: dict[str, tuple[frozenset[UnitState], UnitState]] = {
    "open": (frozenset({UnitState.WAITING}), UnitState.OPEN),
    "agree": (frozenset({UnitState.OPEN}), UnitState.CHECKING),
    "reopen": (frozenset({UnitState.CHECKING}), UnitState.OPEN),
    "hold": (frozenset({UnitState.CHECKING}), UnitState.PROVISIONAL),
    "accept": (frozenset({UnitState.CHECKING, UnitState.PROVISIONAL}), UnitState.ACCEPTED),
    "recall": (frozenset({UnitState.PROVISIONAL, UnitState.ACCEPTED}), UnitState.OPEN),
    "close": (
        frozenset({UnitState.OPEN, UnitState.CHECKING, UnitState.PROVISIONAL, UnitState.ACCEPTED}),
        UnitState.WAITING,
    ),
    "fail": (frozenset({UnitState.WAITING, UnitState.OPEN, UnitState.CHECKING}), UnitState.FAILED),
    "cancel": (frozenset({UnitState.WAITING, UnitState.OPEN, UnitState.CHECKING}), UnitState.CANCELLED),
    "revive": (frozenset({UnitState.FAILED, UnitState.CANCELLED}), UnitState.WAITING),
    "take_up": (frozenset({UnitState.ACCEPTED}), UnitState.WAITING),
}
LEASE_MOVES: dict[str, tuple[frozenset[LeaseState], LeaseState]] = {
    "report": (frozenset({LeaseState.LEASED, LeaseState.CANCELLED}), LeaseState.REPORTED),
    "agree": (frozenset({LeaseState.REPORTED, LeaseState.CANCELLED}), LeaseState.AGREED),
    "unagree": (frozenset({LeaseState.AGREED}), LeaseState.REPORTED),
    "reject": (
        frozenset({LeaseState.LEASED, LeaseState.REPORTED, LeaseState.AGREED, LeaseState.CANCELLED}),
        LeaseState.REJECTED,
    ),
    "expire": (frozenset({LeaseState.LEASED}), LeaseState.EXPIRED),
    "release": (frozenset({LeaseState.LEASED}), LeaseState.RELEASED),
    "cancel": (frozenset({LeaseState.LEASED, LeaseState.REPORTED, LeaseState.AGREED}), LeaseState.CANCELLED),
}
UPLOAD_MOVES: dict[str, tuple[frozenset[UploadState], UploadState]] = {
    "receive": (frozenset({UploadState.ORDERED}), UploadState.RECEIVED),
    "verify": (frozenset({UploadState.RECEIVED}), UploadState.VERIFIED),
    "refuse": (frozenset({UploadState.ORDERED, UploadState.RECEIVED}), UploadState.REFUSED),
}
CAMPAIGN_MOVES: dict[str, tuple[frozenset[CampaignState], CampaignState]] = {
    "pause": (frozenset({CampaignState.RUNNING}), CampaignState.PAUSED),
    "resume": (frozenset({CampaignState.PAUSED}), CampaignState.RUNNING),
    "complete": (frozenset({CampaignState.RUNNING}), CampaignState.COMPLETED),
    "fail": (frozenset({CampaignState.RUNNING}), CampaignState.FAILED),
    "cancel": (frozenset({CampaignState.RUNNING, CampaignState.PAUSED}), CampaignState.CANCELLED),
    "retry": (frozenset({CampaignState.FAILED}), CampaignState.RUNNING),
    "reopen": (frozenset({CampaignState.COMPLETED, CampaignState.FAILED}), CampaignState.RUNNING),
}

HAVE_RESULTS = frozenset({UnitState.PROVISIONAL, UnitState.ACCEPTED})
"""Units whose output lies in the content store, so that others can continue it."""
ENDED_UNITS = frozenset({UnitState.ACCEPTED, UnitState.FAILED, UnitState.CANCELLED})
ENDED_CAMPAIGNS = frozenset({CampaignState.COMPLETED, CampaignState.FAILED, CampaignState.CANCELLED})


def after(moves: dict[str, tuple[frozenset[State], State]], state: State, move: str) -> State:
    """The state that `move` leads to; raises ValueError when it does not start from `state`.

    >>> after(UNIT_MOVES, UnitState.OPEN, "agree")
    <UnitState.CHECKING: 'checking'>
    """
    sources, target = moves[move]
    if state not in sources:
        raise ValueError(f"{move} starts from {', '.join(sorted(sources))}, not from {state}")
    return target
