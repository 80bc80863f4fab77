"""A process holds one model, and lets go of it before it loads another."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import torch

from memgrid.distill.model import load_model

CPU = torch.device("cpu")


def test_the_former_model_goes_even_if_it_knows_itself(tiny_model_folder: Path, other_model_folder: Path) -> None:
    model = load_model(tiny_model_folder, torch.float32, CPU)
    assert load_model(tiny_model_folder, torch.float32, CPU) is model
    model.known_to_itself = [model]
    former = weakref.ref(model)
    del model
    load_model(other_model_folder, torch.float32, CPU)
    assert former() is None


def test_what_is_loaded_costs_a_collection_of_garbage_nothing(tiny_model_folder: Path) -> None:
    load_model(tiny_model_folder, torch.bfloat16, CPU)
    assert gc.get_freeze_count() > 100_000
