"""JSON, YAML and short texts: specs, campaigns, frames, manifests, signatures, names, tokens, a worker's words."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import cache
from typing import Any

import numpy as np
from safetensors.numpy import save

from fuzzing import cubes, samples
from fuzzing.driver import Target
from fuzzing.files import folder, kept_file
from fuzzing.mutation import spoil_json, spoil_text
from memgrid.campaign import CampaignFile
from memgrid.cube.identity import ModelIdentity, identity_of_folder
from memgrid.cube.manifest import CubeManifest
from memgrid.cube.oci import (
    CUBE_CONFIG_TYPE,
    FILE_TYPE,
    MODEL_ARTIFACT_TYPE,
    OCI_MANIFEST_TYPE,
    Descriptor,
    OciManifest,
)
from memgrid.cube.provenance import check_provenance, sign_cube
from memgrid.digest import canonical_json, digest_of
from memgrid.endpoint import GridUrl, endpoint_of
from memgrid.kinds.frame import ChatFrame
from memgrid.kinds.tolerances import BUILT_IN, Tolerances
from memgrid.kinds.trace import read_trace
from memgrid.pool.offers import listings_from_json
from memgrid.pool.reference import Reference
from memgrid.serving.openai_requests import parse_request
from memgrid.signing import SigningKey
from memgrid.specs import parse_spec
from memgrid.units import (
    AccountId,
    ComputeDtype,
    DeviceFacts,
    HostId,
    Reason,
    ReasonCode,
    SessionId,
    UnitKey,
    WorkFacts,
)
from memgrid_coordinator.policy.manifests import model_files, parse_manifest
from memgrid_coordinator.policy.repositories import parse_repository, parse_tag
from memgrid_coordinator.services.tokens import Tokens
from memgrid_coordinator.web.requests import OciError, requested_range
from memgrid_volunteer.kinds.job import Hello, Outcome, PaceLine, Progress, WorkerDevice

KEY = SigningKey.generate()


def targets() -> tuple[Target, ...]:
    return (
        _json("spec", "a unit's spec", _specs, _spec),
        _json("campaign", "a submitted campaign", lambda: [_campaign()], _campaign_again),
        _text("campaign_yaml", "a campaign file", lambda: [YAML.encode()], _yaml, 10_000),
        _json("frame", "a unit's chat frame", lambda: [samples.FRAME.to_bytes()], _frame),
        _json("trace", "an uploaded trace", lambda: [samples.trace()], read_trace),
        _json("oci_pulled", "the OCI manifest of a pulled cube", lambda: [_oci()], _oci_again),
        _json("oci_pushed", "a pushed OCI manifest", lambda: [_oci(), _model()], _pushed),
        _json("cube_manifest", "the manifest of a pulled cube", cubes.manifests, _cube, 50_000),
        _json("provenance", "the signed story of a pulled cube", lambda: [_signed()], _provenance, 30_000),
        _json("identity", "a model's identity", lambda: [canonical_json(samples.BASE.to_json())], _identity),
        _json("model_config", "a model's config.json", lambda: [canonical_json(CONFIG)], _model_config, 30_000),
        _json("description", "a grid's own description", lambda: [canonical_json(GRID)], _description),
        _json("listings", "a pool's answer to a search", lambda: [canonical_json({"cubes": [LISTING]})], _listings),
        _json("chat_request", "a request to memgrid serve", lambda: [canonical_json(CHAT)], _chat, 50_000),
        _json("worker_words", "a line of a worker", _worker_lines, _worker),
        _json("tolerances", "a calibration that was stored", lambda: [BUILT_IN.to_bytes()], _tolerances, 30_000),
        _text(
            "reference", "a cube's name", lambda: [b"peps/pep-0008:1.0.0@" + samples.digest().encode()], _reference
        ),
        _text("repository", "a repository or tag", lambda: [b"docs/quick-start:1.0.0"], _repository),
        _text("grid_url", "a grid's address", lambda: [b"https://grid.example:7070/#sha256=" + b"ab" * 32], _url),
        _text("range", "a Range header", lambda: [b"bytes=0-99", b"bytes=-3", b"bytes=5-"], _range),
        _text("token", "a bearer token", lambda: [_token().encode()], _read_token),
    )


def _json(name: str, about: str, seeds: Callable[[], Sequence[bytes]], run: Any, count: int = 100_000) -> Target:
    mutators = (spoil_json,) * 5 + (spoil_text,)
    return Target(name=name, about=about, seeds=seeds, run=run, mutators=mutators, executions=count)


def _text(name: str, about: str, seeds: Callable[[], Sequence[bytes]], run: Any, count: int = 100_000) -> Target:
    mutators, allowed = (spoil_text,) * 3, (OciError,)
    return Target(name=name, about=about, seeds=seeds, run=run, mutators=mutators, allowed=allowed, executions=count)


def _specs() -> list[bytes]:
    chained = samples.prefill_spec(parent=UnitKey("a" * 64))
    lora = replace(samples.train_spec(samples.LORA), distractors=(samples.digest(),), round=2, streams=3)
    bare = replace(samples.evaluate_spec(), adapter=None, adapter_file=None)
    all_of_them = (chained, samples.study_spec(), samples.train_spec(), lora, samples.evaluate_spec(), bare)
    return [spec.to_bytes() for spec in all_of_them]


def _spec(content: bytes) -> object:
    spec = parse_spec(content)
    assert spec.to_bytes() == content, "a spec that would have another key"
    return spec.key


YAML = """\
name: handbook
model: models/tiny
recipe: distill
sources: [{path: "*.txt", licence: CC-BY-4.0}]
distill:
  adapter: {kind: prefix, virtual_tokens: 8}
  study: {conversations: 16, held_out: 4}
  train: {steps: 60}
trust: {min_replicas: 2}
budget: {device_hours: 3.5}
publish: {namespace: handbook, version: 1.0.0, licence: CC-BY-4.0}
"""


def _campaign() -> bytes:
    return CampaignFile.parse(YAML.encode(), where="campaign.yaml").to_bytes()


def _campaign_again(content: bytes) -> object:
    return CampaignFile.from_bytes(CampaignFile.from_bytes(content).to_bytes())


def _yaml(content: bytes) -> object:
    return CampaignFile.parse(content, where="campaign.yaml").to_bytes()


def _frame(content: bytes) -> object:
    frame = ChatFrame.from_bytes(content)
    return ChatFrame.from_bytes(frame.to_bytes()), [frame.opening(number) for number in range(len(frame.asks))]


def _oci() -> bytes:
    config = Descriptor.of(b"{}", CUBE_CONFIG_TYPE)
    layers = tuple(Descriptor.of(b"x" * number, FILE_TYPE, f"kv/{number}.safetensors") for number in range(3))
    made = OciManifest(artifact_type="application/x", config=config, layers=layers, annotations={"a": "b"})
    return made.to_bytes()


def _model() -> bytes:
    config = Descriptor.of(b"{}", "application/vnd.oci.empty.v1+json")
    files = ("config.json", "model.safetensors", "tokenizer.json")
    layers = tuple(Descriptor.of(name.encode(), FILE_TYPE, name) for name in files)
    return OciManifest(artifact_type=MODEL_ARTIFACT_TYPE, config=config, layers=layers).to_bytes()


def _oci_again(content: bytes) -> object:
    found = OciManifest.from_bytes(content)
    return OciManifest.from_bytes(found.to_bytes()), found.total_bytes


def _pushed(content: bytes) -> object:
    found = parse_manifest(content, OCI_MANIFEST_TYPE)
    _storable(found.artifact_type, *found.annotations, *found.annotations.values())
    return model_files(found) if found.artifact_type == MODEL_ARTIFACT_TYPE else None


def _cube(content: bytes) -> object:
    manifest = CubeManifest.from_bytes(content)
    _storable(manifest.name, manifest.title, manifest.licence, manifest.version)
    return manifest.digest, manifest.payload_bytes, manifest.listed()


def _signed() -> bytes:
    return sign_cube(b"{}", {"builder": "me", "facts": [1, 2.5, None]}, KEY)


def _provenance(content: bytes) -> object:
    found = check_provenance(content, b"{}", [KEY.public_key])
    assert found.predicate == {"builder": "me", "facts": [1, 2.5, None]}, "something was believed that nobody signed"
    return found


def _identity(content: bytes) -> object:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return ModelIdentity.from_json(value).digest


CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 300,
    "rope_theta": 10000.0,
    "rope_scaling": {"rope_type": "linear", "factor": 2.0},
    "sliding_window": 64,
    "use_sliding_window": True,
    "tie_word_embeddings": True,
}


def _model_config(content: bytes) -> object:
    kept_file("model/tokenizer.json", b"{}")
    kept_file("model/model.safetensors", save({"weight": np.ones(4, dtype=np.float32)}))
    return identity_of_folder(kept_file("model/config.json", content).parent)


GRID = {
    "name": "grid",
    "version": "0",
    "grpc_port": 7071,
    "grid_key": "11" * 32,
    "enrolment": "open",
    "max_blob_bytes": 1 << 30,
    "url": "https://grid.example#sha256=00",
}
LISTING = {
    "repository": "a/b",
    "tag": "1.0.0",
    "digest": digest_of(b"a"),
    "manifest_digest": digest_of(b"b"),
    "kind": "activation",
    "base": "tiny",
    "title": "A",
    "tokens": 5,
    "bytes": 100,
    "licence": "MIT",
    "produced_flops": 12,
    "created_at": "2026-01-01T00:00:00+00:00",
    "gap_closed": 0.5,
}
CHAT = {
    "model": "tiny",
    "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}, {"role": "system", "content": "x"}],
    "max_tokens": 20,
    "temperature": 0.5,
    "stop": ["x"],
    "stream": True,
    "stream_options": {"include_usage": True},
    "seed": 3,
}


def _tolerances(content: bytes) -> object:
    return Tolerances.from_bytes(content).over(BUILT_IN).to_bytes()


def _description(content: bytes) -> object:
    endpoint = endpoint_of(GridUrl.parse("https://grid.example"), None, content)
    _storable(endpoint.name, endpoint.version)
    return endpoint.grpc_target


def _listings(content: bytes) -> object:
    return [(each.repository, each.tokens) for each in listings_from_json(content)]


def _chat(content: bytes) -> object:
    request = parse_request(content)
    return request.turns(), request.settings()


def _worker_lines() -> list[bytes]:
    found = DeviceFacts(kind="cpu", name="a CPU", memory_bytes=1, numerics_class="x")
    device = WorkerDevice(device_id="cpu", uuid="", facts=found)
    facts = WorkFacts(
        tokens=3,
        compute_s=0.5,
        device_kind="cpu",
        numerics_class="x",
        compute_dtype=ComputeDtype.FLOAT32,
        torch_version="2",
    )
    failed = Outcome(failure=Reason(code=ReasonCode.UNIT_FAILED, text="no"))
    told = (
        Hello(devices=(device,)),
        Outcome(facts=facts, utilisation=0.5),
        failed,
        Progress(done=0.5, text="half"),
        PaceLine(duty=0.5),
    )
    return [line.to_line() for line in told]


def _worker(content: bytes) -> object:
    if (progress := Progress.from_line(content)) is not None:
        return progress
    if (pace := PaceLine.from_line(content)) is not None:
        return pace
    return Hello.from_line(content) if b"devices" in content else Outcome.from_line(content)


def _reference(content: bytes) -> object:
    reference = Reference.parse(content.decode(errors="surrogateescape"))
    assert Reference.parse(str(reference)) == reference, "a name that is written otherwise"
    return reference.wanted


def _repository(content: bytes) -> object:
    name, _, tag = content.decode(errors="surrogateescape").partition(":")
    assert ".." not in parse_repository(name).split("/"), "a name that leads out of its folder"
    return parse_tag(tag)


def _url(content: bytes) -> object:
    return GridUrl.parse(content.decode(errors="surrogateescape")).base


def _range(content: bytes) -> object:
    found = requested_range(content.decode(errors="surrogateescape"), 100)
    assert found is None or 0 <= found.start < found.start + found.count <= 100, "a range outside of the content"
    return found


@cache
def _tokens() -> Tokens:
    return Tokens(folder() / "keys")


@cache
def _token() -> str:
    until = samples.NOW + timedelta(hours=1)
    return _tokens().issue(HostId("h"), AccountId("a"), SessionId("s"), until)


def _read_token(content: bytes) -> object:
    token = content.decode(errors="surrogateescape")
    caller = _tokens().read(token, samples.NOW)
    assert not token or token == _token(), "a token that nobody issued was believed"
    return caller


def _storable(*texts: str) -> None:
    for text in texts:
        text.encode()
