"""A model over several devices: which part goes where, and that a cache comes out the same through the parts.

No machine of the tests has two GPUs. What goes where is decided without them; the parts are then kept in memory and
on the disk instead, through the same hooks that carry numbers from one device to the next.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from memgrid.distill.model import load_model, load_onto, spread
from memgrid.distill.prefill import Filling, flops_per_token, read_some
from memgrid.errors import InvalidError
from memgrid.units import DeviceFacts
from memgrid_volunteer.numerics import Device, find_device, joined
from tests.models import make_tiny_model

CPU = torch.device("cpu")
TOKENS = [(token * 37) % 300 + 3 for token in range(64)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("spread") / "tiny", layers=4)


def gpu(index: int, numerics_class: str = "cuda-sm86/torch-2") -> Device:
    facts = DeviceFacts(kind="cuda", name="A GPU", memory_bytes=8 << 30, numerics_class=numerics_class)
    return Device(torch_device=torch.device("cuda", index), facts=facts)


def test_layers_go_side_by_side_to_devices_with_room(folder: Path) -> None:
    whole = sum(each.numel() * each.element_size() for each in load_model(folder, torch.float32, CPU).parameters())
    found = spread(folder, torch.float32, {0: round(0.8 * whole), 1: 2 * whole})
    where = [found[f"model.layers.{layer}"] for layer in range(4)]
    assert where == sorted(where, key=str) and set(where) == {0, 1}
    assert found["model.embed_tokens"] == 0


def test_what_does_not_fit_is_refused_and_not_put_on_the_disk(folder: Path) -> None:
    with pytest.raises(MemoryError, match="2 devices"):
        spread(folder, torch.float32, {0: 100_000, 1: 100_000})


def test_a_cache_is_the_same_through_a_spread_model(folder: Path, tmp_path: Path) -> None:
    expected = Filling((), len(TOKENS))
    read_some(load_model(folder, torch.float32, CPU).base_model, TOKENS, expected, len(TOKENS))
    parts = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    parts |= {f"model.layers.{layer}": "cpu" if layer < 2 else "disk" for layer in range(4)}
    model = load_onto(folder, torch.float32, {**parts}, offload_folder=tmp_path).base_model
    assert model.layers[3].mlp.up_proj.weight.device.type == "meta", "the part on the disk is in memory"
    filling = Filling((), len(TOKENS))
    for _ in range(2):
        read_some(model, TOKENS, filling, len(TOKENS) // 2)
    for (k, v), (other_k, other_v) in zip(expected.new(), filling.new(), strict=True):
        torch.testing.assert_close(k, other_k, rtol=0, atol=1e-5)
        torch.testing.assert_close(v, other_v, rtol=0, atol=1e-5)
    assert flops_per_token(model) == flops_per_token(load_model(folder, torch.float32, CPU).base_model)


def test_two_gpus_that_round_alike_work_as_one() -> None:
    both = joined([gpu(0), gpu(1)])
    assert (both.device_id, both.facts.name, both.facts.memory_bytes) == ("cuda:0,cuda:1", "2 × A GPU", 16 << 30)
    assert both.told().device_id == "cuda:0,cuda:1"
    assert joined([gpu(1)]).beside == ()


def test_what_can_not_work_as_one_is_refused() -> None:
    with pytest.raises(InvalidError, match="cuda:0,cuda:1: expected GPUs of one architecture"):
        joined([gpu(0), gpu(1, "cuda-sm90/torch-2")])
    with pytest.raises(InvalidError, match="expected each once"):
        joined([gpu(0), gpu(0)])
    with pytest.raises(InvalidError, match="expected GPUs"):
        find_device("cpu,cpu")
    with pytest.raises(InvalidError, match=r"device cuda:9: this machine has .*cpu"):
        find_device("cuda:9")
    assert find_device("cpu").device_id == "cpu"
