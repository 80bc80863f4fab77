"""`memgrid search | info | pull | verify | ls | rm` as people and scripts run them: output, JSON, exit codes."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from memgrid.cube.identity import identity_of_folder
from memgrid.cube.manifest import README_FILE
from tests.adapters import PREFIX, make_parameter_cube
from tests.integration.data_plane import DataPlane, running
from tests.integration.test_pool_client import KEY, NAME, Made, made, publish

__all__ = ["made"]  # the fixture, shared
_MEMGRID = "from memgrid.cli.main import main; main()"


@pytest.fixture
async def plane(tmp_path: Path, made: Made) -> AsyncIterator[DataPlane]:
    async with running(tmp_path / "grid", tls=False, grid_key=KEY.public_key) as plane:
        await publish(plane, made.folder)
        yield plane


class Shell:
    """Runs `memgrid` as a process of its own, with this grid and a home and cache of its own."""

    def __init__(self, folder: Path, grid: str | None) -> None:
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("MEMGRID_")} | {
            "MEMGRID_HOME": str(folder / "home"),
            "MEMGRID_CACHE": str(folder / "cache"),
            "COLUMNS": "200",
            **({"MEMGRID_GRID": grid} if grid else {}),
        }

    async def run(self, *arguments: str, typed: str | None = None, without: str = "") -> tuple[int, str, str]:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-W",
            "error",
            "-c",
            f"import sys; sys.modules.update({dict.fromkeys(without.split())}); {_MEMGRID}",
            *arguments,
            stdin=asyncio.subprocess.DEVNULL if typed is None else asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=self.environment,
        )
        output, errors = await process.communicate(None if typed is None else typed.encode())
        assert process.returncode is not None
        return process.returncode, output.decode(), errors.decode()

    async def json(self, *arguments: str) -> Any:
        code, output, errors = await self.run(*arguments, "--json")
        assert code == 0, errors
        return json.loads(output)


async def test_cube_goes_through_its_whole_life_on_the_command_line(
    plane: DataPlane,
    made: Made,
    tmp_path: Path,
) -> None:
    shell = Shell(tmp_path, plane.url)
    [found] = await shell.json("search", "valves")
    assert found["repository"] == NAME and found["bytes"] == made.manifest.payload_bytes

    tag = await shell.json("info", NAME, "--bandwidth", "10", "--gflops", "50")
    assert tag["saved_flops"] == made.manifest.cost.flops
    assert tag["break_even"]["compute_s"] == pytest.approx(made.manifest.cost.flops / 50e9)
    assert tag["break_even"]["line_is_measured"] is False

    pulled = await shell.json("pull", NAME)
    assert (Path(pulled["folder"]) / README_FILE).is_file()
    assert (await shell.json("verify", NAME))["public_key"] == KEY.public_key.hex()
    assert (await shell.json("verify", pulled["folder"]))["digest"] == made.manifest.digest
    [cached] = await shell.json("ls")
    assert cached["names"] == [f"{plane.url}/{NAME}:latest"]
    code, output, _ = await shell.run("rm", NAME)
    assert code == 0 and "freed" in output
    assert await shell.json("ls") == []


async def test_output_for_people_names_what_matters(plane: DataPlane, made: Made, tmp_path: Path) -> None:
    shell = Shell(tmp_path, plane.url)
    code, output, _ = await shell.run("search")
    assert code == 0 and NAME in output and made.manifest.licence in output
    code, output, _ = await shell.run("info", NAME)
    assert code == 0
    for words in ("base model", "licence", "saves", "measured on the first megabytes", "a GPU computes more"):
        assert words in output
    code, output, errors = await shell.run("pull", NAME, "--into", str(tmp_path / "mine"))
    assert code == 0, errors
    assert "verified" in output and str(tmp_path / "mine") in output


async def test_failures_are_one_line_and_an_honest_exit_code(
    plane: DataPlane,
    made: Made,
    tmp_path: Path,
) -> None:
    shell = Shell(tmp_path, plane.url)
    await shell.run("pull", NAME, "--into", str(tmp_path / "mine"))
    (tmp_path / "mine" / README_FILE).write_text("changed")
    for arguments, expected, words in (
        (["info", "No Such Name"], 2, "expected namespace/name"),
        (["info", NAME, "--bandwidth", "-1"], 2, "--bandwidth: expected a number above 0"),
        (["verify", str(tmp_path / "mine"), "--key", "xyz"], 2, "--key: expected 64 hex digits"),
        (["pull", NAME, "--into", str(tmp_path / "mine")], 2, "is there already"),
        (["pull", "docs/nothing"], 1, "docs/nothing"),
        (["verify", str(tmp_path / "mine")], 1, "README.md: "),
        (["rm", "docs/nothing"], 1, "not on this machine"),
        (["--grid", "http://127.0.0.1:9", "search"], 1, "does not answer"),
        (["--grid", "ftp://x", "search"], 2, "expected https"),
    ):
        code, output, errors = await shell.run(*arguments)
        assert (code, output) == (expected, ""), (arguments, errors)
        assert words in errors and errors.startswith("memgrid: ") and errors.count("\n") == 1, errors


async def test_without_a_grid_the_command_says_how_to_name_one(tmp_path: Path) -> None:
    shell = Shell(tmp_path, None)
    code, _, errors = await shell.run("search")
    assert code == 2 and "--grid" in errors and "MEMGRID_GRID" in errors
    assert await shell.json("ls") == []


def test_front_door_is_light() -> None:
    import subprocess

    program = (
        "import sys, memgrid; from memgrid import Pool, MemCube, MemgridError;"
        " heavy = {'torch', 'transformers', 'sqlalchemy', 'ray', 'aiohttp'} & set(sys.modules);"
        " assert not heavy, heavy; assert Pool and MemCube and MemgridError"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


async def test_a_trained_cube_says_how_good_it_is_and_answers(
    made: Made, tmp_path: Path, tiny_model_folder: Path
) -> None:
    base = identity_of_folder(tiny_model_folder, "tiny")
    make_parameter_cube(tmp_path / "pump", PREFIX, made.model, base, KEY, name="pumps/valves")
    async with running(tmp_path / "grid", tls=False, grid_key=KEY.public_key) as plane:
        await publish(plane, tmp_path / "pump", name="pumps/valves")
        await publish(plane, made.folder)
        shell = Shell(tmp_path, plane.url)
        [found] = await shell.json("search", "pump", "--kind", "parameter")
        assert found["repository"] == "pumps/valves" and found["gap_closed"] == pytest.approx(0.866667)
        code, output, _ = await shell.run("search")
        assert code == 0 and "87%" in output and "gap closed" in output

        tag = await shell.json("info", "pumps/valves", "--bandwidth", "10", "--gflops", "50")
        assert tag["quality"]["nll_cube"] == 0.7 and tag["quality"]["items"] == 100
        kv_bytes = 64 * 2 * 2 * 2 * 16 * 2  # of 64 tokens in 2 layers, K and V, 2 heads of 16 numbers of 2 bytes
        assert tag["compression"] == pytest.approx(kv_bytes / tag["bytes"], abs=0.01) and tag["layout"] is None
        assert tag["break_even"]["compute_s"] == pytest.approx(3e12 / 50e9)
        code, output, _ = await shell.run("info", "pumps/valves", "--bandwidth", "10", "--gflops", "50")
        assert code == 0
        for words in (
            "a trained prefix of 6 virtual tokens",
            "87% of the gap between no text and the text in context closed, on 100 held-out conversations",
            "2.000 without the text, 0.700 with the cube, 0.500 with the text",
            "about 1 min 0 s at 50.0 GFLOP/s",
        ):
            assert words in output

        model = ("chat", "--model", str(tiny_model_folder), "--max-tokens", "8")
        told = "When does the valve open?\n/compare\n/cubes\n/nonsense\n/add pumps/nothing\n"
        code, output, errors = await shell.run(*model, "--cube", "pumps/valves", typed=told)
        assert code == 0, errors
        answer, *rest = output.split("\n")
        without, having = rest.index("without cubes"), rest.index("with pumps/valves")
        assert answer == rest[having + 1] != rest[without + 1]
        assert "in use  pumps/valves  1.0.0" in output and "87%" in output
        assert "/nonsense: no such command; /help lists them\nnothing in the pool is called pumps/nothing" in output

        asked = "How does the pump's valve open?\nWho wrote Hamlet?\n"
        code, output, _ = await shell.run(*model, "--auto", typed=asked)
        assert code == 0
        assert "auto: pumps/valves (3 of 3 words: pump, valve, open)" in output
        assert "auto: none of 1 cubes knows these words" in output


@pytest.mark.parametrize(
    ("command", "without", "message"),
    [
        ("serve", "aiohttp", "memgrid serve needs aiohttp: pip install 'memgrid[serve]'"),
        ("chat", "torch", "talking to a model needs torch: pip install 'memgrid[serve]'"),
    ],
)
async def test_what_is_not_installed_is_said_with_how_to(
    tmp_path: Path, command: str, without: str, message: str
) -> None:
    code, output, errors = await Shell(tmp_path, None).run(command, "--model", "any", typed="", without=without)
    assert (code, output, errors) == (2, "", f"memgrid: {message}\n")


async def test_serving_beyond_this_machine_needs_a_key(tmp_path: Path, tiny_model_folder: Path) -> None:
    shell = Shell(tmp_path, None)
    code, _, errors = await shell.run("serve", "--model", str(tiny_model_folder), "--host", "0.0.0.0")
    assert (
        code == 2 and errors == "memgrid: --host 0.0.0.0: others could reach it; set an API key in MEMGRID_API_KEY\n"
    )
    code, _, errors = await shell.run("serve", "--model", str(tmp_path / "no model"))
    assert code == 2 and "expected a model's folder or name" in errors and errors.count("\n") == 1
