"""From a train unit's files to the course it trains on.

Knows the names of input files; knows nothing of outputs, checks or training itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from weakref import WeakKeyDictionary

from memgrid.cube.geometry import config_of, geometry_of
from memgrid.distill.adapters import PREFIX_TENSOR, load_adapter
from memgrid.distill.batches import conversations_of
from memgrid.distill.mixing import Mixer
from memgrid.distill.model import CausalLM
from memgrid.distill.training import Course, make_course
from memgrid.errors import InvalidError
from memgrid.kinds.frame import FRAME_FILE, ChatFrame
from memgrid.kinds.prefill import ModelGeometry
from memgrid.kinds.refusal import RefusedError
from memgrid.kinds.shard import read_shard
from memgrid.kinds.tensorfile import TensorFile
from memgrid.kinds.train import distractor_name, shard_name
from memgrid.specs import AdapterKind, AdapterSpec, Purpose, TrainSpec
from memgrid.units import ReasonCode


def read_course(spec: TrainSpec, inputs: Mapping[str, Path], model: CausalLM) -> Course:
    """What the unit trains on.

    Raises InvalidError naming the file that is not what it should be, RefusedError when a shard is of another
    vocabulary or holds what is kept for scoring.
    """
    frame = ChatFrame.from_bytes(inputs[FRAME_FILE].read_bytes())
    vocab = int(model.get_input_embeddings().weight.shape[0])
    if frame.vocab > vocab:
        raise RefusedError(
            ReasonCode.VOCABULARY_MISMATCH, f"{FRAME_FILE}: {frame.vocab} tokens, the model has {vocab}"
        )
    shards = [read_shard(inputs[shard_name(number)]) for number in range(len(spec.shards))]
    for number, shard in enumerate(shards):
        if shard.purpose is Purpose.HELD_OUT:
            raise RefusedError(ReasonCode.HELD_OUT_LEAKED, f"{shard_name(number)}: these conversations are held out")
    return make_course(spec, conversations_of(shards, frame), frame, _mixer(spec, inputs, model))


def geometry_of_model(model: CausalLM) -> ModelGeometry:
    """The sizes of a loaded model; its weights need not be read again for them."""
    if model not in _geometries:
        _geometries[model] = _geometry_of(model)
    return _geometries[model]


_geometries: WeakKeyDictionary[CausalLM, ModelGeometry] = WeakKeyDictionary()
"""Counting parameters takes longer than some checks may."""


def _geometry_of(model: CausalLM) -> ModelGeometry:
    config = config_of(model.config.to_dict())
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return geometry_of(config, parameters=parameters, tied=bool(config.get("tie_word_embeddings")))


def _mixer(spec: TrainSpec, inputs: Mapping[str, Path], model: CausalLM) -> Mixer | None:
    if not spec.distractors or spec.distractor_share == 0:
        return None
    paths = [inputs[distractor_name(number)] for number in range(len(spec.distractors))]
    return Mixer(spec, [load_adapter(path, _prefix_in(path), model) for path in paths], model)


def _prefix_in(path: Path) -> AdapterSpec:
    """The spec of a prefix by its file: a distractor may have another length than the trained one."""
    info = TensorFile.open(path).tensors.get(PREFIX_TENSOR)
    if info is None or len(info.shape) != 2 or info.shape[0] < 2:
        raise InvalidError(f"{path.name}: distractors: expected a prefix of at least 2 tokens, no other adapter")
    return AdapterSpec(kind=AdapterKind.PREFIX, virtual_tokens=info.shape[0], frozen_tokens=1)
