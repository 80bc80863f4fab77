"""A trained state becomes a signed folder that memgrid verifies, PEFT loads, and people can read."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM

from memgrid.cube.cube import MemCube
from memgrid.cube.identity import ModelIdentity, identity_of_folder
from memgrid.errors import InvalidError, NotVerifiedError
from memgrid.signing import SigningKey
from memgrid.specs import AdapterSpec
from memgrid_coordinator.heavy.assemble_adapter import assemble_adapter
from memgrid_coordinator.heavy.plots import LossPoint, loss_plot, quality_plot
from tests.adapters import LORA, PREFIX, QUALITY, adapter_order, make_parameter_cube, write_state

# PEFT asks transformers something that it now calls by another name; our files have no part in it.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

KEY = SigningKey.generate()
FILES = {
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "eval/report.json",
    "memcube.intoto.jsonl",
    "memcube.json",
    "plots/loss.svg",
    "plots/quality.svg",
}
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def model(tiny_model_folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def base(tiny_model_folder: Path) -> ModelIdentity:
    return identity_of_folder(tiny_model_folder, "tiny")


@pytest.mark.parametrize("adapter", [PREFIX, LORA], ids=["prefix", "lora"])
def test_the_folder_verifies_and_peft_loads_it(
    tmp_path: Path, model: Any, base: ModelIdentity, adapter: AdapterSpec
) -> None:
    made = make_parameter_cube(tmp_path / "cube", adapter, model, base, KEY)
    folder = tmp_path / "cube"
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == FILES
    found = MemCube.open(folder).verify([KEY.public_key])
    assert found.digest == made.digest
    assert found.provenance.predicate["buildDefinition"]["externalParameters"]["recipe"] == "distill"
    PeftModel.from_pretrained(model, str(folder))


def test_any_changed_file_is_noticed(tmp_path: Path, model: Any, base: ModelIdentity) -> None:
    make_parameter_cube(tmp_path / "cube", PREFIX, model, base, KEY)
    for name in sorted(FILES):
        path = tmp_path / "cube" / name
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises((NotVerifiedError, InvalidError), match=re.escape(name)):
            MemCube.open(tmp_path / "cube").verify([KEY.public_key])
        path.write_bytes(content)


def test_equal_orders_make_equal_cubes(tmp_path: Path, model: Any, base: ModelIdentity) -> None:
    order, _ = adapter_order(write_state(tmp_path / "s", PREFIX, model), PREFIX, base)
    first = assemble_adapter(order, KEY)
    later = replace(order, making=replace(order.making, replicas=99))
    assert assemble_adapter(later, KEY).manifest.to_bytes() == first.manifest.to_bytes()
    assert assemble_adapter(replace(order, trace=order.trace[:-1]), KEY).digest != first.digest


def test_the_card_says_what_a_reader_needs(tmp_path: Path, model: Any, base: ModelIdentity) -> None:
    title = "Pumps | `valves` <b>"
    make_parameter_cube(tmp_path / "cube", PREFIX, model, base, KEY, title=title)
    card = (tmp_path / "cube" / "README.md").read_text()
    _, front, body = card.split("---\n", 2)
    said = yaml.safe_load(front)
    assert (said["library_name"], said["base_model"], said["base_model_relation"]) == ("peft", "tiny", "adapter")
    assert "# Pumps \\| \\`valves\\` \\<b\\>" in body
    for shown in re.findall(r"!\[.*?\]\((.*?)\)", body):
        assert (tmp_path / "cube" / shown).is_file()
    assert body.count("![") == 2
    assert "closes **87%** of the gap" in body
    assert "tests/valves:1.0.0" in body and "PeftModel.from_pretrained" in body
    assert "| NLL of the answers, nats a token | 2.000 | **0.700** | 0.500 |" in body


def test_the_report_holds_what_the_plots_show(tmp_path: Path, model: Any, base: ModelIdentity) -> None:
    make_parameter_cube(tmp_path / "cube", PREFIX, model, base, KEY)
    report = json.loads((tmp_path / "cube/eval/report.json").read_bytes())
    assert report["quality"]["gap_closed"] == pytest.approx(QUALITY.gap_closed, abs=1e-6)
    assert report["training"][0] == [1, 90, 2.7] and len(report["training"]) == 32
    assert report["recipe"]["train"]["steps"] == 32


def test_plots_are_svg_with_their_numbers_in_them() -> None:
    trace = [LossPoint(step=step, tokens=500 * step, loss=3 - step / 20) for step in range(1, 41)]
    loss, quality = ElementTree.fromstring(loss_plot(trace)), ElementTree.fromstring(quality_plot(QUALITY))
    assert len(loss.findall(f".//{SVG}g[@id='steps']//{SVG}use")) == 40
    words = texts_of(loss)
    assert {"step", "loss, nats per answer token", "answer tokens trained on", "20k"} <= words
    assert {"without the text", "with this cube", "with the text in context"} <= texts_of(quality)
    assert {"2.000", "0.700", "0.500"} <= texts_of(quality)
    assert any(word.startswith("87% of the gap closed; 100 conv") for word in texts_of(quality))


def test_plots_neither_date_nor_differ() -> None:
    trace = [LossPoint(step=1, tokens=5, loss=1.0), LossPoint(step=2, tokens=9, loss=-0.5)]
    assert loss_plot(trace) == loss_plot(trace) and quality_plot(QUALITY) == quality_plot(QUALITY)
    assert b"dc:date" not in loss_plot(trace) and b"Matplotlib v" not in loss_plot(trace)
    assert loss_plot(trace[:1]) != loss_plot(trace)


def test_nothing_to_draw_is_drawn_too() -> None:
    assert ElementTree.fromstring(loss_plot([])).tag == f"{SVG}svg"


def texts_of(svg: ElementTree.Element) -> set[str]:
    return {(element.text or "").strip() for element in svg.iter(f"{SVG}text")}
