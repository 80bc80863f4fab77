"""Tasks that do nothing through Celery and Redis, acknowledged after they ran, results kept: prints what they took.

Run as `PEER_URL=redis://… python celery_queue.py TASKS` where celery[redis] and psutil are installed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
from celery import Celery

app = Celery("celery_queue", broker=os.environ["PEER_URL"], backend=os.environ["PEER_URL"])
app.conf.update(task_acks_late=True, broker_connection_retry_on_startup=True)


@app.task(name="nothing")
def nothing(number: int) -> int:
    return number


def main(tasks: int) -> None:
    kept = app.backend.client
    command = [
        sys.executable,
        "-m",
        "celery",
        "-A",
        "celery_queue",
        "worker",
        "--pool",
        "solo",
        "--loglevel",
        "ERROR",
    ]
    here = Path(__file__).parent
    worker = subprocess.Popen(command, cwd=here, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        nothing.delay(-1).get(timeout=60)  # from here on the worker is up
        process, before = psutil.Process(worker.pid), kept.dbsize()
        spent, began_s = process.cpu_times(), time.perf_counter()
        for number in range(tasks):
            nothing.delay(number)
        while kept.dbsize() - before < tasks:  # a key a result
            time.sleep(0.05)
        took_s, now = time.perf_counter() - began_s, process.cpu_times()
        worker_s = now.user + now.system - spent.user - spent.system
        print(json.dumps({"took_s": took_s, "worker_cpu_s": worker_s}))
    finally:
        worker.terminate()
        worker.wait(30)


if __name__ == "__main__":
    main(int(sys.argv[1]))
