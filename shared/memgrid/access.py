"""The token that says who asks, as people give it: itself, or the file that keeps it."""

from __future__ import annotations

from pathlib import Path

from memgrid.errors import InvalidError

TOKEN_VARIABLE = "MEMGRID_TOKEN"


def token_of(token: str | None) -> str | None:
    """The token itself, or the first line of the file that `@FILE` names: a process list shows no token then.

    Raises InvalidError when the file can't be read.

    >>> token_of("reader.0123"), token_of(None)
    ('reader.0123', None)
    """
    if token is None or not token.startswith("@"):
        return token
    path = Path(token[1:]).expanduser()
    try:
        return path.read_text().split("\n")[0].strip()
    except OSError as error:
        raise InvalidError(f"token: expected a readable file, found {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InvalidError(f"token: expected a text file, found {path}") from None
