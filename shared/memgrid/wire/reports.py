"""Reports on the wire, as their hosts sign them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from memgrid.digest import parse_digest
from memgrid.errors import InvalidError
from memgrid.units import ComputeDtype, HostId, Output, ReportClaim, SessionId, WorkFacts
from memgrid.v1 import volunteers_pb2 as pb
from memgrid.wire.basics import at_most, integer, lease_id_of, parse, real, text, unit_key_from

REPORTS_MAX = 256
OUTPUTS_MAX = 128
"""A training hands in a state a segment, at most a hundred."""


class ReportBatch(NamedTuple):
    """The reports of one Sync, as their host signed them."""

    host_id: HostId
    session_id: SessionId
    sequence: int
    reports: tuple[ReportClaim, ...]


def work_facts_to_message(facts: WorkFacts) -> pb.WorkFacts:
    return pb.WorkFacts(
        tokens=facts.tokens,
        compute_s=facts.compute_s,
        device_kind=facts.device_kind,
        numerics_class=facts.numerics_class,
        compute_dtype=facts.compute_dtype,
        torch_version=facts.torch_version,
    )


def work_facts_from_message(message: pb.WorkFacts) -> WorkFacts:
    try:
        compute_dtype = ComputeDtype(message.compute_dtype)
    except ValueError:
        raise InvalidError(f"facts.compute_dtype: unknown {message.compute_dtype[:80]!r}") from None
    return WorkFacts(
        tokens=integer("facts.tokens", message.tokens),
        compute_s=real("facts.compute_s", message.compute_s, 0, 1e9),
        device_kind=text("facts.device_kind", message.device_kind),
        numerics_class=text("facts.numerics_class", message.numerics_class),
        compute_dtype=compute_dtype,
        torch_version=text("facts.torch_version", message.torch_version),
    )


def report_to_message(claim: ReportClaim) -> pb.Report:
    outputs = [
        pb.Output(name=output.name, digest=output.digest, size_bytes=output.size_bytes) for output in claim.outputs
    ]
    return pb.Report(
        lease_id=claim.lease_id,
        fence=claim.fence,
        unit_key=claim.unit_key,
        outputs=outputs,
        sketch_digest=claim.sketch_digest,
        facts=work_facts_to_message(claim.facts),
    )


def report_from_message(message: pb.Report) -> ReportClaim:
    at_most("report.outputs", len(message.outputs), OUTPUTS_MAX)
    outputs = tuple(
        Output(
            name=text("output.name", output.name, least=1),
            digest=parse_digest(output.digest),
            size_bytes=integer("output.size_bytes", output.size_bytes),
        )
        for output in message.outputs
    )
    return ReportClaim(
        lease_id=lease_id_of(message.lease_id),
        fence=integer("report.fence", message.fence),
        unit_key=unit_key_from(message.unit_key),
        outputs=outputs,
        sketch_digest=parse_digest(message.sketch_digest),
        facts=work_facts_from_message(message.facts),
    )


def reports_to_body(
    *, host_id: HostId, session_id: SessionId, sequence: int, reports: Iterable[ReportClaim]
) -> bytes:
    """What a host signs, as REPORTS_TYPE."""
    message = pb.ReportBatch(
        host_id=host_id,
        session_id=session_id,
        sequence=sequence,
        reports=[report_to_message(report) for report in reports],
    )
    return message.SerializeToString(deterministic=True)


def reports_from_body(body: bytes) -> ReportBatch:
    """Parse a body whose signature has held."""
    message = parse(pb.ReportBatch(), body)
    at_most("reports", len(message.reports), REPORTS_MAX)
    return ReportBatch(
        host_id=HostId(text("host_id", message.host_id, least=1)),
        session_id=SessionId(text("session_id", message.session_id, least=1)),
        sequence=integer("sequence", message.sequence),
        reports=tuple(report_from_message(report) for report in message.reports),
    )
