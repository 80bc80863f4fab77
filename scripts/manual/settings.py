"""The page of the coordinator's settings, from the class that reads them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from manual.markdown import attribute_docs, code, table
from memgrid_coordinator.settings import Settings

_HEAD = """\
# Settings of a coordinator

Each is read from the environment at the start. Those that `memgrid coordinator serve` has an option for are better
given there: an option wins. Times are seconds, or ISO 8601 durations such as `PT15M`; sizes are bytes.

"""


def page() -> str:
    """Markdown."""
    docs = attribute_docs(Settings)
    prefix = Settings.model_config["env_prefix"]
    rows = [
        (code(f"{prefix}{name}".upper()), _default(field), docs.get(name, ""))
        for name, field in Settings.model_fields.items()
    ]
    return _HEAD + table(("variable", "default", "means"), rows)


def _default(field: Any) -> str:
    if field.is_required():
        return "must be given"
    value = field.default
    if isinstance(value, timedelta):
        return code(f"{value.total_seconds():g}")
    return "" if value is None else code(value)
