"""Requests that nobody should send, by the hundred, to a data plane that goes on serving."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "scripts"))

from fuzzing import http
from fuzzing.driver import execute, fuzz


def test_whole_requests_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "PATIENCE_S", 10.0)
    (target,) = http.targets()
    ways = [execute(target, content)[0] for content in target.seeds()]
    assert ways.count("") >= 8 and not any("no answer" in way for way in ways), ways


def test_spoilt_requests_are_turned_down_in_words() -> None:
    """Never an answer that says it is the server's fault, never none; a little of what `scripts/fuzz http` does."""
    (target,) = http.targets()
    outcome = fuzz(target, executions=400, seed=0)
    assert [failure.fault for failure in outcome.failures] == []
    assert len(outcome.refusals) > 5
