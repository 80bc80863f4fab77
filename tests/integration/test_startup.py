"""The command line answers at once: it loads nothing that the command at hand does without."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from memgrid.cli.commands import COMMANDS
from memgrid.cli.main import build_app

HEAVY = {"numpy", "httpx", "pydantic", "grpc", "structlog", "sqlalchemy", "aiohttp", "torch", "rich.markdown"}
_WITH_MODULES = """
import sys
from memgrid.cli.main import main
try:
    main()
except SystemExit as end:
    print(*sys.modules, sep="\\n", file=sys.stderr)
    raise end
"""


def run(tmp_path: Path, *words: str, code: str) -> subprocess.CompletedProcess[str]:
    surroundings = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-c", code, *words]
    return subprocess.run(command, env=surroundings, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("words", [("--help",), ("ls",), ("ls", "--json"), ("ls", "--help")])
def test_looking_loads_no_heavy_library(tmp_path: Path, words: tuple[str, ...]) -> None:
    done = run(tmp_path, *words, code=_WITH_MODULES)
    assert done.returncode == 0 and done.stdout, done.stderr
    loaded = set(done.stderr.split("\n"))
    assert "memgrid.cli.main" in loaded
    assert loaded & HEAVY == set()


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_says_what_a_commands_own_help_begins_with(name: str) -> None:
    listed, real = COMMANDS[name], click_command(name)
    first = listed.help.removesuffix(".")
    assert " ".join((real.help or "").split()).startswith(first)
    assert listed.is_group == hasattr(real, "commands")


def click_command(name: str) -> Any:
    everything: Any = typer.main.get_command(build_app())
    return everything.commands[name]


def test_a_shell_that_completes_knows_the_options_of_every_command(tmp_path: Path) -> None:
    code = (
        "import os; os.environ |= {'_MEMGRID_COMPLETE': 'complete_bash', 'COMP_WORDS': 'memgrid volunteer run --onc',"
        " 'COMP_CWORD': '3'}; from memgrid.cli.main import main; main()"
    )
    # Completion goes by the name of the program.
    done = run(tmp_path, code=f"import sys; sys.argv[0] = 'memgrid'; {code}")
    assert "--once" in done.stdout, done.stderr


@pytest.mark.parametrize(("name", "library"), [("coordinator", "pydantic_settings"), ("volunteer", "psutil")])
def test_an_extra_that_is_missing_is_listed_and_told(tmp_path: Path, name: str, library: str) -> None:
    code = f"import sys; sys.modules[{library!r}] = None; from memgrid.cli.main import main; main()"
    hint = f"pip install 'memgrid[{name}]'"
    listed = run(tmp_path, "--help", code=code)
    assert f"Needs: {hint}" in " ".join(listed.stdout.split())
    told = run(tmp_path, name, "--help", code=code)
    assert (told.returncode, told.stdout) == (2, "")
    assert told.stderr == f"memgrid: memgrid {name} needs {library}: {hint}\n"
