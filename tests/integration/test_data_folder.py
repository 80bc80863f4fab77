"""One data folder, one coordinator: the second is told who has it, and a dead one is in nobody's way."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from memgrid.errors import InvalidError
from memgrid_coordinator.data_folder import Occupied, occupant
from tests.grids import running_coordinator

HOLD = """
import os, sys
from pathlib import Path
from memgrid_coordinator.data_folder import Occupied
held = Occupied(Path(sys.argv[1]))
print(os.getpid(), flush=True)
sys.stdin.read()
"""


async def test_a_second_coordinator_is_refused_until_the_first_has_stopped(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path):
        with pytest.raises(InvalidError, match=r"a coordinator is running here already \(pid \d+\)"):
            async with running_coordinator(tmp_path):
                pass
        assert (tmp_path / "endpoint.json").exists()
    async with running_coordinator(tmp_path):
        pass


def test_the_refusal_names_the_process_and_its_death_ends_it(tmp_path: Path) -> None:
    assert occupant(tmp_path) is None
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        pid = holder.stdout.readline().strip()
        assert occupant(tmp_path) == pid
        with pytest.raises(InvalidError, match=f"pid {pid}"):
            Occupied(tmp_path)
        holder.kill()
    assert occupant(tmp_path) is None
    Occupied(tmp_path).release()
