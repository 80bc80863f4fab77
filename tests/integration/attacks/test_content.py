"""Uploads and sketches that are bombs, lies or not what was reported."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from memgrid.endpoint import GridEndpoint
from memgrid.errors import InvalidError, TooLargeError
from memgrid.kinds.prefill import ModelGeometry
from memgrid.testing import SimulatedGpu, SimulatedWork
from memgrid.units import LeaseOffer, ReasonCode, UnitKey
from memgrid_coordinator.app import Coordinator
from tests.grids import simulated_hosts, submit, work_on
from tests.integration.attacks.attackers import (
    CHUNKS,
    TWO,
    colluders,
    lease_states,
    ordered,
    refused_reason,
    standing,
    verdict_on,
    visitor,
    with_content,
    with_sketch,
)
from tests.integration.attacks.hostile_files import LIES, NUMBERS, SKETCHES, TENSOR_BOMBS, Spoil

LONG = "".join(f"Valve {number} opens at {number * 7 % 11} bar. " for number in range(80))
"""No two chunks of it are alike: equal ones would be one unit."""
MANY_UNITS = {"trust": TWO, "activation": {**CHUNKS, "chunk_tokens": 16}}


async def test_tensor_bombs_are_seen_by_their_headers(
    grid: tuple[Coordinator, GridEndpoint], geometry: ModelGeometry
) -> None:
    """Two colluders report a file whose header claims 2^60 elements, to have the grid allocate them, or stumble.

    Headers are bounded and read as JSON; sizes have to fit the bytes that are there, before anything is allocated.
    """
    await _expect(grid, geometry, TENSOR_BOMBS)


async def test_dtype_and_shape_lies_are_refused(
    grid: tuple[Coordinator, GridEndpoint], geometry: ModelGeometry
) -> None:
    """Two colluders report a file of the right size whose header says something else than the unit asks for.

    Names, dtypes, shapes and tokens of a unit's output follow from its spec; each file is held against them. What is
    said about the refusal can be stored and sent, whatever words the header had.
    """
    await _expect(grid, geometry, LIES)


async def test_nan_inf_and_odd_numbers_are_refused(
    grid: tuple[Coordinator, GridEndpoint], geometry: ModelGeometry
) -> None:
    """Two colluders report a cache with one number in it that is none, or is not what they reported.

    Every exponent is looked at; and the file has to yield the very sketch that was reported.
    """
    await _expect(grid, geometry, NUMBERS)


async def _expect(
    grid: tuple[Coordinator, GridEndpoint], geometry: ModelGeometry, cases: dict[str, tuple[Spoil, ReasonCode]]
) -> None:
    """Each case by two accounts of its own, against a unit of its own; nothing may come of it."""
    coordinator, endpoint = grid
    await submit(coordinator, {"manual.txt": LONG}, **MANY_UNITS)
    gpu, tried = SimulatedGpu(geometry), set[UnitKey]()
    before = await standing(coordinator)
    for name, (spoil, expected) in cases.items():
        async with colluders(endpoint) as pair:

            async def spoilt(offer: LeaseOffer, spoil: Spoil = spoil) -> SimulatedWork:
                work = await work_on(coordinator, gpu, offer)
                return with_content(work, spoil(work.content))

            host, order, work = await ordered(coordinator, pair, spoilt, tried=tried)
            assert (await host.upload(order, work.content)).status_code == 201
            verdict = await verdict_on(host, order.lease_id)
            assert (verdict.verdict, verdict.reason.code, verdict.credit_flops) == ("rejected", expected, 0), name
            state, reason = await lease_states(coordinator, order.lease_id)
            assert state == "rejected" and reason is not None and reason.code is expected
    after = await standing(coordinator)
    assert (after.credit_lines, after.accepted, after.cubes) == (before.credit_lines, before.accepted, before.cubes)


async def test_hostile_sketches_are_refused_at_the_door(
    grid: tuple[Coordinator, GridEndpoint], geometry: ModelGeometry
) -> None:
    """A sketch that comes inside a report is a bomb or a lie, to stop the call that serves everybody.

    Sketches have a size that follows from the unit; their headers are held against it; each refusal is typed, ends
    the lease, and gives the unit to somebody else.
    """
    coordinator, endpoint = grid
    gpu = SimulatedGpu(geometry)
    before = await standing(coordinator)
    for number, (name, (spoil, expected)) in enumerate(SKETCHES.items()):
        if number % 6 == 0:  # a unit that fails a dozen times is given up, and with it its document
            text, again = f"Page {number}. {LONG}", {"request_id": f"request-{number}", "name": f"book-{number}"}
            await submit(coordinator, {"manual.txt": text}, **again, **MANY_UNITS)
        async with simulated_hosts(endpoint, 1) as (host,):
            answer = await host.sync(want=1)
            assert answer.leases, (name, answer.idle_reason)
            offer = answer.leases[0]
            work = await work_on(coordinator, gpu, offer)
            assert await refused_reason(host, with_sketch(work, spoil(work.sketch))) is expected, name
            assert (await lease_states(coordinator, offer.lease_id))[0] == "rejected"
    after = await standing(coordinator)
    assert (after.credit_lines, after.accepted, after.cubes) == (before.credit_lines, before.accepted, before.cubes)


async def test_oversize_is_refused_before_it_is_read(
    grid: tuple[Coordinator, GridEndpoint], geometry: ModelGeometry
) -> None:
    """The attacker fills the grid's disk and memory: by an output of a terabyte, an upload longer than was ordered,
    one without an end, a sketch of megabytes, a name of kilobytes, more reports than anybody has.

    Every length is held against its limit before what it announces is read; an upload ends where its order does.
    """
    coordinator, endpoint = grid
    await submit(coordinator, {"manual.txt": LONG}, **MANY_UNITS)
    gpu = SimulatedGpu(geometry)
    async with simulated_hosts(endpoint, 1) as (host,):
        (offer,) = (await host.sync(want=1)).leases
        work = await work_on(coordinator, gpu, offer)
        before = await standing(coordinator)
        claim = work.claim
        endless = replace(claim, outputs=(replace(claim.outputs[0], size_bytes=1 << 40),))
        long_name = replace(claim, outputs=(replace(claim.outputs[0], name="x" * 5000),))
        for changed in (long_name, replace(claim, outputs=claim.outputs * 200)):
            with pytest.raises(InvalidError):
                await host.sync(work=[replace(work, claim=changed)])
        with pytest.raises(InvalidError):
            await host.sync(work=[with_sketch(work, bytes(3 << 20))])
        with pytest.raises((InvalidError, TooLargeError)):
            await host.sync(work=[work] * 300)
        assert await refused_reason(host, replace(work, claim=endless)) is ReasonCode.WRONG_OUTPUTS
        assert (await standing(coordinator)).blobs == before.blobs
    async with colluders(endpoint) as pair:
        host, order, work = await ordered(coordinator, pair, lambda offer: work_on(coordinator, gpu, offer))
        before = await standing(coordinator)
        for content, code in ((work.content + b"x", "upload_too_large"), (work.content[:-1], "upload_truncated")):
            answer = await host.upload(order, content)
            assert answer.json()["errors"][0]["detail"]["reason"] == code

        async def endlessly() -> AsyncIterator[bytes]:
            for _ in range(1000):
                yield bytes(1 << 16)

        async with visitor(endpoint, host.token) as http:
            location = (await http.post(order.path)).headers["location"]
            answer = await http.patch(location, content=endlessly())
            assert (answer.status_code, answer.json()["errors"][0]["detail"]["reason"]) == (413, "upload_too_large")
        partials = list((coordinator.settings.data / "uploads").glob("*.part"))
        assert sum(path.stat().st_size for path in partials) <= len(work.content)
        assert await standing(coordinator) == before
        assert (await host.upload(order, work.content)).status_code == 201, "the order stands for the true bytes"
