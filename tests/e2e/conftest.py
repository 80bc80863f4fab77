"""Fixtures of the tests that start whole grids."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.warm import warm_processes


@pytest.fixture(scope="session")
def warm_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a grid whose volunteers' workers start at once."""
    with warm_processes(tmp_path_factory.mktemp("warm")) as environment:
        yield environment
