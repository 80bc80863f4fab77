"""A grid whose moods a test decides: real gRPC and HTTP servers around a few dictionaries."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import tempfile
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from aiohttp import web

from memgrid import wire
from memgrid.channel import SERVER_OPTIONS, STATUS_BY_CODE, TICKET_KEY, trailing_of
from memgrid.digest import Digest, digest_of, token_bytes
from memgrid.endpoint import fingerprint_of
from memgrid.enrolment import Challenge, Enrolment, Session
from memgrid.errors import InternalError, MemgridError, SessionReplacedError, TokenExpiredError
from memgrid.signing import ENROL_TYPE, LOGIN_TYPE, REPORTS_TYPE, TEAM_TYPE
from memgrid.specs import PrefillSpec
from memgrid.teams import Standing
from memgrid.units import (
    CHECKPOINT_FILE,
    AccountId,
    BlobRef,
    Cancellation,
    CheckpointRef,
    ComputeDtype,
    HostId,
    LeaseId,
    LeaseOffer,
    ModelFiles,
    Reason,
    ReasonCode,
    Release,
    ReportAck,
    ReportClaim,
    SessionId,
    StoreDtype,
    SyncAnswer,
    SyncAsk,
    UploadOrder,
    VerdictNotice,
)
from memgrid.v1 import volunteers_pb2 as pb
from memgrid.v1 import volunteers_pb2_grpc as pb_grpc
from tests.certificates import Certificate

CONFIG = b'{"model_type": "none"}'


@dataclass
class ScriptedGrid(pb_grpc.VolunteersServicer):
    """Grants what was offered, accepts every report, orders uploads, and has accidents on demand."""

    errors: list[MemgridError] = field(default_factory=list)
    """Raised by the next Syncs, before anything is done."""
    hears_reports: bool = True
    """If not, whoever brings reports is told that something went wrong."""
    door_errors: list[MemgridError] = field(default_factory=list)
    """Raised by the next who ask for a challenge."""
    tickets: list[str] = field(default_factory=list)
    """What was brought with every such call."""
    lost_answers: int = 0
    """So many of the next Syncs are carried out, and their answers lost."""
    refusals: dict[LeaseId, Reason] = field(default_factory=dict)
    """Reports to turn down."""
    orders_uploads: bool = True
    orders: dict[str, Any] = field(default_factory=dict)
    """What every upload order says instead of the truth."""
    verdict: str = "accepted"
    missing: set[Digest] = field(default_factory=set)
    """Blobs that the data plane denies."""
    delay_s: float = 0.0
    """How long the answer to a Sync is on its way."""
    is_data_away: bool = False
    """Whether the data plane has no answer for anybody."""
    refuses_uploads: set[LeaseId] = field(default_factory=set)
    """Uploads that something always goes wrong with."""
    wants_half_done: bool = True
    """Whether it orders what is done of units that are given back."""
    holds_up: asyncio.Event | None = None
    """Until it is set, half-done units neither arrive nor leave."""
    certificate: Certificate | None = None
    """With one, both planes speak TLS."""
    grpc_port_told: int = 0
    """Where volunteers are sent for the control plane, when that is not where it listens."""

    asks: list[SyncAsk] = field(default_factory=list)
    reports: list[ReportClaim] = field(default_factory=list)
    released: list[Release] = field(default_factory=list)
    uploads: dict[str, bytes] = field(default_factory=dict)
    uploads_begun: list[str] = field(default_factory=list)
    half_done: dict[str, bytes] = field(default_factory=dict)
    """What came of units that were given back, by lease."""
    happened: list[str] = field(default_factory=list)
    """Leases given back, half-done units begun and here, and results here, as they came."""
    log_ins: int = 0
    left: bool = False
    name: str = "scripted"

    def __post_init__(self) -> None:
        self.blobs: dict[Digest, bytes] = {}
        self.waiting: list[LeaseOffer] = []
        self.granted: dict[LeaseId, LeaseOffer] = {}
        self.reported: dict[LeaseId, ReportClaim] = {}
        self.settled: set[LeaseId] = set()
        self.cancelled: dict[LeaseId, Reason] = {}
        self.token = ""
        self.replaced: set[str] = {""}
        self.http_port = self.grpc_port = 0
        self.changed = asyncio.Event()
        self.model = ModelFiles(digest=digest_of(b"model"), files=(self._blob("config.json", CONFIG),))

    # what a test does

    async def start(self) -> None:
        """Begin to serve; the second time on the ports of the first."""
        app = web.Application(client_max_size=1 << 30)
        app.router.add_get("/v1/grid", self._describe)
        app.router.add_get("/v2/grid/inputs/blobs/{digest}", self._get_blob)
        app.router.add_post("/v2/grid/outputs/{lease}/blobs/uploads/", self._begin)
        app.router.add_patch("/v2/grid/outputs/{lease}/blobs/uploads/u", self._patch)
        app.router.add_put("/v2/grid/outputs/{lease}/blobs/uploads/u", self._finish)
        kept = "/v2/grid/checkpoints/{lease}/blobs"
        app.router.add_get(kept + "/{digest}", self._get_half_done)
        app.router.add_post(kept + "/uploads/", self._begin_half_done)
        app.router.add_get(kept + "/uploads/u", self._where_half_done)
        app.router.add_patch(kept + "/uploads/u", self._patch_half_done)
        app.router.add_put(kept + "/uploads/u", self._finish_half_done)
        self._server = grpc.aio.server(options=[*SERVER_OPTIONS, ("grpc.so_reuseport", 0)])
        pb_grpc.add_VolunteersServicer_to_server(self, self._server)
        place, context = f"127.0.0.1:{self.grpc_port}", None
        if self.certificate is None:
            self.grpc_port = self._server.add_insecure_port(place)
        else:
            pair = [(self.certificate.key_pem, self.certificate.certificate_pem)]
            self.grpc_port = self._server.add_secure_port(place, grpc.ssl_server_credentials(pair))
            with tempfile.TemporaryDirectory() as folder:
                context = self.certificate.server_context(Path(folder))
        await self._server.start()
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.http_port, ssl_context=context).start()
        self.http_port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        await self._runner.cleanup()
        await self._server.stop(None)

    @property
    def url(self) -> str:
        if self.certificate is None:
            return f"http://127.0.0.1:{self.http_port}"
        fingerprint = fingerprint_of(self.certificate.certificate_pem.decode())
        return f"https://127.0.0.1:{self.http_port}#sha256={fingerprint}"

    def offer(self, name: str, *tokens: int, **changes: Any) -> LeaseOffer:
        """Make a unit of these tokens and offer it as lease `name`; `changes` spoil it."""
        content = token_bytes(tokens)
        spec = PrefillSpec(
            model=self.model.digest,
            tokens=digest_of(content),
            token_count=len(tokens),
            start=0,
            parent=None,
            compute_dtype=ComputeDtype.AUTO,
            store_dtype=StoreDtype.FLOAT32,
        )
        offer = LeaseOffer(
            lease_id=LeaseId(name),
            fence=1,
            unit_key=spec.key,
            spec=spec.to_bytes(),
            model=spec.model,
            inputs=(self._blob("tokens.bin", content),),
            deadline_at=datetime.now(UTC) + timedelta(hours=1),
            estimate_s=10.0,
        )
        offer = replace(offer, **changes)
        self.waiting.append(offer)
        self.changed.set()
        return offer

    def cancel(self, lease_id: str) -> None:
        reason = Reason(code=ReasonCode.CAMPAIGN_CANCELLED, text="the campaign has been cancelled")
        self.granted.pop(LeaseId(lease_id), None)
        self.cancelled[LeaseId(lease_id)] = reason
        self.changed.set()

    async def until(self, condition: Any, limit_s: float = 20.0) -> None:
        """Wait for something to become true, looking often."""
        async with asyncio.timeout(limit_s):
            while not condition():  # noqa: ASYNC110 - conditions of all kinds, many outside this process
                await asyncio.sleep(0.02)

    # what a volunteer sees

    async def GetChallenge(self, request: Any, context: Any) -> pb.Challenge:  # noqa: N802
        self.tickets.append(dict(context.invocation_metadata() or ()).get(TICKET_KEY, ""))
        if self.door_errors:
            await _abort(context, self.door_errors.pop(0))
        expires_at = datetime.now(UTC) + timedelta(minutes=1)
        return wire.challenge_to_message(Challenge(nonce=bytes(32), expires_at=expires_at))

    async def Enrol(self, request: Any, context: Any) -> pb.Enrolment:  # noqa: N802
        wire.signed_from_message(request).verify(ENROL_TYPE)
        return wire.enrolment_to_message(Enrolment(account_id=AccountId("a1"), host_id=HostId("h1")))

    async def AskStanding(self, request: Any, context: Any) -> pb.Standing:  # noqa: N802
        signed = wire.signed_from_message(request)
        signed.verify(TEAM_TYPE)
        if self.door_errors:
            await _abort(context, self.door_errors.pop(0))
        asked = wire.team_from_body(signed.body).team
        credited = sum(1 for _ in self.reports)
        return wire.standing_to_message(
            Standing(flops=1e9 * credited, escrow_flops=0.0, results=credited, rank=1, ranked=1, team=asked or "")
        )

    async def LogIn(self, request: Any, context: Any) -> pb.Session:  # noqa: N802
        signed = wire.signed_from_message(request)
        signed.verify(LOGIN_TYPE)
        assert wire.log_in_from_body(signed.body).host_id == "h1"
        self.log_ins += 1
        self.replaced.add(self.token)
        self.token = secrets.token_hex(4)
        self.changed.set()
        expires_at = datetime.now(UTC) + timedelta(hours=1)
        session = Session(session_id=SessionId(f"s{self.log_ins}"), token=self.token, expires_at=expires_at)
        return wire.session_to_message(session)

    async def Sync(self, request: Any, context: Any) -> pb.SyncResponse:  # noqa: N802
        ask, signed = wire.sync_ask_from_message(request)
        metadata = dict(context.invocation_metadata() or ())
        if metadata.get("authorization") != f"Bearer {self.token}":
            is_of_before = metadata.get("authorization", "").removeprefix("Bearer ") in self.replaced
            error = SessionReplacedError("host h1 has logged in elsewhere since") if is_of_before else None
            await _abort(context, error or TokenExpiredError("log in again"))
        if self.errors:
            await _abort(context, self.errors.pop(0))
        if signed is not None and not self.hears_reports:
            await _abort(context, InternalError("not now"))
        claims: tuple[ReportClaim, ...] = ()
        if signed is not None:
            signed.verify(REPORTS_TYPE)
            batch = wire.reports_from_body(signed.body)
            assert (batch.host_id, batch.session_id, batch.sequence) == ("h1", f"s{self.log_ins}", ask.sequence)
            claims = batch.reports
        ask = replace(ask, reports=claims)
        self.asks.append(ask)
        answer = await self._answer(ask)
        await asyncio.sleep(self.delay_s)
        if self.lost_answers:
            self.lost_answers -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the line was cut")
        return wire.sync_answer_to_message(answer)

    async def Leave(self, request: Any, context: Any) -> pb.LeaveResponse:  # noqa: N802
        self.left = True
        return pb.LeaveResponse()

    async def _answer(self, ask: SyncAsk) -> SyncAnswer:
        acks = tuple(self._take(claim, ask) for claim in ask.reports)
        for release in ask.released:
            self.released.append(release)
            self.granted.pop(release.lease_id, None)
            self.happened.append(f"{release.lease_id} back" if release.checkpoint is None else "offered")
        offered = ask.released if self.wants_half_done else ()
        orders = tuple(_order_of(one.lease_id, one.checkpoint) for one in offered if one.checkpoint is not None)
        answer = replace(self._news(ask), acks=acks)
        answer = replace(answer, uploads=(*answer.uploads, *orders))
        until, token = asyncio.get_running_loop().time() + ask.wait.total_seconds(), self.token
        while answer.is_empty and asyncio.get_running_loop().time() < until and self.token == token:
            self.changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(until):
                    await self.changed.wait()
            answer = self._news(ask)
        return answer

    def _take(self, claim: ReportClaim, ask: SyncAsk) -> ReportAck:
        assert claim.sketch_digest in ask.sketches
        self.reports.append(claim)
        if claim.lease_id in self.refusals:
            self.granted.pop(claim.lease_id, None)
            return ReportAck(lease_id=claim.lease_id, accepted=False, reason=self.refusals[claim.lease_id])
        again = claim.lease_id in self.reported
        self.granted.pop(claim.lease_id, None)
        self.reported[claim.lease_id] = claim
        if not self.orders_uploads:
            self.settled.add(claim.lease_id)
        reason = Reason(code=ReasonCode.ALREADY_REPORTED) if again else None
        return ReportAck(lease_id=claim.lease_id, accepted=True, reason=reason)

    def _news(self, ask: SyncAsk) -> SyncAnswer:
        named = {lease.lease_id for lease in ask.held}
        offers = [offer for offer in self.granted.values() if offer.lease_id not in named]
        while self.waiting and len(offers) < ask.want:
            offer = self.waiting.pop(0)
            self.granted[offer.lease_id] = offer
            offers.append(offer)
        code = self.verdict
        return SyncAnswer(
            leases=tuple(offers),
            models=(self.model,) if offers else (),
            verdicts=tuple(
                VerdictNotice(
                    lease_id=lease_id, verdict=code, reason=Reason(code=ReasonCode.AGREES), credit_flops=1000
                )
                for lease_id in ask.awaiting
                if lease_id in self.settled
            ),
            uploads=tuple(
                replace(_order(claim), **self.orders)
                for claim in self.reported.values()
                if claim.lease_id not in self.settled
            ),
            cancelled=tuple(
                Cancellation(lease_id=lease_id, reason=reason)
                for lease_id, reason in self.cancelled.items()
                if lease_id in named
            ),
            idle_reason=Reason(code=ReasonCode.NO_WORK, text="no work") if len(offers) < ask.want else None,
        )

    def _blob(self, name: str, content: bytes) -> BlobRef:
        digest = digest_of(content)
        self.blobs[digest] = content
        path = f"/v2/grid/inputs/blobs/{digest}"
        return BlobRef(name=name, digest=digest, size_bytes=len(content), path=path)

    async def _describe(self, request: web.Request) -> web.Response:
        port = self.grpc_port_told or self.grpc_port
        facts = {"name": self.name, "version": "0", "grpc_port": port, "grid_key": "11" * 32}
        return web.Response(text=json.dumps({**facts, "enrolment": "open", "max_blob_bytes": 1 << 30}))

    async def _get_blob(self, request: web.Request) -> web.Response:
        digest = Digest(request.match_info["digest"])
        if self.is_data_away:
            return web.Response(status=503)
        if digest in self.missing:
            return web.json_response({"errors": [{"code": "BLOB_UNKNOWN", "message": "gone"}]}, status=404)
        return web.Response(body=self.blobs[digest])

    async def _begin(self, request: web.Request) -> web.Response:
        lease_id = request.match_info["lease"]
        if lease_id in self.refuses_uploads:
            return web.Response(status=500)
        self.uploads_begun.append(lease_id)
        self.uploads[lease_id] = b""
        return web.Response(status=202, headers={"location": f"{request.path}u"})

    async def _patch(self, request: web.Request) -> web.Response:
        self.uploads[request.match_info["lease"]] += await request.read()
        return web.Response(status=202, headers={"location": request.path})

    async def _finish(self, request: web.Request) -> web.Response:
        lease_id = LeaseId(request.match_info["lease"])
        assert digest_of(self.uploads[lease_id]) == request.query["digest"]
        self.settled.add(lease_id)
        self.happened.append(f"{lease_id} done")
        self.changed.set()
        return web.Response(status=201)

    async def _get_half_done(self, request: web.Request) -> web.Response:
        if self.holds_up is not None:
            await self.holds_up.wait()
        return await self._get_blob(request)

    async def _begin_half_done(self, request: web.Request) -> web.Response:
        self.half_done[request.match_info["lease"]] = b""
        self.happened.append("begun")
        return web.Response(status=202, headers={"location": f"{request.path}u"})

    async def _where_half_done(self, request: web.Request) -> web.Response:
        last = max(0, len(self.half_done[request.match_info["lease"]]) - 1)
        return web.Response(status=204, headers={"location": request.path, "range": f"0-{last}"})

    async def _patch_half_done(self, request: web.Request) -> web.Response:
        if self.holds_up is not None:
            await self.holds_up.wait()
        self.half_done[request.match_info["lease"]] += await request.read()
        return web.Response(status=202, headers={"location": request.path})

    async def _finish_half_done(self, request: web.Request) -> web.Response:
        lease_id = request.match_info["lease"]
        assert digest_of(self.half_done[lease_id]) == request.query["digest"]
        self.happened.append("here")
        return web.Response(status=201)


def _order(claim: ReportClaim) -> UploadOrder:
    output = claim.outputs[0]
    return UploadOrder(
        lease_id=claim.lease_id,
        name=output.name,
        digest=output.digest,
        size_bytes=output.size_bytes,
        path=f"/v2/grid/outputs/{claim.lease_id}/blobs/uploads/",
    )


def _order_of(lease_id: LeaseId, offered: CheckpointRef) -> UploadOrder:
    return UploadOrder(
        lease_id=lease_id,
        name=CHECKPOINT_FILE,
        digest=offered.digest,
        size_bytes=offered.size_bytes,
        path=f"/v2/grid/checkpoints/{lease_id}/blobs/uploads/",
    )


async def _abort(context: Any, error: MemgridError) -> None:
    await context.abort(STATUS_BY_CODE[error.code], str(error), trailing_metadata=trailing_of(error))
