"""Attaching a cube and reading a question, against reading the whole text, with the floor beside it.

The texts are the project's documentation, cut to so many tokens. The floor is what can't be avoided: reading the
files (from the page cache), casting their numbers once into the model's format, and running the question.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from demonstration.reading import kl
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from benchmarks.cubes import MODEL, ROOT, make_cube
from benchmarks.report import Report, Row, spread
from memgrid.cube.cube import MemCube
from memgrid.text import bytes_text, seconds_text

SIZES = (512, 1024, 2048, 4096)
QUESTION = "What does a volunteer's worker see of the machine it runs on?"
REPEATS = 3


def run(console: Console, quick: bool) -> Report:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = AutoTokenizer.from_pretrained(MODEL, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32, local_files_only=True).eval().to(device)
    bench = _Bench(model, tokenizer, 2 if quick else REPEATS)
    rows = []
    for size in SIZES[:2] if quick else SIZES:
        with console.status(f"attach: {size} tokens"), tempfile.TemporaryDirectory() as folder:
            rows.append(bench.measure(Path(folder), size))
    return Report(
        name="attach",
        title=f"Time to first token, SmolLM2-135M in float32 on {device.type}, {torch.get_num_threads()} threads",
        columns={
            "tokens": lambda row: f"{row['tokens']:,}",
            "read the text": lambda row: seconds_text(row["prefill_s"]["median"]),
            "attach the cube": lambda row: seconds_text(row["cube_s"]["median"]),
            "faster": lambda row: f"{row['speedup']:.1f}×",
            "plain torch": lambda row: seconds_text(row["plain_torch_s"]["median"]),
            "floor": lambda row: seconds_text(row["floor_s"]),
            "of it: disk": lambda row: seconds_text(row["disk_s"]["median"]),
            "memory": lambda row: seconds_text(row["memory_s"]["median"]),
            "question": lambda row: seconds_text(row["question_s"]["median"]),
            "size": lambda row: bytes_text(row["bytes"]),
            "KL": lambda row: f"{row['kl']:.0e}",
        },
        rows=rows,
        notes=("plain torch: load_file, one update a layer, the question; nothing is checked.",),
    )


class _Bench:
    """One model, one tokenizer, cubes of many sizes."""

    def __init__(self, model: Any, tokenizer: Any, repeats: int) -> None:
        self.model, self.tokenizer, self.repeats = model, tokenizer, repeats
        self.text = "\n\n".join(path.read_text() for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]))

    @torch.inference_mode()
    def measure(self, folder: Path, size: int) -> Row:
        cube = make_cube(folder, self.model, self._tokens(size))
        memory = cube.attach(self.model)  # hashes the model once
        ids = memory.prompt(self.tokenizer, QUESTION)["input_ids"]
        question = ids[:, size:]
        files = sorted((folder / "kv").iterdir())
        done = self._in_turns(
            prefill_s=lambda: self._first(ids, None),
            cube_s=lambda: self._first(question, cube.attach(self.model).cache()),
            plain_torch_s=lambda: self._first(question, plain_cache(files, self.model)),
            disk_s=lambda: [path.read_bytes() for path in files],
            memory_s=_casting(files, self.model),
            question_s=self._question(question, cube),
        )
        times = {name: spread(seconds) for name, (seconds, _) in done.items()}
        return {
            "tokens": size,
            **times,
            "speedup": times["prefill_s"]["median"] / times["cube_s"]["median"],
            "floor_s": sum(times[name]["median"] for name in ("disk_s", "memory_s", "question_s")),
            "bytes": cube.info().bytes,
            "kl": kl(done["prefill_s"][1], done["cube_s"][1]),
            "top1_agrees": bool(done["prefill_s"][1].argmax() == done["cube_s"][1].argmax()),
        }

    def _tokens(self, size: int) -> list[int]:
        ids: list[int] = self.tokenizer(self.text, add_special_tokens=False, verbose=False)["input_ids"]
        return (ids * (1 + size // len(ids)))[:size]

    def _first(self, ids: torch.Tensor, cache: Any) -> torch.Tensor:
        """Logits [vocabulary] of the first token of the answer."""
        logits: torch.Tensor = self.model(input_ids=ids, past_key_values=cache, logits_to_keep=1).logits[0, -1]
        return logits.cpu()  # waits for the device

    def _question(self, question: torch.Tensor, cube: MemCube) -> Callable[[], torch.Tensor]:
        """The question alone, over a cache that is cut back to its length after each run."""
        cache = cube.attach(self.model).cache()

        def ask() -> torch.Tensor:
            logits = self._first(question, cache)
            cache.crop(-question.shape[1])
            return logits

        return ask

    def _in_turns(self, **runs: Callable[[], Any]) -> dict[str, tuple[list[float], Any]]:
        """Seconds of each, one after the other in every round, in an order that changes; and the last results."""
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        results: dict[str, Any] = {}
        rng = random.Random(0)
        for _ in range(self.repeats):
            for name in rng.sample(list(runs), len(runs)):
                began_s = time.perf_counter()
                results[name] = runs[name]()
                seconds[name].append(time.perf_counter() - began_s)
        return {name: (seconds[name], results[name]) for name in runs}


def plain_cache(files: list[Path], model: Any) -> DynamicCache:
    """What a short script would do: load every file, join the chunks, fill a cache."""
    loaded = [load_file(path) for path in files]
    cache = DynamicCache()
    for layer in range(model.config.num_hidden_layers):
        k, v = (torch.cat([each[f"l{layer}.{half}"] for each in loaded], dim=1)[None] for half in "kv")
        cache.update(k.to(model.device, model.dtype), v.to(model.device, model.dtype), layer)
    return cache


def _casting(files: list[Path], model: Any) -> Callable[[], None]:
    """Cast as many numbers as the cube holds, from memory into memory, once."""
    count = sum(path.stat().st_size for path in files) // 2
    source = torch.ones(count, dtype=torch.bfloat16)
    target = torch.empty(count, dtype=model.dtype, device=model.device)

    def cast() -> None:
        target.copy_(source)
        target[-1].item()  # waits for the device

    return cast
