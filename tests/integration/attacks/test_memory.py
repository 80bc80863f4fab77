"""What a stranger claims, packs or repeats does not make the coordinator large."""

from __future__ import annotations

import asyncio
import gzip
from pathlib import Path

import grpc
import grpc.aio
import numpy as np
import pytest
from safetensors.numpy import save

from memgrid.endpoint import GridEndpoint
from memgrid.kinds.prefill import ModelGeometry
from memgrid.testing import SimulatedGpu
from memgrid.units import ReasonCode
from memgrid.v1 import campaigns_pb2, common_pb2
from memgrid_coordinator.app import Coordinator
from tests.grids import simulated_hosts, submit, work_on
from tests.integration.attacks.attackers import (
    TEXT,
    TWO,
    raw_line,
    refused_reason,
    standing,
    visitor,
    with_sketch,
)

GROWTH_MAX = 160 << 20
"""Each of these took a gigabyte, or would take more than there is, if it were believed; client and server are both in
this process, and what is sent counts, too."""
EMPTY_SUBMESSAGE = b"\x12\x00"
MESSAGE_BYTES = 8_000_000


class Peak:
    """By how much this process was larger in between than at the beginning."""

    def __enter__(self) -> Peak:
        Path("/proc/self/clear_refs").write_text("5")
        self._before = _bytes_of("VmHWM")
        return self

    def __exit__(self, *_: object) -> None:
        self.grown_bytes = _bytes_of("VmHWM") - self._before


def _bytes_of(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])


@pytest.fixture(autouse=True)
def _needs_proc() -> None:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("needs Linux to see a process's largest size")


async def _call(
    endpoint: GridEndpoint,
    method: str,
    message: bytes,
    *,
    token: str = "",
    compression: grpc.Compression | None = None,
) -> grpc.StatusCode:
    """Send some bytes as a call's message, whatever they are."""
    assert endpoint.certificate_pem is not None
    options = [("grpc.ssl_target_name_override", "memgrid.grid"), ("grpc.max_send_message_length", -1)]
    credentials = grpc.ssl_channel_credentials(endpoint.certificate_pem.encode())
    async with grpc.aio.secure_channel(endpoint.grpc_target, credentials, options=options) as channel:
        call = channel.unary_unary(f"/memgrid.v1.{method}")
        metadata = (("authorization", f"Bearer {token}"),) if token else None
        try:
            await call(message, metadata=metadata, compression=compression, timeout=60)
        except grpc.aio.AioRpcError as error:
            return error.code()
    return grpc.StatusCode.OK


async def test_message_of_a_million_parts_is_turned_down_unparsed(grid: tuple[Coordinator, GridEndpoint]) -> None:
    """Eight megabytes of empty submessages would take 230 MB when parsed; four at once a gigabyte.

    Who calls is asked before the message is read; a call that is open to all takes no more than a signed body; and a
    message's fields are counted before it is parsed.
    """
    coordinator, endpoint = grid
    before = await standing(coordinator)
    parts = EMPTY_SUBMESSAGE * (MESSAGE_BYTES // 2)
    async with simulated_hosts(endpoint, 1) as (host,):
        assert host.token is not None
        with Peak() as peak:
            for token in ("", host.token):
                calls = [_call(endpoint, "Volunteers/Sync", parts, token=token) for _ in range(2)]
                calls += [_call(endpoint, "Volunteers/Enrol", parts), _call(endpoint, "Campaigns/Submit", parts)]
                assert set(await asyncio.gather(*calls)) <= {INVALID, grpc.StatusCode.UNAUTHENTICATED}
        assert peak.grown_bytes < GROWTH_MAX
        assert (await host.sync()).acks == ()
    assert (await standing(coordinator)).units == before.units


INVALID = grpc.StatusCode.INVALID_ARGUMENT


async def test_packed_message_is_turned_down(grid: tuple[Coordinator, GridEndpoint]) -> None:
    """Eight kilobytes of gzip are eight megabytes of message, and a few more a gigabyte: cheap for one side only."""
    _, endpoint = grid
    small = EMPTY_SUBMESSAGE * (MESSAGE_BYTES // 2)
    large = common_pb2.Signed(type="x", body=bytes(100 << 20)).SerializeToString()
    with Peak() as peak:
        calls = [_call(endpoint, "Volunteers/Sync", small, compression=grpc.Compression.Gzip) for _ in range(8)]
        assert set(await asyncio.gather(*calls)) == {grpc.StatusCode.UNIMPLEMENTED}
    assert peak.grown_bytes < GROWTH_MAX
    assert await _call(endpoint, "Volunteers/Enrol", large, compression=grpc.Compression.Gzip) in (
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    )


async def test_packed_body_stays_packed(grid: tuple[Coordinator, GridEndpoint]) -> None:
    """A manifest that says it is gzip and would be a hundred megabytes: bytes are taken as they were sent."""
    coordinator, endpoint = grid
    secret = (coordinator.settings.data / "keys" / "operator.token").read_text().strip()
    bomb = gzip.compress(bytes(100 << 20))
    async with visitor(endpoint, secret) as http:
        with Peak() as peak:
            for encoding in ("gzip", "deflate", "gzip, gzip"):
                path, headers = "/v2/docs/one/manifests/latest", {"Content-Encoding": encoding}
                assert (await http.put(path, content=bomb, headers=headers)).status_code == 400
    assert peak.grown_bytes < GROWTH_MAX


async def test_claimed_sizes_are_not_allocated(
    grid: tuple[Coordinator, GridEndpoint], geometry: ModelGeometry
) -> None:
    """A sketch that says it has 2^60 elements, an output that says it has 2^62 bytes, an upload of as many."""
    coordinator, endpoint = grid
    await submit(coordinator, {"manual.txt": TEXT}, trust=TWO)
    ones = np.ones((geometry.layers, 2, 7), np.float32)
    sketch = save({"k": ones, "v": ones})
    length = int.from_bytes(sketch[:8], "little")
    header = sketch[8 : 8 + length].replace(b"[2,2,7]", b"[1152921504606846976]", 1)
    bomb = len(header).to_bytes(8, "little") + header + sketch[8 + length :]
    async with simulated_hosts(endpoint, 1) as (host,), raw_line(coordinator, endpoint) as (reader, writer):
        (offer,) = (await host.sync(want=1)).leases
        work = await work_on(coordinator, SimulatedGpu(geometry), offer)
        with Peak() as peak:
            assert await refused_reason(host, with_sketch(work, bomb)) is ReasonCode.BAD_SKETCH
            head = "PUT /v2/docs/one/manifests/latest HTTP/1.1\r\nHost: grid\r\nContent-Length: 4611686018427387904"
            writer.write(f"{head}\r\n\r\n".encode())
            assert (await reader.readline()).split()[1] in (b"401", b"413", b"400")
        assert peak.grown_bytes < GROWTH_MAX


async def test_heads_without_an_end_are_cut_off(grid: tuple[Coordinator, GridEndpoint]) -> None:
    """A request with a million headers, one header of a megabyte, or a path as long."""
    coordinator, endpoint = grid
    attempts = {
        "headers": (b"GET /healthz HTTP/1.1\r\nHost: grid\r\n", b"".join(b"X-%d: y\r\n" % n for n in range(100_000))),
        "one header": (b"GET /healthz HTTP/1.1\r\nHost: grid\r\nX: ", b"y" * 4_000_000),
        "path": (b"GET /", b"a" * 4_000_000),
    }
    with Peak() as peak:
        for name, (head, rest) in attempts.items():
            async with raw_line(coordinator, endpoint) as (reader, writer):
                writer.write(head + rest)
                try:
                    answer = await asyncio.wait_for(reader.readline(), 20)
                except ConnectionError:
                    continue
                assert not answer or answer.split()[1] == b"400", name
    assert peak.grown_bytes < GROWTH_MAX
    async with visitor(endpoint) as http:
        assert (await http.get("/healthz")).status_code == 200


async def test_deep_json_is_turned_down(grid: tuple[Coordinator, GridEndpoint]) -> None:
    """A manifest and a campaign that are a hundred thousand brackets: they would overrun the parser's stack."""
    coordinator, endpoint = grid
    secret = (coordinator.settings.data / "keys" / "operator.token").read_text().strip()
    deep = b"[" * 100_000
    async with visitor(endpoint, secret) as http:
        answer = await http.put("/v2/docs/one/manifests/latest", content=deep)
        assert answer.status_code == 400 and "Traceback" not in answer.text
    message = campaigns_pb2.SubmitRequest(request_id="r", campaign=deep[:60_000]).SerializeToString()
    assert await _call(endpoint, "Campaigns/Submit", message, token=secret) is INVALID
