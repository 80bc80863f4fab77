"""Documents become units that cover every token once, are cut alike everywhere, and fit their model."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memgrid.cube.identity import ModelIdentity, identity_of_folder
from memgrid.cube.manifest import LayoutKind, Wrap
from memgrid.digest import digest_of, token_bytes, token_ids
from memgrid.errors import InvalidError
from memgrid.kinds.prefill import ModelGeometry, flops
from memgrid.kinds.sketch import sketch_form
from memgrid.specs import PrefillSpec
from memgrid.units import SKETCH_BYTES_MAX, ComputeDtype, StoreDtype
from memgrid_coordinator.heavy.chunks import (
    PlannedChunk,
    PlanParameters,
    as_tokens,
    choose_chunk_tokens,
    cut,
    sink_tokens_of,
)
from memgrid_coordinator.heavy.plan import ActivationPlan, load_tokenizer, plan_activation
from memgrid_coordinator.heavy.sources import DocumentLimits, SourceFile, SourceFormat

CHAINED = PlanParameters(
    layout=LayoutKind.CHAINED,
    wrap=Wrap.PLAIN,
    chunk_tokens=16,
    target_unit_s=20,
    flops_per_s=1e10,
    compute_dtype=ComputeDtype.AUTO,
    store_dtype=StoreDtype.BFLOAT16,
    sink_tokens=1,
)
INDEPENDENT = replace(CHAINED, layout=LayoutKind.INDEPENDENT)
SMOL = ModelGeometry(
    layers=30,
    heads=9,
    kv_heads=3,
    head_dim=64,
    hidden=576,
    vocab=49152,
    parameters=134_515_008,
    tied_embeddings=True,
)
MODEL = digest_of(b"a model")
TEXT = "The valve opens at three bar and closes at two. " * 12


@pytest.fixture(scope="module")
def identity(tiny_model_folder: Path) -> ModelIdentity:
    return identity_of_folder(tiny_model_folder)


def sources_of(folder: Path, **texts: str) -> list[SourceFile]:
    sources = []
    for name, text in texts.items():
        path = folder / f"{name}.blob"
        path.write_text(text)
        sources.append(
            SourceFile(
                path=path, uri=f"{name}.txt", digest=digest_of(text.encode()), format=SourceFormat.TXT, licence="MIT"
            )
        )
    return sources


def cut_all(count: int, chunk_tokens: int, parameters: PlanParameters) -> list[PlannedChunk]:
    return list(cut(as_tokens(range(100, 100 + count)), chunk_tokens, MODEL, SMOL, parameters))


@given(count=st.integers(1, 400), size=st.integers(2, 90))
def test_chained_chunks_follow_one_another_and_cover_every_token(count: int, size: int) -> None:
    chunks = cut_all(count, size, CHAINED)
    assert b"".join(chunk.tokens for chunk in chunks) == token_bytes(range(100, 100 + count))
    assert chunks[0].spec.parent is None
    assert all(later.spec.parent == earlier.key for earlier, later in pairwise(chunks))
    starts = [chunk.spec.start for chunk in chunks]
    assert starts == [size * number for number in range(len(chunks))]
    assert all(chunk.spec.token_count == size for chunk in chunks[:-1])
    assert 0 < chunks[-1].spec.token_count <= size


@given(count=st.integers(1, 400), size=st.integers(2, 90), sink=st.integers(0, 64))
def test_independent_chunks_begin_with_the_sink_and_cover_every_token(count: int, size: int, sink: int) -> None:
    sink = min(sink, size - 1)
    chunks = cut_all(count, size, replace(INDEPENDENT, sink_tokens=sink))
    shared = sink_tokens_of(LayoutKind.INDEPENDENT, sink, count)
    ids = [token_ids(chunk.tokens) for chunk in chunks]
    whole = list(range(100, 100 + count))
    assert ids[0] + [token for more in ids[1:] for token in more[shared:]] == whole
    assert all(each[:shared] == whole[:shared] and shared < len(each) <= size for each in ids)
    assert all(chunk.spec.start == 0 and chunk.spec.parent is None for chunk in chunks)


@given(count=st.integers(1, 200), layout=st.sampled_from([CHAINED, INDEPENDENT]))
def test_a_chunk_is_what_its_spec_says(count: int, layout: PlanParameters) -> None:
    for chunk in cut_all(count, 32, layout):
        assert PrefillSpec.from_bytes(chunk.spec_bytes) == chunk.spec
        assert chunk.key == chunk.spec.key
        assert chunk.spec.tokens == digest_of(chunk.tokens)
        assert chunk.spec.token_count * 4 == len(chunk.tokens)
        assert chunk.flops == flops(SMOL, chunk.spec.token_count, chunk.spec.start)


@pytest.mark.parametrize(
    ("target_unit_s", "flops_per_s", "expected"),
    [(20, 1e12, 2048), (2, 1e11, 512), (1, 1e6, 64), (3600, 1e15, 2048)],
)
def test_units_are_sized_to_the_target_runtime(target_unit_s: float, flops_per_s: float, expected: int) -> None:
    parameters = replace(CHAINED, chunk_tokens=None, target_unit_s=target_unit_s, flops_per_s=flops_per_s)
    size = choose_chunk_tokens(SMOL, parameters)
    assert size == expected
    if 64 < size < 2048:
        assert flops(SMOL, size, 0) <= target_unit_s * flops_per_s < flops(SMOL, 2 * size, 0)


def test_a_deep_model_gets_chunks_whose_sketch_fits_a_report() -> None:
    deep = replace(SMOL, layers=126)
    chosen = choose_chunk_tokens(deep, replace(CHAINED, chunk_tokens=None, flops_per_s=1e18))
    assert chosen == 1024
    fits, does_not = (sketch_form(deep, StoreDtype.BFLOAT16, tokens) for tokens in (chosen, 2 * chosen))
    assert fits.data_bytes < SKETCH_BYTES_MAX < does_not.data_bytes
    with pytest.raises(InvalidError, match=r"activation.chunk_tokens: expected fewer for a model of 126 layers"):
        choose_chunk_tokens(deep, replace(CHAINED, chunk_tokens=2048))


def test_a_sink_as_long_as_a_chunk_is_refused() -> None:
    with pytest.raises(InvalidError, match=r"activation.sink_tokens: expected fewer than the 16 tokens of a chunk"):
        choose_chunk_tokens(SMOL, replace(INDEPENDENT, sink_tokens=16))


def test_a_document_in_chat_is_the_system_message(
    tmp_path: Path, tiny_model_folder: Path, identity: ModelIdentity
) -> None:
    parameters = replace(CHAINED, wrap=Wrap.CHAT)
    plan = plan_activation(sources_of(tmp_path, manual=TEXT), tiny_model_folder, identity, parameters)
    (document,) = plan.documents
    ids = [token for chunk in document.chunks for token in token_ids(chunk.tokens)]
    tokenizer = load_tokenizer(tiny_model_folder)
    expected = tokenizer.apply_chat_template(
        [{"role": "system", "content": TEXT}], add_generation_prompt=False, return_dict=True
    )["input_ids"]
    assert ids == expected
    assert (document.token_count, document.tokens) == (len(ids), digest_of(token_bytes(ids)))
    assert {chunk.spec.model for chunk in document.chunks} == {identity.digest}


def test_a_plain_document_is_its_text(tmp_path: Path, tiny_model_folder: Path, identity: ModelIdentity) -> None:
    plan = plan_activation(sources_of(tmp_path, manual=TEXT), tiny_model_folder, identity, CHAINED)
    ids = np.concatenate([np.frombuffer(chunk.tokens, "<u4") for chunk in plan.documents[0].chunks])
    assert load_tokenizer(tiny_model_folder).decode(ids) == TEXT


def test_texts_with_a_common_beginning_share_its_units(
    tmp_path: Path, tiny_model_folder: Path, identity: ModelIdentity
) -> None:
    sources = sources_of(tmp_path, first=TEXT + "One end.", second=TEXT + "Quite another end.")
    plan = plan_activation(sources, tiny_model_folder, identity, CHAINED)
    first, second = ({chunk.key for chunk in document.chunks} for document in plan.documents)
    assert len(first & second) >= len(first) - 2 > 5
    assert first != second
    assert len(plan.chunks) == len(first | second)


def test_every_unit_comes_after_its_parent(tmp_path: Path, tiny_model_folder: Path, identity: ModelIdentity) -> None:
    sources = sources_of(tmp_path, first=TEXT, second="Something else. " + TEXT)
    seen = set()
    for chunk in plan_activation(sources, tiny_model_folder, identity, CHAINED).chunks:
        assert chunk.spec.parent is None or chunk.spec.parent in seen
        seen.add(chunk.key)


def test_a_plan_is_the_same_whatever_else_is_in_the_campaign(
    tmp_path: Path, tiny_model_folder: Path, identity: ModelIdentity
) -> None:
    def keys(plan: ActivationPlan, name: str) -> list[str]:
        return [chunk.key for document in plan.documents if document.name == name for chunk in document.chunks]

    automatic = replace(CHAINED, chunk_tokens=None, target_unit_s=1, flops_per_s=1e7)
    alone = plan_activation(sources_of(tmp_path, a=TEXT), tiny_model_folder, identity, automatic)
    others = {f"d{number}": f"Text {number}. " * (number + 1) for number in range(40)}
    among = plan_activation(sources_of(tmp_path, **others, a=TEXT), tiny_model_folder, identity, automatic)
    assert keys(alone, "a") == keys(among, "a")
    assert [document.name for document in among.documents] == [*others, "a"]


def test_a_row_is_told_in_the_source_of_its_document(
    tmp_path: Path, tiny_model_folder: Path, identity: ModelIdentity
) -> None:
    path = tmp_path / "blob"
    path.write_text(json.dumps({"text": "one"}) + "\n" + json.dumps({"text": "two"}) + "\n")
    source = SourceFile(
        path=path, uri="c.jsonl", digest=digest_of(path.read_bytes()), format=SourceFormat.JSONL, licence="MIT"
    )
    plan = plan_activation([source], tiny_model_folder, identity, CHAINED)
    assert [document.uri for document in plan.documents] == ["c.jsonl#row=1", "c.jsonl#row=2"]


@pytest.mark.parametrize(
    ("more", "text", "message"),
    [
        ({}, "word " * 3000, r"manual.txt: document 'manual': expected at most the 2048 tokens its model can read"),
        ({"document_tokens_max": 20}, TEXT, r"manual.txt: document 'manual': expected at most 20 tokens, found \d+"),
        ({"chunk_tokens": 16, "sink_tokens": 20, "layout": LayoutKind.INDEPENDENT}, TEXT, "activation.sink_tokens: "),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_name(
    tmp_path: Path,
    tiny_model_folder: Path,
    identity: ModelIdentity,
    more: dict[str, Any],
    text: str,
    message: str,
) -> None:
    with pytest.raises(InvalidError, match=message):
        plan_activation(sources_of(tmp_path, manual=text), tiny_model_folder, identity, replace(CHAINED, **more))


def test_a_tokenizer_of_another_model_is_noticed(
    tmp_path: Path, tiny_model_folder: Path, identity: ModelIdentity
) -> None:
    small = replace(identity, geometry=replace(identity.geometry, vocab=10))
    with pytest.raises(InvalidError, match=r"token \d+ is not one of the model's 10"):
        plan_activation(sources_of(tmp_path, manual=TEXT), tiny_model_folder, small, CHAINED)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "activation.wrap: the tokenizer has no chat template; use wrap: plain"),
        ("{{ raise_exception('no system role') }}", "activation.wrap: the chat template refuses a system message"),
        ("{{ messages | length }}{{ messages[0].content }}", "activation.wrap: the chat template changes the system"),
        ("{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}", "use wrap: plain"),
    ],
)
def test_a_template_that_cannot_hold_a_document_is_refused_with_advice(
    tmp_path: Path, tiny_model_folder: Path, identity: ModelIdentity, template: str | None, message: str
) -> None:
    folder = with_template(tmp_path, tiny_model_folder, template)
    sources = sources_of(tmp_path, manual=TEXT)
    with pytest.raises(InvalidError, match=message):
        plan_activation(sources, folder, identity, replace(CHAINED, wrap=Wrap.CHAT))
    assert plan_activation(sources, folder, identity, CHAINED).documents


def with_template(tmp_path: Path, model_folder: Path, template: str | None) -> Path:
    """A copy of a model's tokenizer with another chat template."""
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder, ignore=shutil.ignore_patterns("*.safetensors", "chat_template.jinja"))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


@pytest.mark.parametrize("content", ["{", "{}", '{"model": {"type": "BPE"}}'])
def test_a_broken_tokenizer_is_told_in_one_line(tmp_path: Path, tiny_model_folder: Path, content: str) -> None:
    folder = with_template(tmp_path, tiny_model_folder, None)
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(InvalidError, match="model: its tokenizer can't be loaded") as caught:
        load_tokenizer(folder)
    assert "\n" not in str(caught.value)


def test_code_in_a_model_folder_never_runs(tmp_path: Path, tiny_model_folder: Path) -> None:
    folder = with_template(tmp_path, tiny_model_folder, None)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    mark = tmp_path / "ran"
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w')\nclass Evil: pass\n")
    with suppress(InvalidError):
        load_tokenizer(folder)
    assert not mark.exists()


def test_a_bad_document_ends_the_whole_plan(tmp_path: Path, tiny_model_folder: Path, identity: ModelIdentity) -> None:
    sources = sources_of(tmp_path, good=TEXT, bad=" ")
    with pytest.raises(InvalidError, match=r"bad\.txt: expected text"):
        plan_activation(sources, tiny_model_folder, identity, CHAINED, DocumentLimits())
