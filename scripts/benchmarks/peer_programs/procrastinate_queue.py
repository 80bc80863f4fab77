"""Tasks that do nothing through Procrastinate and PostgreSQL, one transaction each: prints what they took.

Run as `PEER_URL=postgresql://… python procrastinate_queue.py TASKS` where procrastinate is installed.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
import time

from procrastinate import App, PsycopgConnector

app = App(connector=PsycopgConnector(conninfo=os.environ["PEER_URL"]))


@app.task(name="nothing")
async def nothing(number: int) -> int:
    return number


async def main(tasks: int) -> None:
    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        for number in range(tasks):
            await nothing.defer_async(number=number)
        spent, began_s = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        await app.run_worker_async(wait=False, concurrency=8, listen_notify=False, install_signal_handlers=False)
        took_s, now = time.perf_counter() - began_s, resource.getrusage(resource.RUSAGE_SELF)
        worker_s = now.ru_utime + now.ru_stime - spent.ru_utime - spent.ru_stime
        print(json.dumps({"took_s": took_s, "worker_cpu_s": worker_s}))


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
