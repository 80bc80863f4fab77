"""Every parser of strangers' bytes returns a value or says what is wrong; a little of what `scripts/fuzz` does."""

from __future__ import annotations

import json
import random
import struct
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from memgrid.errors import InvalidError, MemgridError
from memgrid.kinds.shard import read_shard, write_shard
from memgrid.wire import check_field_count

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from fuzzing import samples  # noqa: E402
from fuzzing.driver import Target, execute, fuzz  # noqa: E402
from fuzzing.mutation import spoil_json, spoil_tensors  # noqa: E402
from fuzzing.targets import every  # noqa: E402

NAMES = [name for name in every() if name != "http"]
EXECUTIONS = 120


@pytest.mark.parametrize("name", NAMES)
def test_parsers_of_strangers_bytes_keep_their_contract(name: str) -> None:
    outcome = fuzz(every()[name], executions=EXECUTIONS, seed=0)
    assert [failure.fault for failure in outcome.failures] == []
    assert outcome.executions == EXECUTIONS


@pytest.mark.parametrize("name", NAMES)
def test_what_the_program_writes_is_read(name: str) -> None:
    target = every()[name]
    for content in target.seeds():
        assert execute(target, content) == ("", None)


def tensors(header: Any, data: bytes = b"") -> bytes:
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(content)) + content + data


DEEP = b"[" * 100_000
ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
HUGE_AND_EMPTY = {"dtype": "F32", "shape": [0, 1 << 60, 1 << 60], "data_offsets": [0, 0]}
SPEC = json.loads(samples.train_spec().to_bytes())
FRAME = json.loads(samples.FRAME.to_bytes())
GRID = json.loads(every()["description"].seeds()[0])
OCI = json.loads(every()["oci_pulled"].seeds()[0])
FOUND: list[tuple[str, bytes]] = [
    ("tensor_file", tensors({"x": {**ONE, "dtype": []}}, bytes(4))),
    ("tensor_file", tensors({"x": {**ONE, "dtype": {}}}, bytes(4))),
    ("tensor_file", tensors({"x": HUGE_AND_EMPTY})),
    ("tensor_file", tensors({"\ud800": {**ONE, "shape": [2]}}, bytes(4))),
    ("tensor_file", tensors({"\0": {**ONE, "shape": [2]}}, bytes(4))),
    ("tensor_file", tensors(DEEP)),
    ("prefill_sketch", tensors({"k": {**ONE, "dtype": []}, "v": ONE}, bytes(4))),
    ("shard", tensors({"top_logprobs": HUGE_AND_EMPTY})),
    ("spec", json.dumps({**SPEC, "learning_rate": float("nan")}).encode()),
    ("spec", json.dumps({**SPEC, "learning_rate": 10**400}).encode()),
    ("spec", json.dumps({**SPEC, "stream": "\ud800"}).encode()),
    ("frame", json.dumps({**FRAME, "vocab": float("inf")}).encode()),
    ("frame", json.dumps({**FRAME, "tokenizer": [1]}).encode()),
    ("frame", json.dumps({**FRAME, "vocab": 2**63}).encode()),
    ("oci_pulled", json.dumps({**OCI, "annotations": {"a": "\ud800"}}).encode()),
    ("oci_pushed", json.dumps({**OCI, "annotations": {"\ud800": "b"}}).encode()),
    ("oci_pulled", json.dumps({**OCI, "config": {**OCI["config"], "size": 10**400}}).encode()),
    ("campaign", b'{"int": 1, "\\u001b[2J": 2}'),
    ("campaign", DEEP[:60_000]),
    ("campaign_yaml", DEEP[:4000]),
    ("description", DEEP),
    ("description", b'{"grid_key": "' + b"11" * 32 + b'", "grpc_port": 1e999}'),
    ("description", json.dumps({**GRID, "name": "\ud800"}).encode()),
    ("description", json.dumps({**GRID, "version": "\x1b[2J"}).encode()),
    ("listings", DEEP),
    ("worker_words", DEEP),
    ("worker_words", b'{"progress": {"done": 1' + b"0" * 400 + b', "text": ""}}'),
    ("identity", json.dumps({**samples.BASE.to_json(), "sliding_window": 2**63}).encode()),
    ("identity", json.dumps({**samples.BASE.to_json(), "\ud800": 1}).encode()),
    ("model_config", b'{"rope_theta": "\\u001b[2J"}'),
    ("tolerances", json.dumps({**json.loads(every()["tolerances"].seeds()[0]), "origin": "\ud800"}).encode()),
    ("grid_url", b"http:" + b"9" * 60_000),
    ("token", b"operator.\xff"),
    ("token", b"host.\xff.x"),
]


@pytest.mark.parametrize(
    ("name", "content"), FOUND, ids=[f"{name}-{number}" for number, (name, _) in enumerate(FOUND)]
)
def test_what_once_broke_a_contract_does_not_again(name: str, content: bytes) -> None:
    way, failure = execute(every()[name], content)
    assert failure is None, failure
    assert way, "it is turned down"


def test_offsets_that_only_look_ascending_are_turned_down(tmp_path: Path) -> None:
    shard = samples.shard()
    wrapping = np.array([0, 2**63 - 1, -(2**63), -1, len(shard.question_ids)], dtype=np.int64)
    assert (np.diff(wrapping) >= 0).all(), "numpy's differences wrap round"
    write_shard(tmp_path / "shard", replace(shard, question_offsets=wrapping))
    with pytest.raises(InvalidError, match="expected to ascend"):
        read_shard(tmp_path / "shard")


def test_a_reason_is_text_that_can_be_sent_and_stored() -> None:
    error = MemgridError("a\ud800b\0c\x1b[2Jd\ne" + "x" * 10_000)
    assert str(error).startswith("a\\ud800b\\x00c\\x1b[2Jd\nex") and len(str(error)) == 4000
    assert str(error).encode() and "\0" not in str(error)


def test_fields_are_counted_without_parsing() -> None:
    check_field_count(b"\x12\x00" * 1000, 1000)
    with pytest.raises(InvalidError, match="more than 999 fields"):
        check_field_count(b"\x12\x00" * 1000, 999)
    for content in (b"\x12\x7f" * 40, b"\xff" * 40, b"\x0b\x00" * 20, b"\x0d" * 41):
        with pytest.raises(InvalidError, match=r"ends inside|unknown wire type"):
            check_field_count(content, 15)


def test_the_driver_sees_what_breaks_a_contract() -> None:
    """Or none of the above would mean anything."""

    def brittle(content: bytes) -> object:
        value = json.loads(content)
        if not isinstance(value, dict):
            raise InvalidError("expected an object")
        return value["a"] + 1

    target = Target(name="brittle", about="", seeds=lambda: [b'{"a":1}'], run=brittle, mutators=(spoil_json,))
    outcome = fuzz(target, executions=3000, seed=1)
    kinds = {failure.fault.partition(":")[0] for failure in outcome.failures}
    assert {"JSONDecodeError", "KeyError"} <= kinds
    assert outcome.accepted > 0
    again = fuzz(target, executions=3000, seed=1)
    assert [failure.content for failure in again.failures] == [failure.content for failure in outcome.failures]

    def talkative(content: bytes) -> object:
        raise OSError(content)

    mute = replace(target, run=talkative, allowed=(OSError,))
    assert execute(mute, b"\0")[1] is None, "an allowed error's words are shown as bytes"
    wordy = replace(target, run=lambda content: (_ for _ in ()).throw(ValueError("\0")), allowed=(ValueError,))
    assert execute(wordy, b"")[1] is not None


def test_spoilt_tensors_keep_a_readable_header() -> None:
    rng, content = random.Random(0), save({"x": np.ones(4, dtype=np.float32)})
    spoilt = [spoil_tensors(rng, content) for _ in range(200)]
    lengths = [int.from_bytes(each[:8], "little") for each in spoilt]
    assert all(8 + length <= len(each) for length, each in zip(lengths, spoilt, strict=True))
    assert len({each[8 : 8 + length] for length, each in zip(lengths, spoilt, strict=True)}) > 50
