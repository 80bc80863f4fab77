"""A campaign file says everything or is refused with a line for each problem."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memgrid.campaign import ActivationParameters, CampaignFile, Publication, SourcePattern, Trust
from memgrid.campaign_sources import find_sources
from memgrid.cube.manifest import LayoutKind, Wrap
from memgrid.errors import InvalidError

WHOLE = """
name: handbook
model: models/smollm2-135m-instruct:1.0.0
recipe: activation
sources:
  - path: docs/*.md
    licence: CC-BY-4.0
activation: {layout: independent, chunk_tokens: 256, wrap: plain}
publish: {namespace: handbook, version: "1.0.0", licence: CC-BY-4.0, title: The handbook}
trust: {min_replicas: 2, max_replicas: 4}
priority: 5
"""


def parse(text: str) -> CampaignFile:
    return CampaignFile.parse(text.encode(), where="campaign.yaml")


def problems(text: str) -> list[str]:
    with pytest.raises(InvalidError) as caught:
        parse(text)
    return str(caught.value).splitlines()


def test_a_whole_file_is_read_as_written() -> None:
    campaign = parse(WHOLE)
    assert campaign.activation == ActivationParameters(
        layout=LayoutKind.INDEPENDENT, chunk_tokens=256, wrap=Wrap.PLAIN
    )
    assert campaign.publish.title == "The handbook"
    assert campaign.trust.max_replicas == 4
    assert not campaign.model_is_folder


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            ("layout: independent", "layout: chain"),
            "activation.layout: expected chained or independent, found 'chain'",
        ),
        (("layout:", "layuot:"), "activation.layuot: unknown key, expected one of layout, "),
        (("chunk_tokens: 256", "chunk_tokens: 99999999"), "activation.chunk_tokens: expected a whole number from 16"),
        (("chunk_tokens: 256", "chunk_tokens: lots"), "activation.chunk_tokens: expected a whole number from 16"),
        (("recipe: activation", "recipe: distil"), "recipe: expected activation or distill, found 'distil'"),
        (("name: handbook", "name: ../etc"), "name: expected a name of small letters"),
        (("model: models/smollm2-135m-instruct:1.0.0", "model: gpt-5"), "model: expected a model of the pool"),
        (
            ('version: "1.0.0"', "version: 1.0"),
            'publish.version: expected a version in quotes such as "1.0.0", found 1.0',
        ),
        (
            ("min_replicas: 2", "min_replicas: 5"),
            "trust.min_replicas: expected at most max_replicas (4), found 5",
        ),
        (
            ("{min_replicas: 2, max_replicas: 4}", "{max_replicas: 1}"),
            "trust.max_replicas: expected at least 2 unless min_replicas is 1, found 1",
        ),
        (
            ("priority: 5", "distill: {items_per_evaluation: 8}"),
            "distill: expected nothing with recipe activation, found a mapping",
        ),
        (("priority: 5", "budget: {device_hours: .inf}"), "budget.device_hours: expected hours above 0, found inf"),
        (
            ("priority: 5", "budget: {deadline: 2027-01-31T18:00:00}"),
            "budget.deadline: expected a moment with its time zone such as 2027-01-31T18:00:00Z",
        ),
        (("  - path: docs/*.md", "  - pfad: docs/*.md"), "sources[0].path: expected a path or a pattern"),
        (("licence: CC-BY-4.0, title", "license: CC-BY-4.0, title"), "did you mean licence?"),
        (("priority: 5", "priority: true"), "priority: expected a whole number from -100 to 100, found True"),
    ],
)
def test_a_problem_names_key_expected_and_found(change: tuple[str, str], expected: str) -> None:
    assert change[0] in WHOLE
    lines = problems(WHOLE.replace(*change))
    assert all(line.startswith("campaign.yaml: ") for line in lines)
    assert any(expected in line for line in lines)


def test_every_problem_has_a_line_of_its_own() -> None:
    lines = problems("name: x\nrecipe: activation\nsources: []\ncolour: red\n")
    assert [line.split(", ")[0] for line in lines] == [
        "campaign.yaml: model: expected a model of the pool (models/<name>[:<tag>]) or a folder (./… or /…)",
        "campaign.yaml: sources: expected a list of at least one source",
        "campaign.yaml: publish: expected a mapping with namespace",
        "campaign.yaml: colour: unknown key",
    ]


@pytest.mark.parametrize("text", ["", "- a\n- b", "just words", "name: [unclosed", "!!python/object:os.system {}"])
def test_what_is_no_mapping_is_one_line(text: str) -> None:
    assert len(problems(text)) == 1


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match=r"absent\.yaml: expected a campaign file, found: No such file"):
        CampaignFile.load(tmp_path / "absent.yaml")


def test_a_folder_is_told_from_a_model_of_the_pool() -> None:
    assert parse(WHOLE.replace("models/smollm2-135m-instruct:1.0.0", "./my-model")).model_is_folder


names = st.from_regex(r"[a-z0-9]{1,8}(-[a-z0-9]{1,8})?", fullmatch=True)


@given(
    st.builds(
        CampaignFile,
        name=names,
        model=names.map(lambda name: f"models/{name}"),
        recipe=st.just("activation"),
        sources=st.lists(st.builds(SourcePattern, path=st.text(min_size=1)), min_size=1, max_size=3).map(tuple),
        activation=st.builds(
            ActivationParameters,
            layout=st.sampled_from(LayoutKind),
            chunk_tokens=st.none() | st.integers(16, 8192),
            target_unit_s=st.floats(1, 3600),
        ),
        publish=st.builds(
            Publication, namespace=names, version=st.just("1.0.0"), licence=st.just("MIT OR Apache-2.0")
        ),
        trust=st.builds(Trust, min_replicas=st.integers(1, 3), max_replicas=st.integers(3, 25)),
        priority=st.integers(-100, 100),
    )
)
def test_a_campaign_comes_back_as_it_was_sent(campaign: CampaignFile) -> None:
    content = campaign.to_bytes()
    assert CampaignFile.from_bytes(content) == campaign
    assert CampaignFile.from_bytes(content).to_bytes() == content


def folder_with(tmp_path: Path, **files: bytes) -> Path:
    (tmp_path / "docs").mkdir()
    for name, content in files.items():
        (tmp_path / "docs" / name.replace("__", ".")).write_bytes(content)
    return tmp_path


def sources_of(tmp_path: Path, *patterns: str, **files: bytes) -> list[str]:
    folder = folder_with(tmp_path, **files)
    return [source.uri for source in find_sources(with_sources(*patterns), folder)]


def with_sources(*patterns: str) -> CampaignFile:
    value = json.loads(parse(WHOLE).to_bytes())
    value["sources"] = [{"path": pattern} for pattern in patterns]
    return CampaignFile.from_bytes(json.dumps(value).encode())


def test_sources_are_found_once_and_in_order(tmp_path: Path) -> None:
    found = sources_of(tmp_path, "docs/b.md", "docs/*.md", b__md=b"b", a__md=b"a", c__txt=b"c")
    assert found == ["docs/b.md", "docs/a.md"]


def test_a_source_takes_the_licence_of_the_campaign_unless_it_has_one(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, a__md="Grüße".encode())
    (own,) = find_sources(parse(WHOLE.replace("CC-BY-4.0, title", "MIT, title")), folder)
    (given_,) = find_sources(with_sources("docs/*.md"), folder)
    assert (own.licence, given_.licence) == ("CC-BY-4.0", "CC-BY-4.0")
    assert own.format == "md"
    assert own.size_bytes == len("Grüße".encode())


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a__md", b"", "docs/a.md: expected text, found an empty file"),
        ("a__md", b" \n\t\n", "docs/a.md: expected text, found only white space"),
        ("a__md", b"PNG\0\1", "docs/a.md: expected text, found a binary file"),
        ("a__txt", b"caf\xe9 cr\xe8me", "docs/a.txt: expected UTF-8 text, found byte 0xe9"),
        ("a__txt", "café".encode()[:-1], "docs/a.txt: expected UTF-8 text, found half a character at the end"),
        ("a__docx", b"x", "docs/a.docx: expected one of .txt, .md, .markdown, .jsonl, .parquet, found '.docx'"),
        ("a__parquet", b"PK\3\4", "docs/a.parquet: expected a Parquet file, found other bytes"),
        ("a__jsonl", b"not json\n", "docs/a.jsonl: row 1: expected a JSON object, found b'not json"),
        ("a__jsonl", b'{"body": "x"}\n', "docs/a.jsonl: row 1: expected the key 'text', found body"),
    ],
)
def test_an_unfit_source_is_named_with_its_fault(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    with pytest.raises(InvalidError) as caught:
        sources_of(tmp_path, "docs/*", **{name: content})
    assert str(caught.value).startswith(f"campaign.yaml: sources[0].path: {expected}")


def test_a_pattern_without_files_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match=r"sources\[1\]\.path: expected files, found none at 'nowhere/\*\.md'"):
        sources_of(tmp_path, "docs/*.md", "nowhere/*.md", a__md=b"a")
