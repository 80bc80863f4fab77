"""Generate the Python stubs in shared/memgrid/v1 from proto/; with --check, only say whether they are fresh."""

from __future__ import annotations

import filecmp
import os
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
COMMITTED = ROOT / "shared" / "memgrid" / "v1"


def generate(target: Path) -> None:
    """Write the stubs below `target`, as memgrid/v1/*_pb2*.py[i]."""
    # The plugins are programs beside this Python, found even where its environment is not activated.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    well_known = Path(protoc.__file__).parent / "_proto"
    protos = sorted(str(path) for path in (ROOT / "proto").rglob("*.proto"))
    out = ["python_out", "grpc_python_out", "mypy_out", "mypy_grpc_out"]
    arguments = [
        "protoc",
        f"-I{ROOT / 'proto'}",
        f"-I{well_known}",
        *(f"--{name}={target}" for name in out),
        *protos,
    ]
    if protoc.main(arguments) != 0:
        raise SystemExit("protoc failed; see above")


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        fresh = Path(scratch) / "memgrid" / "v1"
        names = sorted({path.name for path in fresh.iterdir()} | {path.name for path in COMMITTED.glob("*_pb2*")})
        stale = filecmp.cmpfiles(fresh, COMMITTED, names, shallow=False)
        differing = sorted([*stale[1], *stale[2]])
        if "--check" in sys.argv:
            if differing:
                raise SystemExit(f"stale stubs: {', '.join(differing)}; run scripts/gen_proto.py")
            return
        for old in COMMITTED.glob("*_pb2*"):
            old.unlink()
        for path in fresh.iterdir():
            (COMMITTED / path.name).write_bytes(path.read_bytes())


if __name__ == "__main__":
    main()
