"""What a worker says of a unit that failed, how it fares with less memory, and when it must not go on."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from memgrid.clock import SystemClock
from memgrid.digest import digest_of, token_bytes
from memgrid.distill.prefill import tokens_at_once
from memgrid.errors import InvalidError
from memgrid.kinds.refusal import RefusedError
from memgrid.specs import PrefillSpec
from memgrid.units import ComputeDtype, ReasonCode, StoreDtype
from memgrid_volunteer.isolation import Folders, Isolation
from memgrid_volunteer.kinds.failing import reason_of
from memgrid_volunteer.kinds.job import Hello, Job, Outcome
from memgrid_volunteer.kinds.models import Fitted
from memgrid_volunteer.kinds.pace import Pace
from memgrid_volunteer.kinds.prefill import Prefill
from memgrid_volunteer.kinds.utilisation import Utilisation, peak_flops_per_s
from memgrid_volunteer.numerics import TORCH_DTYPE, find_devices
from memgrid_volunteer.sandbox import Sandbox
from tests.half_done import Unit, make_unit
from tests.studies import Studied, make_studied

ROOT = Path(__file__).resolve().parents[3]
CPU = find_devices()[-1]


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Studied:
    return make_studied(tmp_path_factory.mktemp("failures") / "tiny")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), ReasonCode.OUT_OF_MEMORY),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), ReasonCode.OUT_OF_MEMORY),
        (torch.AcceleratorError("CUDA error: out of memory", 2), ReasonCode.OUT_OF_MEMORY),
        (MemoryError(), ReasonCode.OUT_OF_MEMORY),
        (torch.AcceleratorError("CUDA error: unspecified launch failure", 719), ReasonCode.DEVICE_FAILED),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), ReasonCode.DEVICE_FAILED),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling x"), ReasonCode.DEVICE_FAILED),
        (InvalidError("tokens.bin is not what"), ReasonCode.INPUT_UNAVAILABLE),
        (FileNotFoundError("spec.json"), ReasonCode.INPUT_UNAVAILABLE),
        (RefusedError(ReasonCode.DIVERGED, "step 4"), ReasonCode.DIVERGED),
        (ArithmeticError("NaN"), ReasonCode.UNIT_FAILED),
        (KeyError("no such kind"), ReasonCode.UNIT_FAILED),
    ],
)
def test_each_failure_has_its_name(error: BaseException, code: ReasonCode) -> None:
    assert reason_of(error).code is code


def test_a_worker_ends_itself_after_its_device_has_failed(tmp_path: Path) -> None:
    job = Job(kind="reset", unit_dir=tmp_path, model_dir=tmp_path, out_dir=tmp_path)
    # It would have answered the second one too, with a context that is dead.
    command = [sys.executable, "-m", "tests.workers.nosy"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as worker:
        assert worker.stdin is not None and worker.stdout is not None
        worker.stdin.write(2 * job.to_line())
        worker.stdin.flush()
        hello, *outcomes = worker.stdout.readlines()
        assert worker.wait() == 75
    assert Hello.from_line(hello).devices[-1].device_id == "cpu"
    failures = [Outcome.from_line(line).failure for line in outcomes]
    assert [failure.code for failure in failures if failure is not None] == [ReasonCode.DEVICE_FAILED]


async def test_the_next_unit_is_for_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    folders = Folders(cache=tmp_path / "cache", work=tmp_path / "work")
    folders.make()
    sandbox = Sandbox(folders, threads=1, module="tests.workers.quick", isolation=Isolation.NONE)
    jobs = [quick_job(tmp_path / str(first), first) for first in (4, 1)]
    outcome = await sandbox.run(jobs[0])
    assert outcome.failure is not None and outcome.failure.code is ReasonCode.DEVICE_FAILED
    assert sandbox.pid is None
    assert (await sandbox.run(jobs[1])).facts is not None
    await sandbox.kill()


def quick_job(folder: Path, first: int) -> Job:
    for name in ("in", "out"):
        (folder / name).mkdir(parents=True)
    content = token_bytes([first, 1])
    spec = PrefillSpec(
        model=digest_of(b"model"),
        tokens=digest_of(content),
        token_count=2,
        start=0,
        parent=None,
        compute_dtype=ComputeDtype.AUTO,
        store_dtype=StoreDtype.FLOAT32,
    )
    (folder / "in" / "tokens.bin").write_bytes(content)
    (folder / "in" / "spec.json").write_bytes(spec.to_bytes())
    return Job(kind="prefill", unit_dir=folder / "in", model_dir=folder, out_dir=folder / "out")


def test_what_fitted_is_where_the_next_unit_of_the_model_begins() -> None:
    fitted, tried = Fitted(), list[int]()

    def compute(batch: int) -> int:
        tried.append(batch)
        if batch > 5:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return batch

    assert fitted.run("one", compute, 32) == 4
    assert fitted.run("one", compute, 32) == 4
    assert fitted.run("other", compute, 8) == 4
    assert tried == [32, 16, 8, 4, 4, 8, 4]
    with pytest.raises(MemoryError, match="not even a batch of 6"):
        fitted.run("third", compute, 12, least=6)


class Narrow:
    """Loads a model for which memory runs out with more tokens at once than 12."""

    def __init__(self) -> None:
        self.read: list[int] = []

    def load(self, folder: Path, dtype: torch.dtype, device: Any) -> Any:
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval().requires_grad_(False).base_model
        model.layers[1].register_forward_pre_hook(self.look)
        return model

    def look(self, module: Any, given: Any) -> None:
        tokens = given[0].shape[1]
        self.read.append(tokens)
        if tokens > 12:
            raise torch.OutOfMemoryError("CUDA out of memory.")


def test_a_cache_is_filled_in_smaller_pieces_when_memory_runs_out(grid: Studied, tmp_path: Path) -> None:
    narrow = Narrow()
    pieces: Callable[[int, str], int] = lambda *_: 40  # noqa: E731
    runner = Prefill(CPU, SystemClock(), load=narrow.load, at_once=pieces, least_tokens=4)
    units = [make_unit("prefill", grid, tmp_path / name) for name in ("one", "two", "wide")]
    for unit in units[:2]:
        runner.run(unit.job)
    # 40, 20, then 10 at a time; the second unit knows. A window of each is computed twice.
    assert narrow.read[:3] == [40, 20, 10] and narrow.read.count(40) == narrow.read.count(20) == 1
    Prefill(CPU, SystemClock(), at_once=pieces).run(units[2].job)
    assert bits(units[0]) == bits(units[1])
    assert kv_apart(units[0], units[2]) < 1e-2


def bits(unit: Unit) -> bytes:
    return unit.outputs()["kv.safetensors"]


def kv_apart(one: Unit, other: Unit) -> float:
    from safetensors.torch import load_file

    a, b = (load_file(unit.job.out_dir / "kv.safetensors") for unit in (one, other))
    return max(float((a[n].float() - b[n].float()).norm() / b[n].float().norm()) for n in a if n != "tokens")


@given(flops=st.integers(min_value=1, max_value=1 << 50), kind=st.sampled_from(["cpu", "cuda", "mps", "tpu"]))
def test_a_micro_batch_is_a_power_of_two_and_no_larger_for_a_larger_model(flops: int, kind: str) -> None:
    tokens = tokens_at_once(flops, kind)
    assert 64 <= tokens <= 2048 and tokens & (tokens - 1) == 0
    assert tokens_at_once(2 * flops, kind) <= tokens


def test_utilisation_is_the_units_operations_by_what_the_device_can_do(grid: Studied, tmp_path: Path) -> None:
    unit = make_unit("prefill", grid, tmp_path / "unit")
    unit.run(Pace(SystemClock()))
    measured = Utilisation(CPU)
    one, two = (measured.of(unit.job, ComputeDtype.FLOAT32, seconds) for seconds in (1.0, 2.0))
    assert one is not None and two is not None and one == pytest.approx(2 * two) and 0 < one < 1
    assert measured.of(unit.job, ComputeDtype.FLOAT32, 0.0) is None
    assert peak_flops_per_s(CPU, TORCH_DTYPE[ComputeDtype.FLOAT32]) > 1e8


def test_an_outcome_says_what_was_measured_and_older_workers_say_nothing() -> None:
    told = Outcome(facts=None, utilisation=0.25)
    assert Outcome.from_line(told.to_line()) == told
    line = {name: value for name, value in json.loads(told.to_line()).items() if name != "utilisation"}
    assert Outcome.from_line(json.dumps(line).encode()).utilisation is None
    for odd in (float("nan"), -1.0):
        assert Outcome.from_line(json.dumps({**line, "utilisation": odd}).encode()).utilisation is None
