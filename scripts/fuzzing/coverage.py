"""Let atheris choose what to spoil next, by which lines of the parsers ran; an optional tool, installed by hand."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

from fuzzing.driver import Target, execute
from fuzzing.mutation import CONTENT_BYTES_MAX

_CHILD = """
import sys
sys.path[:0] = {paths!r}
import atheris
with atheris.instrument_imports(include=["memgrid", "memgrid_coordinator", "memgrid_volunteer"]):
    from fuzzing.targets import every
from fuzzing.coverage import child
child(every()[{name!r}], {seed!r}, {arguments!r})
"""


def fuzz_by_coverage(target: Target, *, executions: int | None, seed: int, found: Path) -> int:
    """Run so many executions in a process of its own; 0 when the contract held. What broke it is put into `found`."""
    corpus = found / "corpus" / target.name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, content in enumerate(target.seeds()):
        (corpus / f"seed-{number}").write_bytes(content)
    arguments = [
        *("fuzz", f"-runs={executions or target.executions}", f"-seed={seed + 1}", f"-max_len={CONTENT_BYTES_MAX}"),
        *(f"-artifact_prefix={found}/{target.name}-", "-rss_limit_mb=2048", "-timeout=20", str(corpus)),
    ]
    code = _CHILD.format(paths=sys.path[:2], name=target.name, seed=seed, arguments=arguments)
    return subprocess.run([sys.executable, "-c", code], check=False).returncode


def child(target: Target, seed: int, arguments: list[str]) -> None:
    """Never returns: libFuzzer ends the process."""
    import atheris

    rng = random.Random(seed)

    def once(content: bytes) -> None:
        _, failure = execute(target, content)
        if failure is not None:
            raise RuntimeError(failure.fault)

    def spoil(content: bytes, size_max: int, mutation_seed: int) -> bytes:
        # Half of the time as structure, half of the time as libFuzzer likes it.
        rng.seed(mutation_seed)
        if target.mutators and rng.random() < 0.5:
            return rng.choice(target.mutators)(rng, content)[:size_max]
        spoilt: bytes = atheris.Mutate(content, size_max)
        return spoilt

    atheris.Setup(arguments, once, custom_mutator=spoil)
    atheris.Fuzz()
