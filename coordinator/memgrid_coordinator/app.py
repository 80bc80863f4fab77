"""Builds the coordinator and wires it; decides nothing."""

from __future__ import annotations

import asyncio
import json
import os
import random
import secrets
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Self

from memgrid.clock import Clock, SystemClock
from memgrid.log import get_logger
from memgrid.signing import SigningKey
from memgrid_coordinator.certificates import Certificate, certificate_for
from memgrid_coordinator.data_folder import Occupied
from memgrid_coordinator.heavy.measured import MeasuredEngine
from memgrid_coordinator.heavy.runner import Engine, InlineEngine
from memgrid_coordinator.metrics import Metrics
from memgrid_coordinator.rpc.server import RpcLimits, RpcServer, RpcServices
from memgrid_coordinator.services.advancing import Advancing
from memgrid_coordinator.services.assembling import Assembling
from memgrid_coordinator.services.bell import Bell
from memgrid_coordinator.services.campaigns import Campaigns
from memgrid_coordinator.services.catalogue import Catalogue
from memgrid_coordinator.services.collecting import Collecting, CollectRule
from memgrid_coordinator.services.door import Door, rules_of
from memgrid_coordinator.services.enrolment import EnrolmentService
from memgrid_coordinator.services.expiring import Expiring
from memgrid_coordinator.services.explaining import Explaining
from memgrid_coordinator.services.finishing import Finishing
from memgrid_coordinator.services.gauging import Gauging
from memgrid_coordinator.services.granting import Granting
from memgrid_coordinator.services.healing import Healing
from memgrid_coordinator.services.judging import Judging
from memgrid_coordinator.services.leasing import Leasing
from memgrid_coordinator.services.looking import Looking
from memgrid_coordinator.services.models import ModelFolders, Models
from memgrid_coordinator.services.ordering import JudgingRule
from memgrid_coordinator.services.overhearing import Overhearing
from memgrid_coordinator.services.overview import Overview
from memgrid_coordinator.services.planning import Planning
from memgrid_coordinator.services.publishing import Publishing
from memgrid_coordinator.services.pulls import Pulls
from memgrid_coordinator.services.scrubbing import EVERY as SCRUB_EVERY
from memgrid_coordinator.services.scrubbing import Scrubbing
from memgrid_coordinator.services.teams import Teams
from memgrid_coordinator.services.tokens import Tokens
from memgrid_coordinator.services.tolerances import ModelTolerances
from memgrid_coordinator.services.travelling import Travelling
from memgrid_coordinator.services.uploads import UploadLimits, Uploads
from memgrid_coordinator.services.working import Working
from memgrid_coordinator.settings import Settings
from memgrid_coordinator.store.blob_places import blobs_of, folders_of
from memgrid_coordinator.store.blobs import BlobStore
from memgrid_coordinator.store.engine import Store
from memgrid_coordinator.sweeps.schedule import Sweeps
from memgrid_coordinator.web.bodies import Pace
from memgrid_coordinator.web.facts import GridFacts
from memgrid_coordinator.web.listening import ConnectionLimits
from memgrid_coordinator.web.server import WebServer, WebServices

log = get_logger(__name__)
GAUGES_EVERY = timedelta(seconds=10)
PULLS_EVERY = timedelta(seconds=5)


def new_id() -> str:
    """128 random bits: ids can't be guessed, and never collide."""
    return secrets.token_hex(16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a running coordinator is found."""

    url: str
    grpc_port: int
    http_port: int
    fingerprint: str | None


class Coordinator:
    """One process: control plane, data plane, sweeps, checks.

    Use it as `async with Coordinator(settings) as coordinator: await coordinator.until_stopped()`.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Clock | None = None,
        engine: Engine | None = None,
        replays: Engine | None = None,
    ) -> None:
        self.settings = settings
        self.clock: Clock = clock or SystemClock()
        settings.data.mkdir(parents=True, exist_ok=True)
        # Before anything is opened: two writers would not know of each other's uploads and half-made files.
        self._occupied = Occupied(settings.data)
        with ExitStack() as opened:
            opened.callback(self._occupied.release)
            self._open(settings, opened, engine, replays)
            opened.pop_all()  # from here on `stop` closes them

    def _open(self, settings: Settings, opened: ExitStack, engine: Engine | None, replays: Engine | None) -> None:
        settings.keys.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.metrics = Metrics()
        self.certificate: Certificate = certificate_for(settings, self.clock)
        self.metrics.build_info.labels(version("memgrid")).set(1)
        self.metrics.certificate_expires_s.set(self.certificate.expires_at().timestamp())
        self.grid_key = SigningKey.load_or_create(settings.keys / "grid.key")
        self.store = Store(settings.database_url, observer=self.metrics.observe_batch)
        opened.callback(self.store.close)
        self.blobs = blobs_of(settings)
        if settings.blobs_url is None:  # elsewhere, what is half-written may be another coordinator's
            self.blobs.clear_temporary()
        self._owns_engine = engine is None
        ours = engine or self._engine()
        self.engine: Engine = MeasuredEngine(ours, self.metrics.observe_engine)
        # Replays take seconds: a lane of their own, so that nothing quick waits for them.
        self._owns_replays = replays is None and settings.ray is None
        lane = replays or (InlineEngine(processes=1) if self._owns_replays else ours)
        self.replays: Engine = MeasuredEngine(lane, self.metrics.observe_engine)
        self.metrics.watch_engine("all" if lane is ours else "quick", lambda: ours.load)
        if lane is not ours:
            self.metrics.watch_engine("replays", lambda: lane.load)
        self._build_services()
        self._stopped = asyncio.Event()

    def _engine(self) -> Engine:
        if self.settings.ray is None:
            return InlineEngine()
        from memgrid_coordinator.heavy.ray_engine import RayEngine  # Ray takes a second to import

        return RayEngine(self.settings.ray, folders=folders_of(self.settings))

    def _build_services(self) -> None:
        settings, clock, store, metrics = self.settings, self.clock, self.store, self.metrics
        self.tokens = Tokens(settings.keys)
        door = Door(rules_of(settings), clock=clock, metrics=metrics)
        self.enrolment = EnrolmentService(
            store=store, settings=settings, clock=clock, tokens=self.tokens, door=door, new_id=new_id
        )
        self.teams = Teams(store=store, clock=clock, door=door, answer=self.enrolment.answer, new_id=new_id)
        bell, catalogue = Bell(), Catalogue()
        self.tolerances = ModelTolerances(store, self.blobs)
        self.bell = bell
        rule = JudgingRule.of(settings, self.grid_key)
        model_folders = ModelFolders(store, catalogue, self.blobs, settings.scratch / "models")
        self.judging = Judging(
            store=store,
            clock=clock,
            metrics=metrics,
            catalogue=catalogue,
            tolerances=self.tolerances,
            bell=bell,
            blobs=self.blobs,
            engine=self.engine,
            replays=self.replays,
            models=model_folders,
            rule=rule,
        )
        self.travelling = Travelling(
            store=store,
            clock=clock,
            metrics=metrics,
            catalogue=catalogue,
            blobs=BlobStore(settings.checkpoints),
            ordering=rule,
            rule=settings.travel,
        )
        self.leasing = Leasing(
            store=store,
            settings=settings,
            clock=clock,
            metrics=metrics,
            catalogue=catalogue,
            bell=bell,
            door=door,
            judging=self.judging,
            granting=Granting(
                settings=settings, blobs=self.blobs, rule=rule, new_id=new_id, rng=random.SystemRandom()
            ),
            rule=rule,
            travelling=self.travelling,
        )
        self.publishing = Publishing(store, self.blobs, clock)
        self.pulls = Pulls(store, clock, metrics)
        self.overview = Overview(store=store, clock=clock, blobs=self.blobs, publishing=self.publishing)
        planning = Planning(
            store=store,
            settings=settings,
            clock=clock,
            blobs=self.blobs,
            engine=self.engine,
            models=Models(self.publishing, self.blobs, settings.scratch / "models"),
            publishing=self.publishing,
        )
        self.campaigns = Campaigns(
            store=store,
            clock=clock,
            planning=planning,
            catalogue=catalogue,
            judging=self.judging,
            bell=bell,
            rule=rule,
            new_id=new_id,
        )
        self._build_recipes(bell, catalogue, model_folders, rule)
        self.uploads = Uploads(
            store=store,
            blobs=self.blobs,
            judging=self.judging,
            travelling=self.travelling,
            checkpoints=self.travelling.blobs,
            clock=clock,
            folder=settings.data / "uploads",
            new_id=new_id,
            limits=UploadLimits(blob_bytes_max=settings.blob_bytes_max, reserve_bytes=settings.disk_reserve_bytes),
        )
        self._build_sweeps(bell, rule)

    def _build_recipes(self, bell: Bell, catalogue: Catalogue, models: ModelFolders, rule: JudgingRule) -> None:
        """What takes documents to their cubes."""
        store, clock, blobs = self.store, self.clock, self.blobs
        looking = Looking(store=store, clock=clock, blobs=blobs, catalogue=catalogue)
        working = Working(
            blobs=blobs,
            engine=self.engine,
            replays=self.replays,
            models=models,
            folder=self.settings.scratch / "making",
        )
        working.clear()
        assembling = Assembling(
            store=store,
            settings=self.settings,
            blobs=blobs,
            engine=self.engine,
            looking=looking,
            tolerances=self.tolerances,
            grid_key=self.grid_key,
        )
        finishing = Finishing(
            store=store,
            clock=clock,
            metrics=self.metrics,
            blobs=blobs,
            looking=looking,
            assembling=assembling,
            publishing=self.publishing,
            judging=self.judging,
            rule=rule,
        )
        self.advancing = Advancing(
            store=store,
            clock=clock,
            bell=bell,
            judging=self.judging,
            looking=looking,
            working=working,
            finishing=finishing,
            rule=rule,
        )

    def _build_sweeps(self, bell: Bell, rule: JudgingRule) -> None:
        settings, store, clock, metrics = self.settings, self.store, self.clock, self.metrics
        expiring = Expiring(store=store, clock=clock, metrics=metrics, judging=self.judging, rule=rule)
        gauging = Gauging(store=store, clock=clock, metrics=metrics, blobs=self.blobs)
        self.sweeps = Sweeps(metrics)
        self.sweeps.add("leases", expiring.expire_due, settings.sweep_every)
        if not store.is_file:  # nobody else has a file of ours open
            self.sweeps.add("overhearing", Overhearing(store, bell).listen, settings.sweep_every)
        self.sweeps.add("judging", self.judging.catch_up, settings.recover_every)
        self.sweeps.add("documents", self.advancing.advance, settings.sweep_every)
        self.sweeps.add("uploads", self.uploads.remove_stale, timedelta(minutes=10))
        self.sweeps.add("pulls", self.pulls.save, PULLS_EVERY)
        self._build_upkeep()
        self.sweeps.add("gauges", gauging.refresh, GAUGES_EVERY)

    def _build_upkeep(self) -> None:
        """What keeps the content store small and whole."""
        settings, store, clock, metrics = self.settings, self.store, self.clock, self.metrics
        rule = CollectRule(every=settings.gc_every, grace=settings.gc_grace, keep_failed=settings.gc_keep_failed)
        self.collecting = Collecting(store=store, blobs=self.blobs, clock=clock, rule=rule, metrics=metrics)
        self.healing = Healing(store=store, clock=clock, keep_failed=settings.gc_keep_failed, bell=self.bell)
        self.scrubbing = Scrubbing(
            store=store,
            blobs=self.blobs,
            healing=self.healing,
            clock=clock,
            bytes_per_s=settings.scrub_bytes_per_s,
            mark=settings.data / "scrub.json",
            metrics=metrics,
        )
        self.sweeps.add("gc", self.collecting.collect, timedelta(minutes=1))
        self.sweeps.add("checkpoints", self.travelling.collect, timedelta(minutes=1))
        self.sweeps.add("scrub", self.scrubbing.scrub, SCRUB_EVERY)

    async def start(self) -> Address:
        """Open both planes and begin the sweeps."""
        settings, certificate = self.settings, self.certificate
        services = RpcServices(
            enrolment=self.enrolment,
            leasing=self.leasing,
            campaigns=self.campaigns,
            explaining=Explaining(self.store),
            overview=self.overview,
            teams=self.teams,
        )
        limits = RpcLimits(
            connections_max=settings.grpc_connections_max,
            handshake_max_s=settings.handshake_max.total_seconds(),
            idle_max_s=settings.grpc_idle_max.total_seconds(),
        )
        self.rpc = RpcServer(services, self.metrics, limits)
        self._grpc_port = await self.rpc.start(
            f"{settings.host}:{settings.grpc_port}",
            key_pem=certificate.key.read_bytes(),
            chain_pem=certificate.chain.read_bytes(),
        )
        self.web = WebServer(self._web_services(), self._web_limits())
        self._http_port = await self.web.start(settings.host, settings.http_port, certificate.context())
        self.sweeps.start()
        address = Address(
            url=self._url(),
            grpc_port=self._grpc_port,
            http_port=self._http_port,
            fingerprint=certificate.fingerprint,
        )
        _write_endpoint(settings.data / "endpoint.json", address)
        log.info("coordinator ready", url=address.url, grpc_port=self._grpc_port)
        return address

    def _web_services(self) -> WebServices:
        return WebServices(
            identify=self.enrolment.identify,
            publishing=self.publishing,
            uploads=self.uploads,
            travelling=self.travelling,
            pulls=self.pulls,
            metrics=self.metrics,
            clock=self.clock,
            facts=self._facts,
            not_ready=lambda: "draining" if self._stopped.is_set() else None,
            overview=self.overview,
            pace=Pace(
                silence_max_s=self.settings.http_silence_max.total_seconds(),
                bytes_per_s_min=self.settings.http_bytes_per_s_min,
            ),
        )

    def _web_limits(self) -> ConnectionLimits:
        settings = self.settings
        return ConnectionLimits(
            connections_max=settings.http_connections_max,
            per_address_max=settings.http_connections_per_address_max,
            handshake_max_s=settings.handshake_max.total_seconds(),
            idle_max_s=settings.http_idle_max.total_seconds(),
            silence_max_s=settings.http_silence_max.total_seconds(),
        )

    def _facts(self) -> GridFacts:
        return GridFacts(
            name=self.settings.name,
            version=version("memgrid"),
            grpc_port=self._grpc_port,
            grid_key=self.grid_key.public_key.hex(),
            enrolment="invite" if self.settings.invite_only else "open",
            max_blob_bytes=self.settings.blob_bytes_max,
            url=self._url(),
        )

    def _url(self) -> str:
        """What people are given: where the grid is, and the certificate to expect there."""
        name, fingerprint = self.settings.public_name or self.settings.host, self.certificate.fingerprint
        return f"https://{name}:{self._http_port}" + (f"#sha256={fingerprint}" if fingerprint else "")

    async def stop(self) -> None:
        """Drain: refuse new leases with a reason, finish what is in hand, then close everything."""
        log.info("coordinator draining")
        self._stopped.set()
        self.leasing.drain()
        self.campaigns.drain()
        self.sweeps.stop()
        await self.advancing.close()
        drain_s = self.settings.drain_max.total_seconds()
        await self.rpc.stop(drain_s)
        await self.web.stop()
        await self.overview.close()
        await self.pulls.save()
        try:
            async with asyncio.timeout(drain_s):
                await self.judging.close()
        except TimeoutError:
            log.warning("checks were cut off; they are taken up at the next start")
        if self._owns_engine:
            await self.engine.close(self.settings.drain_max)
        if self._owns_replays:
            await self.replays.close(self.settings.drain_max)
        self.store.close()
        (self.settings.data / "endpoint.json").unlink(missing_ok=True)
        self._occupied.release()
        log.info("coordinator stopped")

    async def _abandon(self) -> None:
        """Let go of what was opened before the start failed: a port that is taken, say."""
        await self.rpc.stop(0.0)
        if self._owns_engine:
            await self.engine.close(timedelta(0))
        if self._owns_replays:
            await self.replays.close(timedelta(0))
        self.store.close()
        self._occupied.release()

    async def __aenter__(self) -> Self:
        try:
            self.address = await self.start()
        except BaseException:
            await self._abandon()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def request_stop(self) -> None:
        """What a signal does: `until_stopped` returns, and leaving the block drains."""
        self._stopped.set()

    async def until_stopped(self) -> None:
        await self._stopped.wait()


def _write_endpoint(path: Path, address: Address) -> None:
    """Tell scripts where the coordinator is; whole or not at all."""
    content = {"url": address.url, "grpc_port": address.grpc_port, "pid": os.getpid()}
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(content) + "\n")
    temporary.replace(path)
