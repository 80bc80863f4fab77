"""Take out of a report what nobody else should read, whatever line it has got into."""

from __future__ import annotations

import base64
import contextlib
import getpass
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from memgrid.errors import InvalidError
from memgrid.findings import Finding
from memgrid_volunteer.home import Home
from memgrid_volunteer.owner.files import read_whole
from memgrid_volunteer.page.key import read_key
from memgrid_volunteer.places import KEY_FILE, TEAM_FILE

HIDDEN = "[hidden]"
_SECRET_NAMES = re.compile(r"(?i)token|secret|password|passphrase|api_?key|invite|credential")
_SECRET_SHAPES = re.compile(
    # Tokens of a grid, headers, passwords in addresses, codes behind their option.
    r"(?i)\baccess\.[0-9a-f]{16,}"
    r"|(?<=bearer )\S+"
    r"|(?<=://)[^/@\s]+:[^/@\s]+(?=@)"
    r"|(?<=--invite )\S+|(?<=--invite=)\S+|(?<=--code )\S+|(?<=--code=)\S+|(?<=--token )\S+|(?<=--token=)\S+"
    r"|(?<=[?&]token=)[^&\s]+"
)
_SHORTEST = 6
"""Of a secret: shorter ones would black out plain words."""


class Redactor:
    """Knows the secrets of one volunteer and its user; `clean` takes them out."""

    def __init__(self, home: Home, environment: Mapping[str, str] = os.environ) -> None:
        self._secrets = sorted(_secrets(home, environment), key=len, reverse=True)
        self._home = str(Path.home())
        self._user = _user()

    def clean(self, text: str) -> str:
        """The same text, fit for strangers."""
        for secret in self._secrets:
            text = text.replace(secret, HIDDEN)
        text = _SECRET_SHAPES.sub(HIDDEN, text)
        if len(self._home) > 1:
            text = re.sub(rf"{re.escape(self._home)}(?![\w.-])", "~", text)
        if self._user:
            text = re.sub(rf"(?<![\w-]){re.escape(self._user)}(?![\w-])", "USER", text)
        return text

    def cleaned(self, finding: Finding) -> Finding:
        return replace(finding, text=self.clean(finding.text), advice=self.clean(finding.advice))


def _secrets(home: Home, environment: Mapping[str, str]) -> set[str]:
    found = {value for name, value in environment.items() if _SECRET_NAMES.search(name)}
    for key in _all(home, KEY_FILE):
        content = key.read_bytes()[:4096]
        found |= {content.hex(), content.hex().upper(), base64.b64encode(content).decode()}
        found |= {base64.urlsafe_b64encode(content).decode().rstrip("="), str(content)[2:-1]}
    if (page := read_key(home.folder)) is not None:
        found |= {page.secret, page.cookie, page.csrf}
    for team in _all(home, TEAM_FILE):
        with contextlib.suppress(InvalidError):
            found.add(str((read_whole(team) or {}).get("code", "")))
    return {secret for secret in found if len(secret) >= _SHORTEST}


def _all(home: Home, name: str) -> list[Path]:
    """The file of that name of every grid that is, or was, joined."""
    return [path for path in (home.folder / name, *home.folder.glob(f"grids/*/{name}")) if path.is_file()]


def _user() -> str:
    try:
        name = getpass.getuser()
    except (OSError, KeyError, ImportError):
        return ""
    # Root's name is nobody's secret, and stands in many a path.
    return "" if name == "root" else name
