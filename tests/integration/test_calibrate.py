"""`memgrid coordinator calibrate` from the command to the limits that count, and models that it refuses."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from memgrid.cube.identity import identity_of_folder
from memgrid.digest import digest_of
from memgrid.kinds.tolerances import BUILT_IN, Tolerances
from memgrid.signing import SigningKey
from memgrid.units import StoreDtype
from memgrid_coordinator.cli import app
from memgrid_coordinator.heavy.calibration.planning import Sizes
from memgrid_coordinator.heavy.calibration.report import EVIDENCE_FILE, TOLERANCES_FILE
from memgrid_coordinator.heavy.calibration.ways import BASE, HALF, HONEST
from memgrid_coordinator.heavy.calibration.weights import quantised
from memgrid_coordinator.heavy.runner import InlineEngine
from memgrid_coordinator.services.calibrated import UNSURE_FROM, Calibrated, CalibrationAsked
from memgrid_coordinator.services.calibrating import Calibrating
from memgrid_coordinator.services.tolerances import ModelTolerances
from memgrid_coordinator.store import audit_log, reachable
from memgrid_coordinator.store.blobs import BlobStore
from memgrid_coordinator.store.engine import Store
from tests.models import make_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose matrices have outliers, as those of real ones have: rounding to 8 bits costs it more."""
    folder = make_tiny_model(tmp_path_factory.mktemp("calibrate") / "tiny", layers=3)
    changed(folder, lambda weight: weight * weight.abs() / weight.std())
    return folder


def changed(folder: Path, change: object) -> None:
    path = folder / "model.safetensors"
    tensors = {
        name: change(tensor) if "proj" in name else tensor  # type: ignore[operator]
        for name, tensor in load_file(path).items()
    }
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, {"format": "pt"})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a grid that was served before."""
    folder = tmp_path_factory.mktemp("grid")
    (folder / "keys").mkdir(mode=0o700)
    SigningKey.load_or_create(folder / "keys" / "grid.key")
    Store(f"sqlite:///{folder / 'memgrid.db'}").close()
    yield folder


def calibrate(*words: object) -> Result:
    arguments = ["calibrate", *map(str, words)]
    return CliRunner().invoke(app, arguments, catch_exceptions=False)


def test_limits_go_from_the_command_into_the_grid_and_into_a_report(model: Path, data: Path, tmp_path: Path) -> None:
    quick = ("--quick", "--only-caches", "--chunks", 8, "--tokens", 64)
    # So small a cache has few blocks to sketch: what is near to rounding can't be seen for certain.
    near = ("int8 weights", "noise of 0.3 %", "noise of 1 %", "angles of RoPE rounded")
    missed = [word for name in near for word in ("--may-miss", name)]
    result = calibrate("--model", model, "--data", data, "--report", tmp_path, "--json", *quick, *missed)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["refusal"] == [] and told["model"] == identity_of_folder(model).digest

    store, blobs = Store(f"sqlite:///{data / 'memgrid.db'}"), BlobStore(data / "blobs")
    known = ModelTolerances(store, blobs)
    limits = asyncio.run(known.of(identity_of_folder(model).digest))
    assert limits.origin == f"calibrated {datetime.now(UTC):%Y-%m-%d} on {told['model']}"
    assert set(limits.rows) == set(BUILT_IN.rows)
    assert asyncio.run(known.of(digest_of(b"another model"))) == BUILT_IN
    measured = Tolerances.from_bytes((tmp_path / TOLERANCES_FILE).read_bytes())
    assert measured.over(BUILT_IN) == limits and measured.rows != BUILT_IN.rows
    checks = [key.split("/")[0] for key in measured.rows]
    found = {check: checks.count(check) for check in checks}
    assert found == {"prefill.sketch": 18, "prefill.layer0": 3, "prefill.window": 3}

    named = asyncio.run(store.read(partial(reachable.in_calibrations, after=None, failed_since=datetime.now(UTC))))
    assert told["tolerances"].encode() in named.texts, "the collector would take it for rubbish"
    (act,) = asyncio.run(store.read(partial(audit_log.newest, limit=5)))
    assert (act.action, act.subject) == ("calibrate", told["model"])
    store.close()

    evidence = json.loads((tmp_path / EVIDENCE_FILE).read_text())
    assert evidence["refused"] is False and len(evidence["rows"]) == 21
    assert {row["texts"] for row in evidence["rows"].values()} == {4}, "audits as well as sketches"
    seen = {sight["cheat"] for row in evidence["rows"].values() for sight in row["sights"] if sight["is_seen"]}
    assert {"RoPE off by one", "last layer skipped", "one token changed"} <= seen
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 10 and "int8 weights" in page
    assert (tmp_path / "report.md").read_text().count(".svg)") == 10


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--model", "./nowhere"), "no such folder; a model of the pool needs its grid"),
        (("--model", ".", "--may-miss", "int9 weights"), "'int9 weights': expected one of int8 weights, "),
        (("--model", "MODEL", "--text", "MODEL/short.txt", "--quick"), "--text: "),
        (("--model", "MODEL", "--tokens", "4096"), "--tokens: 4096, but "),
    ],
)
def test_what_can_not_be_calibrated_is_told_in_a_line(model: Path, words: tuple[str, ...], says: str) -> None:
    from memgrid.errors import InvalidError

    (model / "short.txt").write_text("one line")
    given = [
        word.replace("MODEL/config.json", str(model / "short.txt")).replace("MODEL", str(model)) for word in words
    ]
    with pytest.raises(InvalidError) as told:
        calibrate(*given)
    assert says in str(told.value)


def measured(model: Path, folder: Path, cheats: tuple[str, ...], **given: object) -> Calibrated:
    options: dict[str, object] = {"sizes": Sizes(chunks=16, tokens=64, cheat_stride=4), "is_taught": False, **given}
    asked = CalibrationAsked(
        model_folder=model,
        work_folder=folder,
        ways=(BASE, HONEST[2], HALF),
        cheats=cheats,
        stores=(StoreDtype.BFLOAT16,),
        **options,  # type: ignore[arg-type]
    )

    async def run() -> Calibrated:
        engine = InlineEngine(processes=1)
        try:
            return await Calibrating(engine).run(asked)
        finally:
            await engine.close(timedelta(0))

    return asyncio.run(run())


def test_a_model_whose_weights_stand_near_a_grid_is_refused_and_one_on_it_is_not(model: Path, tmp_path: Path) -> None:
    """Rounding weights that are 8 bits already is no cheat; nearly so, it is one that nobody can see."""
    on_grid = make_tiny_model(tmp_path / "on", layers=3)
    quantised(on_grid).save_pretrained(on_grid)
    found = measured(on_grid, tmp_path, ("int8 weights", "RoPE off by one"))
    assert found.lossless == ("int8 weights",)
    assert found.refusal() == ()
    assert {sight.cheat for row in found.rows.values() for sight in row.sights} >= {"RoPE off by one"}

    near_grid = make_tiny_model(tmp_path / "near", layers=3)
    quantised(near_grid).to(torch.bfloat16).save_pretrained(near_grid)
    found = measured(near_grid, tmp_path, ("int8 weights",))
    assert set(found.overlaps) == {"int8 weights"}
    assert all("bfloat16" in row for row in found.overlaps["int8 weights"])
    assert found.refusal()[0].startswith("int8 weights can't be told from honest answers in prefill.")
    allowed = measured(near_grid, tmp_path, ("int8 weights",), may_miss=frozenset({"int8 weights"}))
    assert not allowed.is_refused and any(line.startswith("int8 weights") for line in allowed.unseen_in_words())


def test_study_evaluate_and_train_are_calibrated_by_replays_of_real_answers(model: Path, tmp_path: Path) -> None:
    cheats = ("another seed", "answers edited", "a better cube", "one step fewer", "poisoned last segment")
    sizes = Sizes(chunks=4, tokens=32, cheat_stride=4, conversations=8, text_tokens=64, train_row_tokens=96)
    found = measured(model, tmp_path, cheats, sizes=sizes, is_taught=True)
    assert found.untaught == ""
    for check, expected in (
        ("study.replay", {"another seed", "answers edited"}),
        ("evaluate.replay", {"a better cube"}),
        ("train.segment", {"one step fewer", "poisoned last segment"}),
    ):
        for claimed in ("float32", "bfloat16"):
            row = found.rows[f"{check}/{claimed}+float32"]
            assert row.furthest < UNSURE_FROM and row.tried_on > 0
            assert {sight.cheat for sight in row.sights if sight.faults == sight.cases} >= expected
    assert found.rows["train.segment/bfloat16+float32"].statistics["relative L2"].honest_max > 1e-3
