"""Preferences as text: read with the line of every problem, and changed without touching anybody's comments."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from typing import Any

import tomlkit
from pydantic import ValidationError
from tomlkit.exceptions import TOMLKitError
from tomlkit.toml_document import TOMLDocument

from memgrid.campaign_problems import problems_of
from memgrid.errors import InvalidError
from memgrid_volunteer.owner.preferences import Preferences, preferences_of

PREFERENCES_BYTES_MAX = 256 << 10

Path = tuple[str, ...]
_PLACE = re.compile(r"(.*?) \(at (?:line (\d+), column \d+|end of document)\)")


def read_preferences(text: str, name: str) -> Preferences:
    """Preferences from the text of a file; `name` is what its problems begin with.

    Raises InvalidError with one line a problem: file, line, key, what was expected.

    >>> read_preferences("[when]\\nidle_minutes = 'soon'", "my.toml")
    Traceback (most recent call last):
    memgrid.errors.InvalidError: my.toml: line 2: when.idle_minutes: expected minutes from 0 to 1440, found 'soon'
    """
    if len(text.encode()) > PREFERENCES_BYTES_MAX:
        raise InvalidError(f"{name}: larger than {PREFERENCES_BYTES_MAX >> 10} KiB")
    try:
        said = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InvalidError(f"{name}: {_syntax_problem(text, str(error))}") from None
    try:
        return preferences_of(said)
    except ValidationError as error:
        lines = lines_of(text)
        problems = sorted(_with_line(problem, lines) for problem in problems_of(error, Preferences))
        raise InvalidError("\n".join(f"{name}: {where}{problem}" for _, where, problem in problems)) from None


def to_toml(preferences: Preferences) -> str:
    """All keys with their values; what is not limited is left out.

    >>> read_preferences(to_toml(preferences_of({"preset": "night"})), "").when.hours
    ('22:00-07:00',)
    """
    return tomlkit.dumps(preferences.model_dump(mode="json", exclude_none=True))


def changed(text: str, key: str, value: Any) -> str:
    """The text with one key set, everything else as it stands; `value` None takes the key out.

    Raises InvalidError when the text is no TOML or the key can't be one.

    >>> print(changed("[when] # mine\\nidle_minutes = 5 # short", "when.idle_minutes", 9))
    [when] # mine
    idle_minutes = 9 # short
    """
    path = key_path(key)
    try:
        document = tomlkit.parse(text)
    except TOMLKitError as error:
        raise InvalidError(f"the file has to be put right first: {error}") from None
    if value is None:
        _take_out(document, path)
    else:
        _put_in(document, path, value)
    return tomlkit.dumps(document)


def key_path(key: str) -> Path:
    """The parts of a key, whether or not those with odd signs are in quotes.

    >>> key_path('devices."cuda:0".enabled') == key_path("devices.cuda:0.enabled")
    True
    """
    parts = [quoted or plain for quoted, plain in re.findall(r'"([^"]*)"|([^."]+)', key)]
    if not parts or not all(parts):
        raise InvalidError(f"{key!r}: expected a key such as when.idle_minutes or devices.cuda:0.enabled")
    return tuple(parts)


def value_of(text: str) -> Any:
    """A value as TOML has it; what is none is taken for a word, so that nobody needs two kinds of quotes.

    >>> value_of("5"), value_of("true"), value_of('["sat-sun"]'), value_of("pause")
    (5, True, ['sat-sun'], 'pause')
    """
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def lines_of(text: str) -> dict[str, int]:
    """The line of every key of a valid text, by the key as `problems_of` writes it.

    >>> lines_of('preset = "night"\\n[when]\\nquiet = [\\n"sat"]\\n[devices."cuda:0"]\\nenabled = false')
    {'preset': 1, 'when': 2, 'when.quiet': 3, 'devices': 5, 'devices.cuda:0': 5, 'devices.cuda:0.enabled': 6}
    """
    lines, table = dict[str, int](), Path()
    for number, statement in _statements(text):
        said = tomllib.loads(statement)
        if statement.lstrip().startswith("["):
            table = next(_leaves(said), ())
            paths: list[Path] = [table]
        else:
            paths = [(*table, *path) for path in _leaves(said)]
        for path in paths:
            for length in range(1, len(path) + 1):
                lines.setdefault(".".join(path[:length]), number)
    return lines


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """Every key or heading by itself, with its first line; one of several lines is no TOML before its end."""
    pending, begins = "", 1
    for number, line in enumerate(text.splitlines(), start=1):
        pending = f"{pending}\n{line}" if pending else line
        begins = begins if "\n" in pending else number
        if _is_toml(pending):
            yield begins, pending
            pending = ""


def _is_toml(text: str) -> bool:
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return False
    return True


def _leaves(value: Any) -> Iterator[Path]:
    """The paths to all that is no table, and to empty tables."""
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        value = value[0]
    if isinstance(value, dict):
        for key, below in value.items():
            for path in _leaves(below):
                yield (key, *path)
        if value:
            return
    yield ()


def _with_line(problem: str, lines: dict[str, int]) -> tuple[int, str, str]:
    """The line of a problem, as a number and in words, and the problem."""
    place = re.sub(r"\[\d+\]", "", problem.partition(": ")[0])
    while place and place not in lines:
        place = place.rpartition(".")[0]
    return (lines[place], f"line {lines[place]}: ", problem) if place else (0, "", problem)


def _syntax_problem(text: str, message: str) -> str:
    found = _PLACE.fullmatch(message)
    if found is None:
        return f"not TOML: {message}"
    line = int(found[2] or len(text.splitlines()) or 1)
    shown = (text.splitlines() or [""])[line - 1].strip()
    return f"line {line}: not TOML: {found[1]}: {json.dumps(shown[:60], ensure_ascii=False)}"


def _put_in(document: TOMLDocument, path: Path, value: Any) -> None:
    table: Any = document
    for part in path[:-1]:
        if part not in table:
            # A table is a heading of its own, not a line of braces in the one above.
            table[part] = tomlkit.table(is_super_table=part in ("devices",))
        table = table[part]
        if not hasattr(table, "keys"):
            raise InvalidError(f"{'.'.join(path)}: {part} is a value, no table")
    table[path[-1]] = value


def _take_out(document: TOMLDocument, path: Path) -> None:
    table: Any = document
    for part in path[:-1]:
        table = table.get(part)
        if not hasattr(table, "keys"):
            return
    table.pop(path[-1], None)
