"""Memory for language models, computed by volunteers, checked, and shared.

from memgrid import Pool

memory = Pool("https://grid.example").pull("peps/pep-0008").attach(model)
output = model.generate(**memory.prompt(tokenizer, "…?"))
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memgrid.cube.attach import Attachment, attach, detach
    from memgrid.cube.cube import MemCube
    from memgrid.errors import MemgridError
    from memgrid.pool.client import Pool

__all__ = ["Attachment", "MemCube", "MemgridError", "Pool", "attach", "detach"]

_HOMES = {
    "Attachment": "memgrid.cube.attach",
    "MemCube": "memgrid.cube.cube",
    "MemgridError": "memgrid.errors",
    "Pool": "memgrid.pool.client",
    "attach": "memgrid.cube.attach",
    "detach": "memgrid.cube.attach",
}


def __getattr__(name: str) -> Any:
    # Coordinator and volunteer import parts of this package; none of them should pay for the consumer's libraries.
    if name not in _HOMES:
        raise AttributeError(f"module 'memgrid' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
