"""Do what the Dockerfiles say without Docker: build both images over this machine, run them, ask their health.

Needs root, Linux and Debian's python3 (which stands in for the base image). Nothing of this machine is changed. Each
image runs as its own user with a read-only root, no capabilities, and /data and /tmp as its only places to write.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
UID = "10001"
READY_MAX_S = 600
BASE_HAS = "apt-get update -q && apt-get install -yq --no-install-recommends python3 python3-venv"
"""What the base image brings and this machine may lack."""


@dataclass(slots=True)
class Stage:
    """One FROM with what came of it: what differs from this machine is in `upper`."""

    upper: Path
    environment: dict[str, str] = field(default_factory=lambda: {"PATH": PATH, "HOME": "/root"})
    folder: str = "/"
    health: list[str] = field(default_factory=list)
    entry: list[str] = field(default_factory=list)
    words: list[str] = field(default_factory=list)


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/prove_image.py", description=__doc__)
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE")
    given = dict(each.split("=", 1) for each in parser.parse_args().build_arg)
    with tempfile.TemporaryDirectory(prefix="memgrid-images-") as scratch:
        folder = Path(scratch)
        base = Stage(upper=folder / "base")
        base.upper.mkdir()
        run(base, BASE_HAS)
        prove(base, given, folder)
    return 0


def build(file: str, given: dict[str, str], base: Stage, folder: Path) -> Stage:
    """Carry out every instruction; the last stage is the image."""
    begun_s, stages, named = time.monotonic(), [], {}
    values = dict(given)
    for word, rest in instructions((ROOT / file).read_text()):
        if word == "FROM":
            stage = Stage(upper=folder / f"{file}-{len(stages)}")
            subprocess.run(["cp", "--archive", base.upper, stage.upper], check=True)
            stages.append(stage)
            if " AS " in rest:
                named[rest.split(" AS ")[1]] = stage
        elif word == "ARG":
            name, _, default = rest.partition("=")
            values.setdefault(name, default)
        else:
            follow(stages[-1], word, rest, values, named)
    image = stages[-1]
    size_bytes = sum(path.lstat().st_size for path in (image.upper / "opt/memgrid").rglob("*"))
    print(
        f"{file}: built in {time.monotonic() - begun_s:.0f} s, /opt/memgrid has {size_bytes / 1e6:.0f} MB", flush=True
    )
    return image


def instructions(text: str) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile, each on one line."""
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    joined = re.sub(r"\\\n\s*", " ", lines)
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in joined.splitlines() if line.strip()]


def follow(stage: Stage, word: str, rest: str, values: dict[str, str], named: dict[str, Stage]) -> None:
    match word:
        case "ENV":
            for pair in shlex.split(rest):
                name, _, value = pair.partition("=")
                stage.environment[name] = value.replace("$PATH", stage.environment["PATH"])
        case "WORKDIR":
            stage.folder = rest
            (stage.upper / rest.strip("/")).mkdir(parents=True, exist_ok=True)
        case "COPY":
            copy(stage, shlex.split(rest), named)
        case "RUN":
            run(stage, rest, values)
        case "HEALTHCHECK":
            stage.health = json.loads(rest[rest.index("CMD") + 3 :])
        case "ENTRYPOINT":
            stage.entry = json.loads(rest)
        case "CMD":
            stage.words = json.loads(rest)
        case "LABEL" | "USER" | "VOLUME" | "EXPOSE" | "STOPSIGNAL":
            pass  # told to Docker, which is not here; the user is the one that the proof runs as
        case _:
            raise SystemExit(f"{word}: not understood here")


def copy(stage: Stage, words: list[str], named: dict[str, Stage]) -> None:
    source = named[words.pop(0).removeprefix("--from=")].upper if words[0].startswith("--from=") else ROOT
    *names, target = words
    where = stage.upper / (target if target.startswith("/") else f"{stage.folder}/{target}").strip("/")
    for name in names:
        path = source / name.strip("/")
        if path.is_dir():
            shutil.copytree(path, where, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            where.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, where)


def run(stage: Stage, command: str, values: dict[str, str] | None = None) -> None:
    """One RUN, as root in a namespace of its own, where the stage lies over this machine."""
    own = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_", "http", "HTTP"))}
    environment = {**own, **(values or {}), **stage.environment}
    chroot = f"cd {shlex.quote(stage.folder)} && {command}"
    done = subprocess.run(
        inside(stage.upper, f"chroot merged /bin/sh -euc {shlex.quote(chroot)}"),
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"RUN {command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")


def inside(upper: Path, command: str, *, data: Path | None = None) -> list[str]:
    """The words that run a shell command with the stage mounted at ./merged; read-only once it is an image."""
    mounts = [
        'cd "$(mktemp -d)" && mount -t tmpfs none . && mkdir merged work',
        # The work folder of an overlay must lie on the disk of its upper one.
        f"mkdir -p {upper}.work && mount -t overlay none -o lowerdir=/,upperdir={upper},workdir={upper}.work merged",
        "mount --rbind /dev merged/dev && mount -t proc proc merged/proc",
        # What is installed has to come from the image, not from the folder that it was made of.
        f"mount -t tmpfs none merged{ROOT}",
    ]
    if data is not None:
        mounts += [
            "mount -t tmpfs -o mode=1777 none merged/tmp",
            f"mkdir -p merged/data && mount --bind {data} merged/data",
            "mount -o remount,ro merged",
        ]
    return ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-euc", " && ".join([*mounts, command])]


def start(image: Stage, words: list[str], data: Path, log: Path) -> subprocess.Popen[bytes]:
    """Run words as the image's user."""
    user = ["setpriv", "--reuid", UID, "--regid", UID, "--clear-groups", "--no-new-privs", "--bounding-set", "-all"]
    command = f"cd /data && exec {shlex.join([*user, *words])}"
    whole = inside(image.upper, f"exec chroot merged /bin/sh -c {shlex.quote(command)}", data=data)
    with log.open("ab") as out:
        return subprocess.Popen(whole, env=image.environment, stdout=out, stderr=out)


def prove(base: Stage, given: dict[str, str], folder: Path) -> None:
    """A grid from one image, a volunteer from the other: both say that they are healthy, and stop when told."""
    data = {name: folder / f"{name}-data" for name in ("coordinator", "volunteer")}
    for path in data.values():
        path.mkdir()
        os.chown(path, int(UID), int(UID))
    logs = {name: folder / f"{name}.log" for name in data}
    running = []
    try:
        coordinator = build("Dockerfile.coordinator", given, base, folder)
        running.append(start(coordinator, coordinator.entry, data["coordinator"], logs["coordinator"]))
        await_healthy("coordinator", coordinator, running[-1], data, logs)
        write_nowhere(coordinator, data["coordinator"], logs["coordinator"])
        url = json.loads((data["coordinator"] / "endpoint.json").read_text())["url"]
        url = re.sub(r"//[^:/]+", "//127.0.0.1", url)
        volunteer = build("Dockerfile.volunteer", given, base, folder)
        joined = start(volunteer, [*volunteer.entry, "join", url], data["volunteer"], logs["volunteer"])
        if joined.wait(READY_MAX_S):
            raise SystemExit(f"join failed:\n{logs['volunteer'].read_text()[-2000:]}")
        running.append(start(volunteer, [*volunteer.entry, *volunteer.words], data["volunteer"], logs["volunteer"]))
        await_healthy("volunteer", volunteer, running[-1], data, logs)
        stop("volunteer", running[1])
        stop("coordinator", running[0])
    finally:
        for process in running:
            process.kill()


def await_healthy(
    name: str, image: Stage, process: subprocess.Popen[bytes], data: dict[str, Path], logs: dict[str, Path]
) -> None:
    begun_s = time.monotonic()
    while time.monotonic() - begun_s < READY_MAX_S and process.poll() is None:
        if start(image, image.health, data[name], logs[name].with_suffix(".health")).wait() == 0:
            print(f"{name}: healthy after {time.monotonic() - begun_s:.1f} s, as user {UID}, root read-only")
            return
        time.sleep(0.5)
    raise SystemExit(f"{name}: not healthy after {READY_MAX_S} s:\n{logs[name].read_text()[-4000:]}")


def write_nowhere(image: Stage, data: Path, log: Path) -> None:
    """The proof of the proof: outside of /data and /tmp nothing can be written."""
    if start(image, ["touch", "/opt/memgrid/x"], data, log.with_suffix(".touch")).wait() == 0:
        raise SystemExit("/opt/memgrid could be written")


def stop(name: str, process: subprocess.Popen[bytes]) -> None:
    """What `docker stop` does: SIGTERM to the program itself, which here is the child of the namespace's keeper."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGTERM)
    code = process.wait(60)
    print(f"{name}: ended with {code} after SIGTERM")
    if code:
        raise SystemExit(f"{name}: expected 0")


if __name__ == "__main__":
    sys.exit(main())
