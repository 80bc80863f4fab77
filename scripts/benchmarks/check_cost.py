"""What auditing a cache costs the grid, against what making it cost the host: both in float32 on the CPU.

Making is the volunteer's own code, from the unit's folder to the file and its sketch; the model is loaded before
either is timed. Auditing is `memgrid.distill.audit` as the coordinator's engine runs it, each time with another draw;
checking the form and the sketch of an upload, which happens to every one, stands beside it.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.cubes import MODEL
from benchmarks.distilling import SEED, TEXTS, Stopwatch, base
from benchmarks.report import Report, Row
from memgrid.clock import SystemClock
from memgrid.digest import digest_of, token_bytes
from memgrid.distill.audit import audit
from memgrid.kinds.audit import Zone
from memgrid.kinds.prefill import KV_FILE
from memgrid.kinds.prefill_audit import drawn_windows
from memgrid.kinds.prefill_kind import TOKENS_FILE, PrefillKind
from memgrid.kinds.tolerances import BUILT_IN
from memgrid.specs import PrefillSpec
from memgrid.text import seconds_text
from memgrid.units import ComputeDtype, StoreDtype
from memgrid_volunteer.kinds.job import SKETCH_FILE, Job
from memgrid_volunteer.kinds.prefill import Prefill
from memgrid_volunteer.numerics import find_devices

SIZES = (512, 1024, 2048)
DRAWS = 5
AIM = 0.05


def run(console: Console, quick: bool) -> Report:
    rows: list[Row] = []
    for size in SIZES[:1] if quick else SIZES:
        with console.status(f"check_cost: {size} tokens"), tempfile.TemporaryDirectory() as folder:
            rows.append(_measure(Path(folder), size, 2 if quick else DRAWS))
    return Report(
        name="check_cost",
        title=f"Auditing a cache against making it, SmolLM2-135M in float32, {torch.get_num_threads()} threads",
        columns={
            "tokens": lambda row: str(row["tokens"]),
            "making": lambda row: seconds_text(row["making_cpu_s"]),
            "auditing, median": lambda row: seconds_text(row["audit_cpu_s"]),
            "share": lambda row: f"{100 * row['share']:.1f} %",
            "by arithmetic": lambda row: f"{100 * row['flops_share']:.1f} %",
            "windows": lambda row: str(row["windows"]),
            "form and sketch": lambda row: seconds_text(row["form_cpu_s"]),
            "aim": lambda row: f"≤ {100 * row['aim']:.0f} %",
        },
        rows=rows,
        notes=(
            f"Processor seconds, {DRAWS} draws each, the best of two for making and for form and sketch.",
            "Short units cost more than their share: the weights of a window are read once, however few its tokens.",
        ),
    )


def _measure(folder: Path, size: int, draws: int) -> Row:
    spec, job = _unit(folder, size)
    runner = Prefill(next(device for device in find_devices() if device.facts.kind == "cpu"), SystemClock())
    inputs, files = {TOKENS_FILE: job.unit_dir / TOKENS_FILE}, {KV_FILE: job.out_dir / KV_FILE}
    runner.run(job)
    making = min(_cpu_s(lambda: runner.run(job)) for _ in range(2))
    sketch = (job.out_dir / SKETCH_FILE).read_bytes()
    geometry = base().geometry
    form = min(_cpu_s(lambda: PrefillKind().check_files(spec, files, inputs, sketch, geometry)) for _ in range(2))
    seconds, flops, found = [], [], {}
    for number in range(draws + 1):
        draw = bytes.fromhex(digest_of(f"{SEED} {size} {number}".encode()).removeprefix("sha256:"))
        watch = Stopwatch()
        with watch.running():
            audited = audit(spec, model_folder=MODEL, inputs=inputs, files=files, compute_dtype=ComputeDtype.FLOAT32,
                            draw=draw, tolerances=BUILT_IN)  # fmt: skip
        assert audited.zone is Zone.PASS, audited.in_words()
        found = dict(audited.statistics)
        if number:  # the first one brings the libraries
            seconds.append(watch.cpu_s)
            flops.append(audited.flops)
    return {
        "tokens": size,
        "making_cpu_s": making,
        "audit_cpu_s": statistics.median(seconds),
        "audits_cpu_s": seconds,
        "share": statistics.median(seconds) / making,
        "flops_share": statistics.median(flops) / PrefillKind().flops(spec, geometry),
        "form_cpu_s": form,
        "windows": len(drawn_windows(spec, bytes(32))),
        "aim": AIM,
        "statistics": found,
    }


def _unit(folder: Path, size: int) -> tuple[PrefillSpec, Job]:
    from transformers import AutoTokenizer

    text = "\n\n".join(path.read_text() for path in TEXTS) * 3
    ids = AutoTokenizer.from_pretrained(MODEL)(text)["input_ids"][:size]
    assert len(ids) == size, f"the texts have only {len(ids)} tokens"
    content = token_bytes(ids)
    spec = PrefillSpec(
        model=base().digest,
        tokens=digest_of(content),
        token_count=size,
        start=0,
        parent=None,
        compute_dtype=ComputeDtype.FLOAT32,
        store_dtype=StoreDtype.BFLOAT16,
    )
    job = Job(kind="prefill", unit_dir=folder / "in", model_dir=MODEL, out_dir=folder / "out")
    job.unit_dir.mkdir()
    job.out_dir.mkdir()
    (job.unit_dir / TOKENS_FILE).write_bytes(content)
    (job.unit_dir / "spec.json").write_bytes(spec.to_bytes())
    return spec, job


def _cpu_s(task: Callable[[], object]) -> float:
    watch = Stopwatch()
    with watch.running():
        task()
    return watch.cpu_s
