"""Several loops at once, which end together."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


async def together(*loops: Coroutine[Any, Any, object]) -> None:
    """Run loops until the first of them ends, then end the others; raises what it raised.

    >>> async def greet() -> None:
    ...     print("hello")
    >>> asyncio.run(together(greet(), asyncio.sleep(60)))
    hello
    """
    tasks = [asyncio.create_task(loop) for loop in loops]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for ended in done:
            ended.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
