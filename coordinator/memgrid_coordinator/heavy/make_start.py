"""The state that training starts from, and the adapter it is, for other documents to be trained beside."""

from __future__ import annotations

from pathlib import Path

from memgrid.campaign_distill import Start
from memgrid.cube.identity import ModelIdentity
from memgrid.cube.peft import adapter_files
from memgrid.digest import token_ids
from memgrid.kinds.frame import ChatFrame
from memgrid.specs import AdapterKind, AdapterSpec
from memgrid.units import StoreDtype
from memgrid_coordinator.heavy.made_file import Files, MadeFile


def make_start(
    *,
    out: Path,
    files: Files,
    model_folder: Path,
    adapter: AdapterSpec,
    start: Start,
    seed: int,
    base: ModelIdentity,
    moments: bool = True,
) -> tuple[MadeFile, ...]:
    """Without `moments` the state is what a round begins with; raises InvalidError when the text is too short."""
    import torch

    from memgrid.distill.model import load_model
    from memgrid.distill.starts import start_state

    (text,), (frame,) = files["text"], files["frame"]
    model = load_model(model_folder, torch.float32, torch.device("cpu"))
    state = out / "state.safetensors"
    began = start_state(
        model,
        adapter,
        start,
        token_ids(text.read_bytes()),
        seed,
        state,
        frame=ChatFrame.from_bytes(frame.read_bytes()),
        shards=files["shards"],
        moments=moments,
    )
    made = [MadeFile(name="start", path=state, detail={"start": began})]
    if adapter.kind is AdapterKind.PREFIX:
        # A LoRA that was not trained changes nothing: nobody need be trained beside it.
        _, tensors = adapter_files(state, adapter, base, StoreDtype.BFLOAT16)
        beside = out / "adapter_model.safetensors"
        beside.write_bytes(tensors)
        made.append(MadeFile(name="start-adapter", path=beside))
    return tuple(made)
