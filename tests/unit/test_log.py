"""Log lines go where standard error is when they are written."""

from __future__ import annotations

import io
import sys

import pytest

from memgrid.log import configure_logging, get_logger


def test_a_line_goes_to_the_standard_error_of_the_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", first)
    configure_logging()
    log = get_logger(__name__)
    log.warning("one")
    assert "one" in first.getvalue()
    first.close()
    monkeypatch.setattr(sys, "stderr", second)
    log.warning("two")
    assert "two" in second.getvalue()


def test_a_logger_that_was_used_before_says_as_much_as_is_asked_now(capsys: pytest.CaptureFixture[str]) -> None:
    log = get_logger(__name__)
    for level, is_said in (("ERROR", False), ("WARNING", True)):
        configure_logging(level=level)
        log.warning("a word")
        assert ("a word" in capsys.readouterr().err) == is_said
