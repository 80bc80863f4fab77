"""Manifests and names from outside are read strictly."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memgrid.cube.oci import MANIFEST_BYTES_MAX, MODEL_ARTIFACT_TYPE, OCI_INDEX_TYPE, OCI_MANIFEST_TYPE, TITLE
from memgrid.digest import digest_of
from memgrid.errors import InvalidError, MemgridError, NotAllowedError, TokenRequiredError, TooLargeError
from memgrid.units import HostId
from memgrid_coordinator.policy import repositories
from memgrid_coordinator.policy.manifests import model_files, parse_manifest
from memgrid_coordinator.records import ANONYMOUS, Caller, Role

OPERATOR = Caller(role=Role.OPERATOR)
VOLUNTEER = Caller(role=Role.VOLUNTEER, host_id=HostId("h"))


def part(content: bytes = b"x", **more: Any) -> dict[str, Any]:
    return {"mediaType": "application/octet-stream", "digest": digest_of(content), "size": len(content), **more}


def titled(name: str, content: bytes = b"x") -> dict[str, Any]:
    return part(content, annotations={TITLE: name})


def image(**changes: Any) -> dict[str, Any]:
    return {"schemaVersion": 2, "mediaType": OCI_MANIFEST_TYPE, "config": part(), "layers": [part(b"y")], **changes}


def parse(value: Any, media_type: str = OCI_MANIFEST_TYPE) -> Any:
    return parse_manifest(json.dumps(value).encode(), media_type)


def test_a_manifest_says_what_it_points_at() -> None:
    found = parse(image(artifactType="application/x", subject=part(b"z"), annotations={"a": "b"}))
    assert [blob.digest for blob in found.blobs] == [digest_of(b"x"), digest_of(b"y")]
    assert (found.artifact_type, found.subject, found.annotations) == ("application/x", digest_of(b"z"), {"a": "b"})


def test_without_an_artifact_type_the_config_tells_it() -> None:
    assert parse(image()).artifact_type == "application/octet-stream"


def test_an_index_points_at_manifests() -> None:
    value = {"schemaVersion": 2, "mediaType": OCI_INDEX_TYPE, "manifests": [part()]}
    found = parse(value, OCI_INDEX_TYPE)
    assert (found.blobs, [each.digest for each in found.manifests]) == ((), [digest_of(b"x")])


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        "text",
        {},
        image(schemaVersion=1),
        image(mediaType="application/vnd.docker.distribution.manifest.v1+json"),
        image(mediaType=7),
        image(config=None),
        image(config=[]),
        image(layers=None),
        image(layers={}),
        image(layers=["x"]),
        image(layers=[part(size=-1)]),
        image(layers=[part(size=True)]),
        image(layers=[part(size="1")]),
        image(layers=[part(size=1.5)]),
        image(layers=[part(digest="sha256:../../etc/passwd")]),
        image(layers=[part(digest=None)]),
        image(layers=[part(mediaType="nonsense")]),
        image(layers=[part(mediaType="a/b\r\nSet-Cookie: x")]),
        image(layers=[titled("../key")]),
        image(layers=[titled("/etc/passwd")]),
        image(layers=[titled("a/../../b")]),
        image(layers=[titled("a\\b")]),
        image(layers=[titled("a\x00b")]),
        image(layers=[part(annotations={TITLE: 7})]),
        image(layers=[part(annotations="x")]),
        image(artifactType="<script>"),
        image(artifactType=None),
        image(subject="sha256:00"),
        image(annotations={"a": 1}),
        image(annotations="x"),
        image(artifactType="application/\ud800"),
    ],
)
def test_a_hostile_manifest_is_refused_in_one_line(value: Any) -> None:
    with pytest.raises(InvalidError) as caught:
        parse(value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"schemaVersion": NaN}',
        b'{"schemaVersion": 2, "schemaVersion": 2}',
        b'{"schemaVersion": ' + b"9" * 10_000 + b"}",
        b"{}\x00",
    ],
)
def test_what_is_no_json_is_refused(content: bytes) -> None:
    with pytest.raises(InvalidError, match="manifest"):
        parse_manifest(content, OCI_MANIFEST_TYPE)


def test_a_manifest_has_a_largest_size() -> None:
    with pytest.raises(TooLargeError):
        parse_manifest(b" " * (MANIFEST_BYTES_MAX + 1), OCI_MANIFEST_TYPE)


@given(
    st.binary(max_size=200)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(["schemaVersion", "mediaType", "config", "layers", "digest", "size"]) | st.text(),
                inner,
            )
        ),
    ).map(lambda value: json.dumps(value).encode())
)
def test_no_bytes_do_worse_than_an_error_of_ours(content: bytes) -> None:
    with pytest.raises(MemgridError):
        parse_manifest(content, OCI_MANIFEST_TYPE)


def model(*layers: dict[str, Any]) -> Any:
    return parse(image(artifactType=MODEL_ARTIFACT_TYPE, layers=list(layers)))


def test_a_model_is_weights_configuration_and_tokenizer() -> None:
    names = ["tokenizer.json", "config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json"]
    assert list(model_files(model(*[titled(name) for name in names]))) == sorted(names)


@pytest.mark.parametrize(
    "names",
    [
        ["config.json"],
        ["model.safetensors"],
        ["config.json", "model.safetensors", "pytorch_model.bin"],
        ["config.json", "model.safetensors", "modeling_custom.py"],
        ["config.json", "model.safetensors", "model.pt"],
        ["config.json", "sub/model.safetensors"],
        ["config.json", "model.safetensors", "model.safetensors"],
        ["config.json", "model.safetensors", "tokenizer.json.pkl"],
    ],
)
def test_anything_else_in_a_model_is_refused(names: list[str]) -> None:
    with pytest.raises(InvalidError):
        model_files(model(*[titled(name) for name in names]))


def test_a_file_without_a_name_is_no_models() -> None:
    with pytest.raises(InvalidError):
        model_files(model(titled("config.json"), titled("model.safetensors"), part()))


def test_a_cube_is_no_model() -> None:
    with pytest.raises(InvalidError, match="expected a model"):
        model_files(parse(image(layers=[titled("config.json"), titled("model.safetensors")])))


@pytest.mark.parametrize(
    "text",
    ["", "A/b", "a//b", "/a", "a/", "a b", "../a", "a/../b", "a\n", "a" * 256, "a/.b", "a._b", "ä/b", "a:b"],
)
def test_a_name_that_oci_does_not_allow_is_refused(text: str) -> None:
    with pytest.raises(InvalidError):
        repositories.parse_repository(text)


@pytest.mark.parametrize("text", ["a", "docs/quick-start", "a.b/c__d/e---f", "models/smollm2-135m"])
def test_a_name_that_oci_allows_is_taken(text: str) -> None:
    assert repositories.parse_repository(text) == text


@pytest.mark.parametrize(
    ("repository", "readers", "writers"),
    [
        ("docs/x", {"anonymous", "volunteer", "operator"}, {"operator"}),
        ("models/x", {"anonymous", "volunteer", "operator"}, {"operator"}),
        ("sources/x", {"operator"}, {"operator"}),
        ("grid/inputs", {"volunteer", "operator"}, set()),
        ("grid/outputs/lease1", {"operator"}, {"volunteer"}),
        ("grid/outputs", set(), set()),
        ("grid", set(), set()),
        ("grid/anything", set(), set()),
    ],
)
def test_who_may_do_what_where(repository: str, readers: set[str], writers: set[str]) -> None:
    # A reader reads what everybody reads; an owner is an operator too.
    callers = [
        *((caller, caller.role) for caller in (ANONYMOUS, VOLUNTEER, OPERATOR)),
        (Caller(role=Role.OWNER), Role.OPERATOR),
        (Caller(role=Role.READER), Role.ANONYMOUS),
    ]
    for caller, like in callers:
        for check, allowed in ((repositories.check_read, readers), (repositories.check_push, writers)):
            if like in allowed:
                check(caller, repository)
            else:
                expected = TokenRequiredError if caller is ANONYMOUS else NotAllowedError
                with pytest.raises(expected):
                    check(caller, repository)
        assert repositories.may_read(caller, repository) == (like in readers)
