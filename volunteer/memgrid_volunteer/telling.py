"""What happens to a unit and to a volunteer, as its owner reads it."""

from __future__ import annotations

from memgrid.specs import EvaluateSpec, PrefillSpec, Spec, StudySpec, TrainSpec
from memgrid.units import VerdictNotice


def work_text(spec: Spec) -> str:
    """What a unit asks for, as the owner reads it."""
    match spec:
        case PrefillSpec():
            return f"{spec.token_count} tokens from position {spec.start}"
        case StudySpec():
            return f"{spec.conversations} conversations about {spec.token_count} tokens"
        case TrainSpec():
            return f"training steps {spec.first_step + 1} to {spec.stop_step} of {spec.total_steps}"
        case EvaluateSpec():
            return f"{spec.items} conversations to score"


def busy_line(pause_s: float) -> str:
    """What the owner reads when the coordinator has no time yet.

    >>> busy_line(11.7)
    'the grid has its hands full; trying again in 12 s'
    """
    return f"the grid has its hands full; trying again in {pause_s:.0f} s"


def in_words(notice: VerdictNotice) -> str:
    """A verdict as the owner reads it.

    >>> from memgrid.units import LeaseId, Reason, ReasonCode
    >>> in_words(VerdictNotice(lease_id=LeaseId("7f3a"), verdict="accepted",
    ...     reason=Reason(code=ReasonCode.AGREES), credit_flops=58_000_000_000))
    'accepted, credit 0.058 TFLOP'
    """
    if notice.verdict == "accepted":
        return f"accepted, credit {notice.credit_flops / 1e12:.3g} TFLOP"
    return f"{notice.verdict}: {notice.reason.text or notice.reason.code.value}"
