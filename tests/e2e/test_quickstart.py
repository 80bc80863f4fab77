"""The quickstart page, typed line by line; model and texts are smaller, ports and folders the test's own."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "docs" / "quickstart.md"
TEXT_CHARACTERS = 1500
"""A model with a context of 2,048 tokens has to read a text whole."""
PREPARED = ("scripts/setup", "python scripts/prepare_model.py")
LIMIT_S = 240.0


def blocks(heading: str) -> list[tuple[str, str]]:
    """Language and text of the fenced blocks under a heading."""
    (section,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return re.findall(r"^```(\w+)\n(.*?)^```", section, re.MULTILINE | re.DOTALL)


class Terminals:
    """Shells in one folder, each typed into as the page says."""

    def __init__(self, folder: Path, scratch: Path) -> None:
        self.folder, self._scratch, self._open = folder, scratch, list[subprocess.Popen[str]]()
        self.exports = ""

    def type(self, text: str) -> subprocess.Popen[str]:
        text = text.replace("/tmp/", f"{self._scratch}/")
        lines = [line for line in text.splitlines() if not line.startswith(PREPARED)]
        shell = subprocess.Popen(
            [
                "bash",
                "-euo",
                "pipefail",
                "-c",
                "\n".join(["source .venv/bin/activate", self.exports, *lines, "wait"]),
            ],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._open.append(shell)
        return shell

    def told(self, text: str) -> str:
        """What a command that ends says; it must end well."""
        shell = self.type(text)
        output, _ = shell.communicate(timeout=LIMIT_S)
        assert shell.returncode == 0, output
        return output

    def close(self) -> None:
        for shell in self._open:
            if shell.poll() is None:
                os.killpg(shell.pid, signal.SIGTERM)
        for shell in self._open:
            shell.communicate(timeout=60)


@pytest.fixture
def terminals(tmp_path: Path, tiny_model_folder: Path) -> Iterator[Terminals]:
    """A clone as far as the page looks at it, prepared as its first step does."""
    clone = tmp_path / "clone"
    (clone / "docs").mkdir(parents=True)
    (clone / ".cache" / "models").mkdir(parents=True)
    (clone / ".venv").symlink_to(Path(sys.prefix))
    shutil.copytree(tiny_model_folder, clone / ".cache" / "models" / "smollm2-135m-instruct")
    for name in ("README.md", "docs/why.md"):
        (clone / name).write_text((ROOT / name).read_text()[:TEXT_CHARACTERS])
    opened = Terminals(clone, tmp_path)
    try:
        yield opened
    finally:
        opened.close()


@pytest.mark.skipif(shutil.which("curl") is None, reason="the page asks /metrics with curl")
def test_the_quickstart_works_as_it_is_written(terminals: Terminals, tmp_path: Path) -> None:
    [(_, serve)] = blocks("2. Host the grid")
    coordinator = terminals.type(serve.rstrip() + " --http-port 0 --grpc-port 0\n")
    endpoint = tmp_path / "grid" / "endpoint.json"
    until_s = time.monotonic() + LIMIT_S
    while not endpoint.exists():
        assert coordinator.poll() is None and time.monotonic() < until_s
        time.sleep(0.1)
    url = json.loads(endpoint.read_text())["url"]

    (_, operator), (_, campaign), (_, submit) = blocks("3. Be an operator")
    # A new terminal of the page's knows what was exported in the first; a new shell here has to be told.
    operator = operator.replace("https://127.0.0.1:7070#sha256=…", url)
    terminals.exports = "\n".join(line for line in operator.splitlines() if line.startswith("export "))
    terminals.exports = terminals.exports.replace("/tmp/", f"{tmp_path}/")
    assert "models/smollm2-135m-instruct" in terminals.told(operator)
    (terminals.folder / "campaign.yaml").write_text(campaign)
    submitted = terminals.type(submit)
    [(_, volunteer)] = blocks("4. Volunteer, twice")
    terminals.type(volunteer)
    output, _ = submitted.communicate(timeout=LIMIT_S)
    assert submitted.returncode == 0, output

    (_, use), (language, program) = blocks("5. Use what was made")
    assert language == "python"
    used = terminals.told(use)
    assert "first/why" in used and "verified" in used
    (terminals.folder / "ask.py").write_text(program)
    assert terminals.told("python ask.py").strip()

    [(_, look)] = blocks("6. Look behind it")
    (listed,) = json.loads(terminals.told("memgrid campaign list --json"))
    look = look.replace("https://127.0.0.1:7070", url.partition("#")[0])
    look = look.replace("<campaign id>", listed["campaign_id"])
    seen = terminals.told(look)
    assert "memgrid_units_accepted_total" in seen and listed["campaign_id"] in seen
