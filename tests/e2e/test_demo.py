"""The demonstration shows what it promises, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
MODEL = ROOT / ".cache" / "models" / "smollm2-135m-instruct"
LIMIT_S = 840

pytestmark = [
    pytest.mark.model,
    pytest.mark.timeout(960),
    pytest.mark.skipif(not MODEL.is_dir(), reason="the small model is not there; scripts/prepare_model.py makes it"),
]


def start_demo(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """The demo in a process group of its own; all its processes carry `folder` in their command line."""
    environment = {**os.environ, "TMPDIR": str(folder), "HOME": str(folder), "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, str(ROOT / "scripts" / "demo.py"), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        text=True,
        start_new_session=True,
    )


def left_behind(folder: Path) -> list[str]:
    """Processes that still work for a demo in this folder."""
    found = []
    for process in psutil.process_iter(["cmdline", "pid"]):
        line = " ".join(process.info["cmdline"] or ())
        if str(folder) in line and process.info["pid"] != os.getpid():
            found.append(line)
    return found


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return facts_of(tmp_path_factory.mktemp("demo"), "--first-act")


@pytest.fixture(scope="module")
def distilled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    found: dict[str, Any] = facts_of(tmp_path_factory.mktemp("demo"), "--quick")["distilled"]
    return found


def facts_of(folder: Path, act: str) -> dict[str, Any]:
    """What a demo showed, which ended well and left nothing behind."""
    demo = start_demo(folder, act, "--json", str(folder / "facts.json"))
    try:
        output, _ = demo.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        # It ends its own processes, which would otherwise disturb the tests after it.
        demo.terminate()
        output, _ = demo.communicate(timeout=60)
        pytest.fail(f"the demo was not done in {LIMIT_S} s:\n{output}")
    assert demo.returncode == 0, output
    assert left_behind(folder) == []
    read: dict[str, Any] = json.loads((folder / "facts.json").read_text())
    return read


def test_every_document_becomes_a_cube(facts: dict[str, Any]) -> None:
    assert facts["cubes_published"] == len(facts["documents"]) >= 3
    assert facts["tokens"] >= 3000


def test_the_cheat_alone_is_caught_and_told_why(facts: dict[str, Any]) -> None:
    assert {rejection["volunteer"] for rejection in facts["reports_rejected"]} == {"mallory"}
    assert {rejection["reason"] for rejection in facts["reports_rejected"]} <= {"replay_differs", "disagrees"}
    assert all("allowed" in rejection["text"] for rejection in facts["reports_rejected"])


def test_the_cube_stands_for_having_read_the_text(facts: dict[str, Any]) -> None:
    assert facts["top1_agrees"]
    assert facts["kl_to_full_text"] < 1e-3 < facts["kl_without_text"]
    assert "23 kilobytes" in facts["answer"]
    assert "23 kilobytes" not in facts["answer_without_text"]


def test_one_host_a_chunk_is_nearly_enough(facts: dict[str, Any]) -> None:
    """Half of the results of newcomers are computed twice; and what the cheat did was done again."""
    assert facts["produced_flops"] <= facts["spent_flops"] <= 3 * facts["produced_flops"]
    assert 0 < facts["saved_flops"] < facts["produced_flops"]
    assert facts["cube_bytes"] > 23_000 * facts["cube_tokens"]


@pytest.mark.slow
def test_a_text_is_distilled_into_a_tenth_of_its_memory(distilled: dict[str, Any]) -> None:
    assert distilled["text_kv_bytes"] > 8 * distilled["cube_bytes"]
    assert distilled["steps"] == len(distilled["losses"])
    quality = distilled["quality"]
    assert quality["nll_text"] < quality["nll_cube"] < quality["nll_none"]
    assert quality["gap_closed"] > 0.3
    assert distilled["answer_with_cube"] != distilled["answer_without_text"]


@pytest.mark.slow
def test_the_lazy_trainer_is_caught_by_a_replay(distilled: dict[str, Any]) -> None:
    rejection = distilled["rejection"]
    assert (rejection["volunteer"], rejection["reason"]) == ("oscar", "replay_differs")
    assert "segment" in rejection["text"] and "allowed" in rejection["text"]


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_demo_that_is_stopped_leaves_no_process_behind(tmp_path: Path, number: signal.Signals) -> None:
    demo = start_demo(tmp_path)
    assert demo.stdout is not None
    for line in demo.stdout:
        if line.startswith("2 "):
            break
    demo.send_signal(number)
    assert demo.wait(timeout=60) != 0
    demo.stdout.close()
    deadline_s = time.monotonic() + 10
    # A worker behind walls ends with its supervisor, but the system may take a moment to say so.
    while left_behind(tmp_path) and time.monotonic() < deadline_s:
        time.sleep(0.1)
    assert left_behind(tmp_path) == []
    assert not list(tmp_path.glob("memgrid-demo-*"))
