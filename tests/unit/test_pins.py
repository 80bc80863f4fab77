"""Whoever has the oldest Python that the project promises can install every version that is pinned."""

from __future__ import annotations

import sys
import tomllib
from importlib.metadata import distribution
from pathlib import Path

from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from pin import OLDEST_PYTHON, admits_oldest_python  # noqa: E402


def test_the_oldest_python_is_the_one_that_is_promised() -> None:
    promised = SpecifierSet(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"])
    assert OLDEST_PYTHON in promised and "3.10.99" not in promised


def test_every_pin_admits_the_oldest_python() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    # What only builds memgrid is installed for that moment, somewhere else.
    kept = set(pins) - {"hatchling"}
    assert {name for name in kept if distribution(name).version.partition("+")[0] == pins[name]} == kept
    assert [name for name in sorted(kept) if not admits_oldest_python(name)] == []
