"""The quorum of the coordinator, asked about virtual reports."""

from __future__ import annotations

from memgrid.digest import Digest
from memgrid.kinds.kind import Difference
from memgrid.units import ComputeDtype, LeaseId
from memgrid_coordinator.policy.quorum import Agreed, Hopeless, Pair, Pending, settle
from memgrid_coordinator.records import ReplicaClaim
from memgrid_coordinator.simulation.answers import Answers
from memgrid_coordinator.simulation.units import Unit

REPLICAS_MAX = 5
_ALIKE = Difference(distance=0.5, exceeded=None)
_UNLIKE = Difference(distance=2.0, exceeded="differs")


def agreement(unit: Unit, answers: Answers, *, min_replicas: int) -> Pending | Agreed | Hopeless:
    """What `policy.quorum.settle` says of a unit's reports; lease ids are their places among the claims."""
    if len(unit.claims) < min_replicas:
        return Pending(reports_wanted=min_replicas - len(unit.claims))
    claims = [
        ReplicaClaim(
            lease_id=LeaseId(str(at)),
            account_id=host.account,
            output_digest=Digest(str(answer)),
            sketch=b"",
            compute_dtype=ComputeDtype.FLOAT32,
        )
        for at, (host, answer) in enumerate(unit.claims)
    ]
    known: dict[Pair, Difference] = {}
    for at, one in enumerate(unit.claims):
        for behind, other in enumerate(unit.claims[:at]):
            if one[1] != other[1]:
                pair = frozenset((claims[at].lease_id, claims[behind].lease_id))
                known[pair] = _ALIKE if answers.look_alike(one, other) else _UNLIKE
    return settle(claims, known, min_replicas=min_replicas, max_replicas=REPLICAS_MAX)
