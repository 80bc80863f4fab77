"""Made-up days of machines and their owners: how often the owner policy broke one of the statements it is held to."""

from __future__ import annotations

import random
import time
from collections import Counter

from rich.console import Console

from benchmarks.report import Report, Row

HISTORIES = 10_000


def run(console: Console, quick: bool) -> Report:
    from tests.owner_statements import STATEMENTS

    count = 100 if quick else HISTORIES
    with console.status(f"owner: {count} histories"):
        begun_s = time.perf_counter()
        facts, rows = measure(count)
        facts["took_s"] = time.perf_counter() - begun_s
    return Report(
        name="owner",
        title="Preferences and signals made up, and what the owner policy said",
        columns={
            "statement": lambda row: row["statement"],
            "tried": lambda row: f"{row['tried']:,}",
            "violations": lambda row: str(row["violations"]),
        },
        rows=rows,
        notes=(
            f"{facts['histories']:,} histories, {facts['decisions']:,} decisions, of which {facts['computing']:,} "
            f"let a device compute; {len(STATEMENTS)} statements, {facts['violations']} violations.",
            "Tried: in so many moments the statement had something to say.",
        ),
        facts=facts,
    )


def measure(count: int) -> tuple[Row, list[Row]]:
    """Every statement in every moment of so many histories, each from its own seed."""
    from tests.owner_histories import histories
    from tests.owner_statements import STATEMENTS

    tried, broken = Counter[str](), Counter[str]()
    decisions = computing = 0
    for seed in range(count):
        for trace in histories(random.Random(seed)):
            decisions += len(trace)
            computing += sum(moment.decision.may_compute for moment in trace)
            for statement in STATEMENTS:
                said = [statement.holds(trace, index) for index in range(len(trace))]
                tried[statement.text] += sum(each is not None for each in said)
                broken[statement.text] += sum(each is False for each in said)
    facts = {
        "histories": count,
        "statements": len(STATEMENTS),
        "decisions": decisions,
        "computing": computing,
        "violations": broken.total(),
    }
    texts = (statement.text for statement in STATEMENTS)
    return facts, [{"statement": text, "tried": tried[text], "violations": broken[text]} for text in texts]
