"""How fast caches are sketched, a core, beside copying and hashing the same bytes in the same run."""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.console import Console
from safetensors.numpy import save_file

from benchmarks.report import Report, Row, spread
from memgrid.kinds.prefill import KV_FORMAT, ModelGeometry
from memgrid.kinds.sketch import sketch_file, sketch_form
from memgrid.kinds.tensorfile import TensorFile
from memgrid.units import StoreDtype, UnitKey

SMOL = ModelGeometry(
    layers=30, heads=9, kv_heads=3, head_dim=64, hidden=576, vocab=49152, parameters=134515008, tied_embeddings=True
)
LLAMA_8B = ModelGeometry(
    layers=32, heads=32, kv_heads=8, head_dim=128, hidden=4096, vocab=128256, parameters=8030261248,
    tied_embeddings=False,
)  # fmt: skip
MODELS = {"SmolLM2-135M": SMOL, "Llama-3.1-8B": LLAMA_8B}
TOKENS = 2048
REPEATS = 7


def run(console: Console, quick: bool) -> Report:
    rows: list[Row] = []
    for name, geometry in MODELS.items():
        tokens = 256 if quick else TOKENS
        for store in StoreDtype:
            with console.status(f"sketch: {name} in {store}"), tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "kv.safetensors"
                _write(path, geometry, store, tokens)
                rows.append({"model": name, "store": str(store), **_measure(path, geometry, store, tokens, quick)})
    return Report(
        name="sketch",
        title=f"Sketching a cache of {TOKENS} tokens on one core",
        columns={
            "model": lambda row: row["model"],
            "stored in": lambda row: row["store"],
            "MB": lambda row: f"{row['bytes'] / 1e6:.0f}",
            "sketch": lambda row: f"{100 * row['share']:.3f} %",
            "sketched, GB/s": lambda row: f"{row['sketch']['gb_per_s']:.2f}",
            "copied": lambda row: f"{row['copy']['gb_per_s']:.1f}",
            "sha256": lambda row: f"{row['sha256']['gb_per_s']:.2f}",
        },
        rows=rows,
        notes=("GB of stored bytes per second of processor time, the best of the runs; files are in the cache.",),
    )


def _write(path: Path, geometry: ModelGeometry, store: StoreDtype, tokens: int) -> None:
    rng = np.random.default_rng(1)
    shape = (geometry.kv_heads, tokens, geometry.head_dim)
    tensors: dict[str, np.ndarray] = {"tokens": np.arange(tokens, dtype=np.int32)}
    for layer in range(geometry.layers):
        for half in ("k", "v"):
            values = rng.standard_normal(shape, dtype=np.float32)
            # numpy can't write bfloat16: float16 bits of the same size stand in, read as bfloat16 they are finite.
            tensors[f"l{layer}.{half}"] = values if store is StoreDtype.FLOAT32 else values.astype(np.float16)
    save_file(tensors, path, {"format": KV_FORMAT})
    if store is StoreDtype.BFLOAT16:
        content = path.read_bytes()
        end = 8 + int.from_bytes(content[:8], "little")
        header = content[8:end].replace(b'"F16"', b'"BF16"')
        path.write_bytes(len(header).to_bytes(8, "little") + header + content[end:])


def _measure(path: Path, geometry: ModelGeometry, store: StoreDtype, tokens: int, quick: bool) -> Row:
    size = geometry.kv_bytes(tokens, store)
    file = TensorFile.open(path)
    names = [name for name in file.tensors if name != "tokens"]
    form = sketch_form(geometry, store, tokens)
    tasks: dict[str, Callable[[], object]] = {
        "sketch": lambda: sketch_file(path, UnitKey("ab" * 32)),
        "copy": lambda: [file.bits(name).copy() for name in names],
        "sha256": lambda: [hashlib.sha256(file.raw(name)).digest() for name in names],
    }
    found: Row = {"bytes": size, "share": len(sketch_file(path, UnitKey("ab" * 32))) / size, "blocks": form.blocks}
    for name, task in tasks.items():
        seconds = [_cpu_s(task) for _ in range(2 if quick else REPEATS)]
        found[name] = {"cpu_s": spread(seconds), "gb_per_s": size / min(seconds) / 1e9}
    return found


def _cpu_s(task: Callable[[], object]) -> float:
    began_s = time.process_time()
    task()
    return time.process_time() - began_s
