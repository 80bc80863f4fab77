"""A coordinator that runs, with a model in its pool."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from memgrid.cube.identity import identity_of_folder
from memgrid.endpoint import GridEndpoint
from memgrid.kinds.prefill import ModelGeometry
from memgrid_coordinator.app import Coordinator
from tests.grids import push_model, running_coordinator

RAY_TOKEN = "f" * 64


@pytest.fixture
async def grid(tmp_path: Path, tiny_model_folder: Path) -> AsyncIterator[tuple[Coordinator, GridEndpoint]]:
    async with running_coordinator(tmp_path / "data") as (coordinator, endpoint):
        await push_model(coordinator, tiny_model_folder)
        yield coordinator, endpoint


@pytest.fixture(scope="module")
def geometry(tiny_model_folder: Path) -> ModelGeometry:
    return identity_of_folder(tiny_model_folder).geometry


@pytest.fixture(scope="module")
def ray_surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home for Ray to write into, with the token of all clusters of these tests: a process learns one only once."""
    home = tmp_path_factory.mktemp("home")
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text(RAY_TOKEN)
    surroundings = {
        "HOME": str(home),
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": RAY_TOKEN,
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in surroundings.items():
            patch.setenv(name, value)
        yield home
