"""Fixtures that several test folders share."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import structlog

if TYPE_CHECKING:
    from tests.postgres import Postgres

# Two threads a process on a shared machine only get into each other's way; and no test may ask a model hub.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
# A coordinator in the test's own process must not write between what a command prints for machines.
structlog.configure(logger_factory=lambda *_: structlog.PrintLogger(sys.stderr))


def pytest_collection_finish() -> None:
    """What is imported stays, so nothing need look at it again: training collects garbage before every unit."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random 2-layer Llama in float32 with tokenizer and chat template. Read only."""
    from tests.models import make_tiny_model

    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def other_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same shapes, other weights. Read only."""
    from tests.models import make_tiny_model

    return make_tiny_model(tmp_path_factory.mktemp("models") / "other", seed=1)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server; each test makes a database of its own in it."""
    from tests.postgres import running_postgres

    with running_postgres() as server:
        yield server


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """A command that a test calls says how much is logged; that is not for the tests after it."""
    former = structlog.get_config()
    yield
    structlog.configure(**former)


@pytest.fixture(autouse=True)
def memgrid_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads or writes the user's own settings and cubes."""
    home = tmp_path / "memgrid-home"
    monkeypatch.setenv("MEMGRID_HOME", str(home))
    monkeypatch.setenv("MEMGRID_CACHE", str(tmp_path / "memgrid-cache"))
    return home
