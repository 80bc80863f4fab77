"""Safetensors files from strangers are read strictly: what a header says must be what the file holds."""

from __future__ import annotations

import json
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import save

from memgrid.errors import InvalidError
from memgrid.kinds.tensorfile import TensorFile


def file_of(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(shape: list[Any], start: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=8).filter(str.isprintable),
        hnp.arrays(
            dtype=st.sampled_from([np.float32, np.float16, np.int32, np.uint8, np.int64]),
            shape=hnp.array_shapes(min_dims=0, max_dims=3, max_side=5),
            elements=st.integers(0, 100),
        ),
        min_size=1,
        max_size=4,
    )
)
@settings(max_examples=60, deadline=None)
def test_what_the_library_writes_is_read_bit_for_bit(tensors: dict[str, np.ndarray]) -> None:
    tensors = {name: values for name, values in tensors.items() if name != "__metadata__"}
    content = save(tensors, {"a": "b"})
    file = TensorFile.of_bytes(content)
    assert file.metadata == {"a": "b"}
    assert set(file.tensors) == set(tensors)
    for name, values in tensors.items():
        assert file.bits(name).tobytes() == values.tobytes()
        assert file.tensors[name].shape == values.shape


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_read_or_refused_in_one_way(content: bytes) -> None:
    with suppress(InvalidError):
        TensorFile.of_bytes(content)


@given(st.integers(0, 10_000), st.integers(0, 7))
@settings(max_examples=150, deadline=None)
def test_flipped_bit_of_the_header_is_refused_or_keeps_every_size_true(place: int, bit: int) -> None:
    content = bytearray(save({"l0.k": np.ones((2, 3), np.float32), "tokens": np.ones(3, np.int32)}))
    header_end = 8 + struct.unpack("<Q", content[:8])[0]
    content[place % header_end] ^= 1 << bit
    try:
        file = TensorFile.of_bytes(bytes(content))
    except InvalidError:
        return
    assert sum(info.end - info.start for info in file.tensors.values()) == len(content) - header_end
    for name, info in file.tensors.items():
        assert file.bits(name).shape == info.shape


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "too short"),
        (file_of({}, length=1 << 62), "at most"),
        (file_of({}, length=100), "truncated"),
        (file_of(b"[]"), "not a JSON object"),
        (file_of(b"{"), "not JSON"),
        (file_of(b"[" * 100_000), "not JSON"),
        (file_of(b'{"a":1,"a":2}'), "twice"),
        (file_of({"a": tensor([1 << 60], 0, 4)}, b"1234"), "bad shape"),
        (file_of({"a": tensor([1 << 31, 1 << 31, 4], 0, 0)}), "bad shape"),
        (file_of({"a": tensor([-1], 0, 4)}, b"1234"), "bad shape"),
        (file_of({"a": tensor([True], 0, 4)}, b"1234"), "bad shape"),
        (file_of({"a": tensor([1.0], 0, 4)}, b"1234"), "bad shape"),
        (file_of({"a": tensor([1] * 9, 0, 4)}, b"1234"), "bad shape"),
        (file_of({"a": tensor([1], 4, 0)}, b"1234"), "do not match"),
        (file_of({"a": tensor([1], 0, 4, "F33")}, b"1234"), "unknown dtype"),
        (file_of({"a": tensor([1], 0, 4) | {"more": 1}}, b"1234"), "expected dtype"),
        (file_of({"a": tensor([1], 0, 4), "b": tensor([1], 0, 4)}, b"1234"), "starts at byte 0"),
        (file_of({"a": tensor([1], 4, 8)}, b"12345678"), "starts at byte 4"),
        (file_of({"a": tensor([1], 0, 4)}, b"12345"), "end at byte 4"),
        (file_of({"a": tensor([2], 0, 8)}, b"1234"), "end at byte 8"),
        (file_of({"__metadata__": {"a": 1}}), "text values"),
    ],
)
def test_header_that_lies_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(InvalidError, match=message):
        TensorFile.of_bytes(content)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_every_kind_of_infinity_is_seen(tmp_path: Path, dtype: str, value: float) -> None:
    import torch
    from safetensors.torch import save_file

    values = torch.linspace(-6e4, 6e4, 64).to(getattr(torch, dtype))
    spoiled = values.clone()
    spoiled[17] = value
    save_file({"good": values, "bad": spoiled}, tmp_path / "x.safetensors")
    file = TensorFile.open(tmp_path / "x.safetensors")
    assert file.is_finite("good") and not file.is_finite("bad")
    assert np.array_equal(file.float32("good"), values.float().numpy())
