"""Files of tensors and sketches: what hosts upload and report, and what consumers pull."""

from __future__ import annotations

import math
import random
import shutil
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fuzzing import samples
from fuzzing.driver import Target
from fuzzing.files import folder, fresh_file, kept_file
from fuzzing.mutation import spoil_bytes, spoil_json, spoil_tensors
from memgrid.digest import token_bytes
from memgrid.errors import InvalidError
from memgrid.kinds.evaluate import SCORES_FILE, EvaluateKind
from memgrid.kinds.frame import FRAME_FILE
from memgrid.kinds.kind import Replica
from memgrid.kinds.prefill import check_kv_file, read_kv
from memgrid.kinds.prefill_kind import PrefillKind
from memgrid.kinds.shard import conversation_digests, distinct, read_shard
from memgrid.kinds.state_file import check_state
from memgrid.kinds.study import StudyKind, sketch_shard
from memgrid.kinds.tensorfile import TensorFile
from memgrid.kinds.tolerances import BUILT_IN
from memgrid.kinds.trace import TRACE_FILE
from memgrid.kinds.train import STATE_FILE, TrainKind, committed_name, output_names
from memgrid.units import ComputeDtype, Output, StoreDtype
from memgrid_volunteer.kinds.committed import COMMITTED_FILE, PART_NAME
from memgrid_volunteer.packing import PACKED_FORMAT, unpack

GEOMETRY = samples.GEOMETRY


def targets() -> tuple[Target, ...]:
    return (
        _of("tensor_file", "any file of tensors", lambda: [_kv(dtype) for dtype in StoreDtype], _tensor_file),
        _of("prefill_sketch", "a report's sketch of a KV cache", lambda: [_work(StoreDtype.FLOAT32).sketch], _sketch),
        _of("study_sketch", "a report's sketch of conversations", lambda: [sketch_shard(samples.shard())], _study),
        _of("delta_sketch", "a report's sketch of a training", lambda: [samples.delta_sketch()], _delta),
        _of("scores", "a report's scores, which are their own sketch", lambda: [samples.scores()], _scores),
        _of("kv_upload", "an uploaded KV cache", lambda: [_kv(StoreDtype.BFLOAT16)], _kv_upload),
        _of("kv_pulled", "the KV cache of a pulled cube", lambda: [_kv(dtype) for dtype in StoreDtype], _kv_pulled),
        _of("shard_upload", "uploaded conversations", lambda: [samples.shard_file()], _shard_upload, 50_000),
        _of("shard", "conversations that training reads", lambda: [samples.shard_file()], _shard),
        _of("state_upload", "an uploaded training, its state spoilt", lambda: [samples.state_file()], _state, 50_000),
        _half_done_target(),
        _of("state_lora", "an uploaded state of LoRA", lambda: [samples.state_file(4, samples.LORA)], _lora, 50_000),
    )


def _of(
    name: str, about: str, seeds: Callable[[], Sequence[bytes]], run: Callable[[bytes], object], count: int = 100_000
) -> Target:
    return Target(name=name, about=about, seeds=seeds, run=run, mutators=(spoil_tensors,) * 4, executions=count)


def _half_done_target() -> Target:
    """Spoilt as a file, and in the line within it, which is JSON."""
    return Target(
        name="half_done",
        about="what another host did of a unit",
        seeds=lambda: [samples.half_done()],
        run=_half_done,
        mutators=(spoil_tensors, spoil_tensors, _spoil_line, _rename),
        executions=50_000,
    )


def _rename(rng: random.Random, content: bytes) -> bytes:
    """One file of it under another name, whole."""
    try:
        files = load(content)
        files[rng.choice(_NAMES)] = files.pop(rng.choice(sorted(files)))
        return save(files, metadata=_META)
    except (SafetensorError, IndexError):
        return spoil_bytes(rng, content)


def _spoil_line(rng: random.Random, content: bytes) -> bytes:
    try:
        files = load(content)
        line = spoil_json(rng, files[COMMITTED_FILE].tobytes())
        files[COMMITTED_FILE] = np.frombuffer(line, dtype=np.uint8)
        return save(files, metadata=_META)
    except (SafetensorError, KeyError, ValueError):
        return spoil_bytes(rng, content)


def _tensor_file(content: bytes) -> object:
    file = TensorFile.of_bytes(content)
    for name, info in file.tensors.items():
        assert file.bits(name).nbytes == info.end - info.start, "a tensor of another size than its bytes"
        if info.dtype in ("F32", "F16", "BF16"):
            file.float32(name)
            file.is_finite(name)
    return file


def _sketch(content: bytes) -> object:
    return _claimed(PrefillKind(), samples.prefill_spec(StoreDtype.FLOAT32), content, ["kv.safetensors"])


def _study(content: bytes) -> object:
    return _claimed(StudyKind(), samples.study_spec(), content, ["conversations.safetensors"])


def _delta(content: bytes) -> object:
    spec = samples.train_spec()
    return _claimed(TrainKind(), spec, content, output_names(spec))


def _scores(content: bytes) -> object:
    return _claimed(EvaluateKind(), samples.evaluate_spec(), content, [SCORES_FILE])


def _claimed(kind: Any, spec: Any, content: bytes, names: Sequence[str]) -> object:
    """A sketch as a report brings it, and how it compares with itself."""
    size_bytes = len(content) if names == [SCORES_FILE] else 100
    outputs = [Output(name=name, digest=samples.digest(), size_bytes=size_bytes) for name in names]
    kind.check_claim(spec, outputs, content, GEOMETRY)
    replica = Replica(sketch=content, compute_dtype=ComputeDtype.FLOAT32)
    with np.errstate(all="ignore"):
        found = kind.compare(spec, replica, replica, GEOMETRY, BUILT_IN)
    assert found.distance == 0 and found.exceeded is None, f"it differs from itself: {found}"
    return found


def _kv_upload(content: bytes) -> object:
    spec, path = samples.prefill_spec(), fresh_file(content)
    check_kv_file(path, spec, samples.TOKENS, GEOMETRY)
    files, inputs = {"kv.safetensors": path}, {"tokens.bin": kept_file("tokens.bin", token_bytes(samples.TOKENS))}
    with np.errstate(all="ignore"):
        return PrefillKind().check_files(spec, files, inputs, _work(StoreDtype.BFLOAT16).sketch, GEOMETRY)


def _kv_pulled(content: bytes) -> object:
    found = read_kv(fresh_file(content))
    return [array.shape for array in (*found.k, *found.v, found.tokens)]


def _shard_upload(content: bytes) -> object:
    inputs = {FRAME_FILE: kept_file(FRAME_FILE, samples.FRAME.to_bytes())}
    sketched = sketch_shard(samples.shard())
    files = {"conversations.safetensors": fresh_file(content)}
    return StudyKind().check_files(samples.study_spec(), files, inputs, sketched, GEOMETRY)


def _shard(content: bytes) -> object:
    shard = read_shard(fresh_file(content))
    lengths = [len(shard.question(index)) for index in range(len(shard))]
    assert sum(lengths) == len(shard.question_ids), "conversations overlap, or leave something out"
    rows = [shard.rows(index) for index in range(len(shard))]
    assert sum(row.stop - row.start for row in rows) == len(shard.answer_ids), "answers overlap"
    conversation_digests(shard)
    return distinct([shard, shard])


def _state(content: bytes) -> object:
    others, inputs, sketched = _rest_of_a_training()
    with np.errstate(all="ignore"):
        return TrainKind().check_files(
            samples.train_spec(), {STATE_FILE: fresh_file(content), **others}, inputs, sketched, GEOMETRY
        )


def _lora(content: bytes) -> object:
    return check_state(fresh_file(content), samples.LORA, _lora_start(), step=4, moments=True, geometry=GEOMETRY)


def _half_done(content: bytes) -> object:
    """Whatever comes, nothing is written but files of the unit's kind, in the folder that is theirs."""
    spec, place = samples.train_spec().to_bytes(), folder() / "half-done" / "place"
    shutil.rmtree(place.parent, ignore_errors=True)
    try:
        line = unpack(fresh_file(content), spec, place)
    except InvalidError:
        assert not place.exists(), "something is left of what was turned down"
        raise
    finally:
        assert {path.name for path in place.parent.glob("*")} <= {place.name}, "it wrote beside its folder"
    found = {path.name for path in place.iterdir()}
    assert all(name in _COMMITTED or PART_NAME.fullmatch(name) for name in found), f"it wrote {found}"
    # Nothing done at all is less than any host has: it is not kept.
    assert 0 <= line.done <= 1 and 0 <= line.compute_s < math.inf
    return line


_NAMES = ("../beside", "a/b", ".bashrc", "kv.safetensors", "part-0001.safetensors.sh", "part-9999.safetensors", "")
_META = {"format": PACKED_FORMAT, "unit": str(samples.train_spec().key)}
_COMMITTED = {COMMITTED_FILE, *output_names(samples.train_spec())}


@cache
def _work(dtype: StoreDtype) -> Any:
    return samples.prefill_work(dtype)


def _kv(dtype: StoreDtype) -> bytes:
    content: bytes = _work(dtype).content
    return content


@cache
def _rest_of_a_training() -> tuple[dict[str, Path], dict[str, Path], bytes]:
    others = {
        TRACE_FILE: kept_file(TRACE_FILE, samples.trace()),
        committed_name(1): kept_file(committed_name(1), samples.state_file(2)),
    }
    return others, {STATE_FILE: kept_file("start", samples.state_file(0))}, samples.delta_sketch()


@cache
def _lora_start() -> Path:
    return kept_file("lora", samples.state_file(0, samples.LORA))
