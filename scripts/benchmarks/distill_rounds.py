"""Training on several hosts against one host with the same tokens: rounds with merging, and a state passed on.

Rounds: every member trains H steps on conversations of its own from the same parameters, then the moves are merged.
One host does as many steps, each on the rows of all members together, which is what exchanging gradients in every
step would give. Relay: five hosts train one after the other; the result must be that of one host, to the bit.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.distill import LEARNING_RATE, TRAIN, trained
from benchmarks.distilling import LORA, PREFIX, TEXTS, Studied, quality, started, studied, train_spec
from benchmarks.report import Report, Row
from memgrid.campaign_distill import Rounds, Start
from memgrid.digest import digest_of
from memgrid.distill.aggregate import Merged, merge
from memgrid.distill.state import TrainState, read_state, state_bytes, without_moments, write_state
from memgrid.kinds.train import STATE_FILE, has_moments, segment_files
from memgrid.specs import AdapterSpec, TrainSpec
from memgrid.text import bytes_text

MEMBERS, LOCAL_STEPS, ROUNDS = 3, 32, 2
HELD_OUT, ROW_TOKENS = 32, 256
"""Half of the rows that the recipe takes: it is the merging that is compared, over many steps."""
SEGMENT_STEPS = 3
"""As the recipe commits states, unless a campaign says otherwise."""
RELAY_HOSTS = 5


def run(console: Console, quick: bool) -> Report:
    steps = 4 if quick else LOCAL_STEPS
    with tempfile.TemporaryDirectory() as folder, console.status("rounds: conversations"):
        text = studied(TEXTS[1], train=16 if quick else TRAIN, held_out=16 if quick else HELD_OUT)
        rows = []
        for kind, adapter in (("prefix", PREFIX.shape(len(text.tokens))), ("lora", LORA.shape(len(text.tokens)))):
            with tempfile.TemporaryDirectory(dir=folder) as own:
                rows.append(_measure(text, kind, adapter, Path(own), steps, 1 if quick else ROUNDS))
    return Report(
        name="distill_rounds",
        title=f"{MEMBERS} hosts in rounds of {steps} steps, and {RELAY_HOSTS} in a relay, against one, SmolLM2-135M, "
        f"{torch.get_num_threads()} threads",
        columns={
            "adapter": lambda row: row["adapter"],
            "NLL, one host": lambda row: f"{row['one_host']['nll_cube']:.4f}",
            "NLL, rounds": lambda row: f"{row['rounds']['nll_cube']:.4f}",
            "difference": lambda row: f"{100 * row['difference']:+.2f} %",
            "gap closed, one host": lambda row: f"{100 * row['one_host']['gap_closed']:.0f} %",
            "gap closed, rounds": lambda row: f"{100 * row['rounds']['gap_closed']:.0f} %",
            "every step": lambda row: bytes_text(row["bytes_every_step"]),
            "rounds": lambda row: _beside(row["bytes_rounds"], row["bytes_every_step"]),
            "with checks": lambda row: _beside(row["bytes_checked"], row["bytes_every_step"]),
            "relay": lambda row: "bit-identical" if row["relay_is_identical"] else "DIFFERS",
        },
        rows=rows,
        notes=(
            "Bytes of a member: once a round it fetches parameters and sends its own; exchanging every step sends a",
            "gradient and fetches their mean, in float32, each as large as the parameters. With checks: and what a",
            "replay of one segment begins and ends with, Adam's moments included, on average over the draws.",
        ),
    )


def _measure(text: Studied, kind: str, adapter: AdapterSpec, folder: Path, steps: int, rounds: int) -> Row:
    first = folder / "start.safetensors"
    # A weak start: from a compacted one there is little left to learn, and no difference to see.
    started(text, adapter, Start.FIRST_TOKENS, first)
    total = steps * rounds
    spec = train_spec(
        text,
        adapter,
        first,
        stop_step=total,
        total_steps=total,
        segment_steps=steps,
        batch_rows=1,
        row_tokens=ROW_TOKENS,
        learning_rate=LEARNING_RATE[kind],
    )
    one, losses, _ = trained(text, replace(spec, batch_rows=MEMBERS), read_state(first))
    one_host, _ = quality(text, adapter, one, folder)
    merged, exchanged = _rounds(text, spec, read_state(first), folder, steps, rounds)
    together, _ = quality(text, adapter, merged, folder)
    size = sum(value.nbytes for value in one.parameters.values())
    return {
        "adapter": kind,
        "text": text.name,
        "members": MEMBERS,
        "local_steps": steps,
        "rounds_made": rounds,
        "losses": losses,
        "one_host": one_host.to_json(),
        "rounds": together.to_json(),
        "difference": together.nll_cube / one_host.nll_cube - 1,
        "bytes_rounds": exchanged,
        "bytes_checked": exchanged + round(rounds * size * _replayed(spec, steps)),
        "bytes_every_step": 2 * size * total,
        "relay_is_identical": _relay(text, replace(spec, batch_rows=1), read_state(first), steps),
    }


def _rounds(
    text: Studied, spec: TrainSpec, base: TrainState, folder: Path, steps: int, rounds: int
) -> tuple[TrainState, int]:
    """The merged state after the last round, and the bytes a member sent and fetched."""
    rule, exchanged, velocity = Rounds(members=MEMBERS, local_steps=steps), 0, None
    into = Merged(state=folder / "merged", velocity=folder / "velocity")
    base = without_moments(base)
    for number in range(rounds):
        write_state(folder / "base", base)
        paths = []
        for member in range(MEMBERS):
            own = replace(
                spec,
                first_step=number * steps,
                stop_step=(number + 1) * steps,
                round=number + 1,
                stream=member,
                streams=MEMBERS,
            )
            state, _, _ = trained(text, own, base)
            paths.append(folder / f"member-{member}")
            write_state(paths[-1], without_moments(state))
        exchanged += (folder / "base").stat().st_size + paths[-1].stat().st_size
        merge(folder / "base", paths, [folder / "base"] * MEMBERS, rule, spec.adapter, into, velocity=velocity)
        base, velocity = read_state(into.state), into.velocity
    return base, exchanged


def _replayed(spec: TrainSpec, steps: int) -> float:
    """What checking a member's round asks for beside its result, in sizes of the parameters, over all draws."""
    unit = replace(spec, stop_step=steps, segment_steps=min(SEGMENT_STEPS, steps), round=1)
    sizes = [
        sum(3 if has_moments(unit, name) else 1 for name in segment_files(unit, segment) if name != STATE_FILE)
        for segment in range(unit.segments)
    ]
    return (sum(sizes) + sizes[-1]) / (unit.segments + 1)  # the last one is drawn twice as often


def _beside(part: int, whole: int) -> str:
    return f"{bytes_text(part)}, 1/{whole / part:.1f}"


def _relay(text: Studied, spec: TrainSpec, start: TrainState, steps: int) -> bool:
    """Whether five hosts, each going on where the former stopped, end with the bytes of one host."""
    steps = max(RELAY_HOSTS, steps // 4)
    whole = replace(spec, stop_step=steps, total_steps=steps, segment_steps=steps)
    alone, _, _ = trained(text, whole, start)
    state = start
    for host in range(RELAY_HOSTS):
        own = replace(
            whole,
            first_step=steps * host // RELAY_HOSTS,
            stop_step=steps * (host + 1) // RELAY_HOSTS,
            state=digest_of(state_bytes(state)),
        )
        state, _, _ = trained(text, own, state)
    return state_bytes(state) == state_bytes(alone)
