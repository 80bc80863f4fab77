"""A coordinator that runs, with a model in its pool."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from memgrid.cube.identity import identity_of_folder
from memgrid.endpoint import GridEndpoint
from memgrid.kinds.prefill import ModelGeometry
from memgrid_coordinator.app import Coordinator
from tests.grids import push_model, running_coordinator


@pytest.fixture
async def grid(tmp_path: Path, tiny_model_folder: Path) -> AsyncIterator[tuple[Coordinator, GridEndpoint]]:
    async with running_coordinator(tmp_path / "data") as (coordinator, endpoint):
        await push_model(coordinator, tiny_model_folder)
        yield coordinator, endpoint


@pytest.fixture(scope="module")
def geometry(tiny_model_folder: Path) -> ModelGeometry:
    return identity_of_folder(tiny_model_folder).geometry
