"""Take documents a step further whenever something they waited for has happened, and end campaigns that are over.

What follows for a document is a pure function of what is stored (`recipes/`). Here it is carried out, each step in
one transaction that first looks whether the document still stands where it was seen: a crash anywhere, or two that
do the same, repeat harmlessly.
"""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta

from sqlalchemy import Connection

from memgrid.clock import Clock
from memgrid.errors import InvalidError, UnavailableError
from memgrid.kinds.refusal import RefusedError
from memgrid.log import get_logger
from memgrid.units import Reason, ReasonCode
from memgrid_coordinator.lifecycle import CAMPAIGN_MOVES
from memgrid_coordinator.metrics import UNIT_KINDS
from memgrid_coordinator.policy.life import Withdrawn
from memgrid_coordinator.recipes import recipe_of
from memgrid_coordinator.recipes.steps import Failed, MoreUnits, Publish, Seen, Step, Wait, Work
from memgrid_coordinator.records import CampaignId, Event, Made
from memgrid_coordinator.services.asking import ask_for
from memgrid_coordinator.services.bell import Bell
from memgrid_coordinator.services.finishing import Finishing
from memgrid_coordinator.services.judging import Judging
from memgrid_coordinator.services.looking import Looking, is_unchanged
from memgrid_coordinator.services.ordering import JudgingRule
from memgrid_coordinator.services.settling import Settlement, settle
from memgrid_coordinator.services.working import Working
from memgrid_coordinator.store import campaigns, events
from memgrid_coordinator.store.engine import Store

log = get_logger(__name__)
DOCUMENTS_AT_ONCE = 16
"""Documents of one kind that one run of the sweep takes up: the next run comes soon."""
LOOK_EVERY = timedelta(seconds=30)
"""How often all documents are looked at, whatever was heard: a run may have been cut off, a budget spent."""
_OVERLAP = timedelta(minutes=1)
"""A unit may be stored as settled at a time before the last look, by a step that had to wait."""
_STEPS_MAX = 8
_RETRY_AFTER = timedelta(seconds=20)


class Advancing:
    """The sweep that carries out what recipes say."""

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        bell: Bell,
        judging: Judging,
        looking: Looking,
        working: Working,
        finishing: Finishing,
        rule: JudgingRule,
    ) -> None:
        self._store = store
        self._clock = clock
        self._bell = bell
        self._judging = judging
        self._looking = looking
        self._working = working
        self._finishing = finishing
        self._rule = rule
        self._look_at = clock.now()
        self._looked_at: datetime | None = None
        self._due: dict[int, datetime] = {}
        """Documents to look at again at a time of their own."""
        self._tasks: dict[int, asyncio.Task[None]] = {}
        """Documents for which something is being made."""
        self._is_closing = False

    async def advance(self) -> int:
        """Do what follows, a bounded amount; returns how many documents and campaigns moved.

        It looks when a unit has ended since, and now and then all the same.
        """
        now = self._clock.now()
        everything = now >= self._look_at
        due = [document_id for document_id, at in self._due.items() if at <= now]
        if not self._judging.take_progress() and not everything and not due:
            return 0
        since = None if everything or self._looked_at is None else self._looked_at - _OVERLAP
        if everything:
            self._look_at = now + LOOK_EVERY
        found, is_more = await self._store.read(lambda connection: _to_look_at(connection, since))
        self._looked_at = now
        moved = 0
        for document_id in dict.fromkeys([*due, *found]):
            moved += await self._advance_safely(document_id)
        if everything:
            moved += await self._finishing.stop_overspent()
        if is_more:
            self._judging.note_progress()
        return moved + await self._end_campaigns()

    async def close(self) -> None:
        """Let go of what is being made: it is made again at the next start."""
        self._is_closing = True
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _advance_safely(self, document_id: int) -> int:
        """One document; what goes wrong with it does not hold up the others."""
        self._due.pop(document_id, None)
        if document_id in self._tasks or self._is_closing:
            return 0
        try:
            return await self._advance(document_id)
        except UnavailableError as error:
            log.warning("a document has to wait", document_id=document_id, error=str(error))
            self._due[document_id] = self._clock.now() + _RETRY_AFTER
            return 1
        except Exception:
            log.exception("a document could not be advanced; it is tried again", document_id=document_id)
            self._due[document_id] = self._clock.now() + _RETRY_AFTER
            return 1

    async def _advance(self, document_id: int) -> int:
        for steps in range(_STEPS_MAX):
            seen = await self._store.read(lambda connection: self._looking.look(connection, document_id))
            if seen is None:
                return steps
            recipe = recipe_of(seen.campaign)
            await self._withdraw(seen, recipe.withdrawn(seen))
            await self._looking.note_progress(seen)
            step = recipe.next_step(seen)
            if isinstance(step, Wait):
                if step.until is not None:
                    self._due[document_id] = step.until
                return steps
            if isinstance(step, Work):
                self._tasks[document_id] = asyncio.create_task(self._make(seen, step))
                return steps + 1
            if not await self._carry_out(seen, step):
                return steps
        self._judging.note_progress()
        return _STEPS_MAX

    async def _carry_out(self, seen: Seen, step: Step) -> bool:
        """Returns whether something may follow at once."""
        if isinstance(step, MoreUnits):
            await self._ask(seen, step)
            return True
        if isinstance(step, Publish):
            await self._finishing.publish(seen)
        if isinstance(step, Failed):
            await self._finishing.fail(seen.document, step.reason)
        return False

    async def _ask(self, seen: Seen, step: MoreUnits) -> None:
        now = self._clock.now()

        def ask(connection: Connection) -> int:
            if not is_unchanged(connection, seen):
                return 0
            asked = ask_for(connection, step.units, seen.campaign, now)
            ordered = [asked.unit_ids[unit.key] for unit in step.units]
            campaigns.add_units(connection, seen.document.document_id, ordered)
            told = f"{seen.document.name}: {step.why}"
            events.append(connection, [_event("units_asked", seen.document.campaign_id, now, told)])
            return asked.opened

        if await self._store.write(ask):
            self._bell.ring_for_work()

    async def _make(self, seen: Seen, work: Work) -> None:
        """Have something made, and keep it; at the end somebody should look what follows."""
        document = seen.document
        try:
            made = await self._working.make(seen, work)
            await self._store.write(lambda connection: self._keep(connection, seen, work, made))
            log.info("made", document=document.name, what=work.name, why=work.why)
            # Siblings may have waited for it.
            for other in await self._store.read(lambda connection: self._looking.siblings_of(connection, document)):
                self._due[other] = self._clock.now()
            self._due[document.document_id] = self._clock.now()
        except RefusedError as refusal:
            await self._finishing.fail(document, refusal.reason)
        except InvalidError as error:
            await self._finishing.fail(document, Reason(code=ReasonCode.OTHER, text=f"{work.name}: {error}"[:500]))
        except UnavailableError as error:
            log.warning("work has to wait", document=document.name, what=work.name, error=str(error))
            self._due[document.document_id] = self._clock.now() + _RETRY_AFTER
        except Exception:
            log.exception("work failed; it is tried again", document=document.name, what=work.name)
            self._due[document.document_id] = self._clock.now() + _RETRY_AFTER
        finally:
            self._tasks.pop(document.document_id, None)

    def _keep(self, connection: Connection, seen: Seen, work: Work, made: list[Made]) -> None:
        if not is_unchanged(connection, seen):
            return
        for one in made:
            campaigns.add_made(connection, seen.document.document_id, one)
        told = f"{seen.document.name}: {work.name.replace('/', ' ')}, {work.why}"
        events.append(connection, [_event("work_done", seen.document.campaign_id, self._clock.now(), told)])

    async def _withdraw(self, seen: Seen, unwanted: dict[int, Reason]) -> None:
        if not unwanted:
            return
        now = self._clock.now()

        def withdraw(connection: Connection) -> Settlement:
            others = campaigns.wanted_elsewhere(connection, seen.document.document_id, list(unwanted))
            happened = {
                unit_id: Withdrawn(reason=reason) for unit_id, reason in unwanted.items() if unit_id not in others
            }
            return settle(connection, happened, known={}, rule=self._rule, now=now)

        self._judging.announce(await self._store.write(withdraw))

    async def _end_campaigns(self) -> int:
        """Campaigns without a running document are over: completed, if every document has its cube."""
        over = await self._store.read(campaigns.without_running_documents)
        if over:
            await self._store.write(lambda connection: self._end(connection, over))
        return len(over)

    def _end(self, connection: Connection, over: list[tuple[CampaignId, bool]]) -> None:
        now = self._clock.now()
        for campaign_id, has_failures in over:
            verb = "fail" if has_failures else "complete"
            state = CAMPAIGN_MOVES[verb][1]
            if campaigns.move(connection, campaign_id, verb, now):
                events.append(connection, [_event(f"campaign_{state}", campaign_id, now, "")])
                log.info("campaign ended", campaign_id=campaign_id, state=state.value)


def _to_look_at(connection: Connection, since: datetime | None) -> tuple[list[int], bool]:
    """Documents for which something may follow, and whether there are more of them."""
    complete = campaigns.complete_documents(connection, DOCUMENTS_AT_ONCE)
    hopeless = campaigns.hopeless_documents(connection, UNIT_KINDS, DOCUMENTS_AT_ONCE)
    staged = campaigns.staged_documents(connection, since)
    return [*complete, *hopeless, *staged], DOCUMENTS_AT_ONCE in (len(complete), len(hopeless))


def _event(name: str, campaign_id: CampaignId, now: datetime, detail: str) -> Event:
    return Event(at=now, name=name, campaign_id=campaign_id, detail=detail)
