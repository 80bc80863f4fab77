"""Log lines go where standard error is when they are written."""

from __future__ import annotations

import io
import sys

import pytest
import structlog

from memgrid.log import configure_logging, get_logger


def test_a_line_goes_to_the_standard_error_of_the_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    former = structlog.get_config()
    first, second = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", first)
    configure_logging()
    try:
        log = get_logger(__name__)
        log.warning("one")
        assert "one" in first.getvalue()
        first.close()
        monkeypatch.setattr(sys, "stderr", second)
        log.warning("two")
        assert "two" in second.getvalue()
    finally:
        structlog.configure(**former)
