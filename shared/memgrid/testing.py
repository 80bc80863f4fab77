"""Hosts that only pretend to compute, over the real protocol; for tests, simulations and load."""

from __future__ import annotations

import asyncio
import hashlib
import random
import tempfile
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import grpc.aio
import httpx
import numpy as np
import numpy.typing as npt
from safetensors import TensorSpec, serialize

from memgrid import wire
from memgrid.channel import TICKET_KEY, open_channel, told_wait_s
from memgrid.digest import Digest, digest_of
from memgrid.endpoint import GridEndpoint, async_http_client
from memgrid.enrolment import EnrolAsk, LogInAsk
from memgrid.errors import BusyError
from memgrid.kinds.prefill import KV_FORMAT, ModelGeometry
from memgrid.kinds.sketch import sketch_file
from memgrid.signing import ENROL_TYPE, LOGIN_TYPE, REPORTS_TYPE, SignedBody, SigningKey
from memgrid.specs import PrefillSpec
from memgrid.testing_faults import Faults as Faults
from memgrid.testing_gpu import FakeNvml as FakeNvml
from memgrid.units import (
    NO_WISHES,
    ComputeDtype,
    DeviceFacts,
    HeldLease,
    HostFacts,
    HostId,
    LeaseId,
    LeaseOffer,
    Output,
    Release,
    ReportClaim,
    SessionId,
    StoreDtype,
    SyncAnswer,
    SyncAsk,
    UnitKey,
    UploadOrder,
    Wishes,
    WorkFacts,
)
from memgrid.v1 import volunteers_pb2 as pb
from memgrid.v1 import volunteers_pb2_grpc as pb_grpc

Array = npt.NDArray[Any]
Value = TypeVar("Value")
FACTS = HostFacts(
    os="linux",
    arch="x86_64",
    cpu_count=2,
    memory_bytes=8 << 30,
    devices=(DeviceFacts(kind="cpu", name="simulated", memory_bytes=8 << 30, numerics_class="simulated/1"),),
    client_version="0",
    isolation="none",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedWork:
    """What a simulated host has to show for a lease."""

    claim: ReportClaim
    sketch: bytes
    content: bytes


class SimulatedGpu:
    """Makes up caches that have the right form: the same unit gives the same bytes on every host.

    `noise` moves every number by so much, relatively; `bias` is a wrong model.
    """

    def __init__(self, geometry: ModelGeometry, *, noise: float = 0.0, bias: float = 0.0, seed: int = 0) -> None:
        self._geometry = geometry
        self._noise = noise
        self._bias = bias
        self._rng = np.random.default_rng(seed)
        self._done: dict[UnitKey, SimulatedWork] = {}

    def work(self, offer: LeaseOffer, tokens: bytes | None = None) -> SimulatedWork:
        """The answer to a lease; `tokens` are the unit's token ids, if they matter to whoever looks at the file."""
        spec = PrefillSpec.from_bytes(offer.spec)
        content = self._cache(spec, offer.unit_key, tokens or bytes(4 * spec.token_count))
        with tempfile.NamedTemporaryFile(suffix=".safetensors") as file:
            file.write(content)
            file.flush()
            sketch = sketch_file(Path(file.name), offer.unit_key)
        return SimulatedWork(claim=claim_for(offer, spec, content, sketch), sketch=sketch, content=content)

    def _cache(self, spec: PrefillSpec, key: UnitKey, tokens: bytes) -> bytes:
        shape = (self._geometry.kv_heads, spec.token_count, self._geometry.head_dim)
        truth = np.random.default_rng(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]))
        arrays: dict[str, tuple[str, Array]] = {"tokens": ("int32", np.frombuffer(tokens, dtype="<i4"))}
        for layer in range(self._geometry.layers):
            for half in "kv":
                values = truth.standard_normal(shape, dtype=np.float32)
                values += np.float32(self._bias) * truth.standard_normal(shape, dtype=np.float32)
                values += np.float32(self._noise) * self._rng.standard_normal(shape, dtype=np.float32)
                arrays[f"l{layer}.{half}"] = (spec.store_dtype.value, _stored(values, spec.store_dtype))
        specs = {
            name: TensorSpec(dtype=dtype, shape=array.shape, data_ptr=array.ctypes.data, data_len=array.nbytes)
            for name, (dtype, array) in arrays.items()
        }
        return bytes(serialize(specs, {"format": KV_FORMAT}))


def claim_for(offer: LeaseOffer, spec: PrefillSpec, content: bytes, sketch: bytes) -> ReportClaim:
    """An honest report on some output."""
    return ReportClaim(
        lease_id=offer.lease_id,
        fence=offer.fence,
        unit_key=offer.unit_key,
        outputs=(Output(name="kv.safetensors", digest=digest_of(content), size_bytes=len(content)),),
        sketch_digest=digest_of(sketch),
        facts=WorkFacts(
            tokens=spec.token_count,
            compute_s=0.01,
            device_kind="cpu",
            numerics_class="simulated/1",
            compute_dtype=ComputeDtype.FLOAT32 if spec.compute_dtype is ComputeDtype.AUTO else spec.compute_dtype,
            torch_version="0",
        ),
    )


def _stored(values: Array, dtype: StoreDtype) -> Array:
    """The numbers as they lie in the file; numpy has no bfloat16, so that one is its bits."""
    if dtype is StoreDtype.BFLOAT16:
        return (values.view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(dtype.value)


@dataclass(slots=True, kw_only=True, eq=False)
class SimulatedHost:
    """A host that speaks the real protocol with a real key, and does as it is told by a test."""

    endpoint: GridEndpoint
    key: SigningKey = field(default_factory=SigningKey.generate)
    label: str = "simulated"
    facts: HostFacts = FACTS
    host_id: HostId = field(init=False)
    session_id: SessionId = field(init=False)
    token: str | None = None
    sequence: int = 0
    turned_away: int = 0
    """How often the grid had its hands full; the host came back when it was told to."""
    _ticket: str = ""
    _rng: random.Random = field(default_factory=random.Random)
    _channel: grpc.aio.Channel | None = None

    @property
    def stub(self) -> pb_grpc.VolunteersAsyncStub:
        if self._channel is None:
            self._channel = open_channel(self.endpoint, lambda: self.token)
        stub: pb_grpc.VolunteersAsyncStub = pb_grpc.VolunteersStub(self._channel)
        return stub

    async def enrol(self, invite_code: str = "") -> None:
        """Become known to the grid, and log in."""
        await self._patiently(lambda: self._enrol(invite_code))
        await self.log_in()

    async def log_in(self) -> None:
        await self._patiently(self._log_in)

    async def _enrol(self, invite_code: str) -> None:
        nonce = await self._nonce()
        ask = EnrolAsk(nonce=nonce, host_label=self.label, facts=self.facts, invite_code=invite_code)
        signed = self.key.sign(ENROL_TYPE, wire.enrol_to_body(ask))
        enrolled = wire.enrolment_from_message(await self.stub.Enrol(wire.signed_to_message(signed)))
        self.host_id = enrolled.host_id

    async def _log_in(self) -> None:
        ask = LogInAsk(nonce=await self._nonce(), host_id=self.host_id, facts=self.facts)
        signed = self.key.sign(LOGIN_TYPE, wire.log_in_to_body(ask))
        session = wire.session_from_message(await self.stub.LogIn(wire.signed_to_message(signed)))
        self.session_id, self.token, self.sequence = session.session_id, session.token, 0

    async def sync(
        self,
        *,
        want: int = 0,
        held: Iterable[LeaseOffer] = (),
        awaiting: Sequence[LeaseId] = (),
        work: Sequence[SimulatedWork] = (),
        released: Sequence[Release] = (),
        wait: timedelta = timedelta(0),
        wishes: Wishes = NO_WISHES,
    ) -> SyncAnswer:
        """One Sync as an honest host makes it."""
        self.sequence += 1
        ask = SyncAsk(
            sequence=self.sequence,
            held=tuple(HeldLease(lease_id=one.lease_id, fence=one.fence, progress=0.0) for one in held),
            awaiting=tuple(awaiting),
            reports=(),
            sketches={Digest(one.claim.sketch_digest): one.sketch for one in work},
            released=tuple(released),
            want=want,
            wait=wait,
            wishes=wishes,
        )
        signed = self.signed([one.claim for one in work]) if work else None
        return await self.send(ask, signed)

    def signed(self, claims: Iterable[ReportClaim]) -> SignedBody:
        """Reports as this host signs them for its present sync."""
        body = wire.reports_to_body(
            host_id=self.host_id, session_id=self.session_id, sequence=self.sequence, reports=claims
        )
        return self.key.sign(REPORTS_TYPE, body)

    async def send(self, ask: SyncAsk, signed: SignedBody | None) -> SyncAnswer:
        request = wire.sync_ask_to_message(ask, signed)
        message: pb.SyncResponse = await self._patiently(lambda: self.stub.Sync(request))
        return wire.sync_answer_from_message(message)

    async def upload(self, order: UploadOrder, content: bytes) -> httpx.Response:
        """Send an ordered output in one piece; the last answer of the data plane."""
        async with async_http_client(self.endpoint, self.token) as http:
            begun = await http.post(order.path)
            if begun.status_code != 202:
                return begun
            location = begun.headers["location"]
            joiner = "&" if "?" in location else "?"
            return await http.put(f"{location}{joiner}digest={order.digest}", content=content)

    async def close(self) -> None:
        if self._channel is not None:
            await self._channel.close()
            self._channel = None

    async def _nonce(self) -> bytes:
        metadata = ((TICKET_KEY, self._ticket),) if self._ticket else None
        challenge = await self.stub.GetChallenge(pb.GetChallengeRequest(), metadata=metadata)
        return wire.challenge_from_message(challenge).nonce

    async def _patiently(self, call: Callable[[], Awaitable[Value]]) -> Value:
        """Ask until the grid has time."""
        while True:
            try:
                answer = await call()
            except BusyError as busy:
                self.turned_away += 1
                self._ticket = busy.ticket
                await asyncio.sleep(told_wait_s(busy, self._rng))
            else:
                self._ticket = ""
                return answer
