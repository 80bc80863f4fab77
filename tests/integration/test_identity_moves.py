"""A key and an identity on their way to another machine: the grid knows them again, credit and record included."""

from __future__ import annotations

import asyncio
import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection
from typer.testing import CliRunner

from memgrid.endpoint import GridEndpoint
from memgrid.errors import InvalidError
from memgrid.units import AccountId, HostId
from memgrid_coordinator.app import Coordinator
from memgrid_coordinator.store import credits, hosts
from memgrid_volunteer import running
from memgrid_volunteer.cli import app
from memgrid_volunteer.home import Home, Membership
from memgrid_volunteer.isolation import Isolation
from memgrid_volunteer.service import keys
from memgrid_volunteer.service.keys import Sealed, seal, unseal
from memgrid_volunteer.standing import ask_standing
from memgrid_volunteer.stopping import Stopping
from tests.grids import eventually
from tests.ledgers import add_lease, add_unit

ROOT = Path(__file__).resolve().parents[2]
PASSPHRASE = "correct horse battery"
NOW = datetime(2026, 3, 1, tzinfo=UTC)
OPTIONS = running.Options(threads=1, worker_module="tests.workers.quick", isolation=Isolation.NONE)


@pytest.fixture(autouse=True)
def import_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def memgrid(*words: str | Path, answers: str = f"{PASSPHRASE}\n") -> str:
    arguments = [*map(str, words), "--passphrase-file", "-"]
    result = CliRunner().invoke(app, ["key", *arguments], input=answers, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


async def join(coordinator: Coordinator, home: Home, label: str) -> None:
    url = coordinator.address.url
    await running.join(url, home, label=label, invite_code="", options=OPTIONS, tell=lambda line: None)


async def earn(coordinator: Coordinator, home: Home, flops: int) -> None:
    """Credit, as if results of this host had been accepted."""
    membership = home.membership()

    def step(connection: Connection) -> None:
        unit_id = add_unit(connection, flops, flops=flops)
        lease = add_lease(connection, f"l{flops}", membership.account_id, unit_id, host=membership.host_id)
        credits.grant(connection, [(lease, flops)], datetime.now(UTC))

    await coordinator.store.write(step)


async def credit_of(coordinator: Coordinator, home: Home) -> float:
    return (await ask_standing(coordinator.address.url, key=home.key())).flops


async def hosts_of(coordinator: Coordinator, account_id: AccountId) -> dict[str, str]:
    """The grid's own record: label and id of every host of an account."""

    def read(connection: Connection) -> dict[str, str]:
        return {
            label: str(found)
            for label in ("attic", "cellar", "shed")
            if (found := hosts.host_of_label(connection, account_id, label)) is not None
        }

    return await coordinator.store.read(read)


async def test_a_backup_gives_the_account_to_a_second_machine(
    grid: tuple[Coordinator, GridEndpoint], tmp_path: Path
) -> None:
    coordinator, _ = grid
    attic, cellar, file = Home(tmp_path / "attic"), Home(tmp_path / "cellar"), tmp_path / "key.json"
    await join(coordinator, attic, "attic")
    await earn(coordinator, attic, 1000)
    memgrid("backup", file, "--home", attic.folder)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    content = file.read_bytes()
    secret = (attic.folder / keys.KEY_FILE).read_bytes()
    assert secret not in content and secret.hex().encode() not in content
    assert "join URL --label NAME" in memgrid("restore", file, "--home", cellar.folder)
    assert (cellar.folder / keys.KEY_FILE).read_bytes() == secret
    assert stat.S_IMODE((cellar.folder / keys.KEY_FILE).stat().st_mode) == 0o600
    await join(coordinator, cellar, "cellar")
    assert cellar.membership().account_id == attic.membership().account_id
    assert cellar.membership().host_id != attic.membership().host_id
    assert await credit_of(coordinator, cellar) == 1000
    # The first machine goes on as it was.
    assert len(await hosts_of(coordinator, attic.membership().account_id)) == 2


async def test_a_moved_identity_is_the_same_host_and_the_old_machine_stops(
    grid: tuple[Coordinator, GridEndpoint], tmp_path: Path
) -> None:
    coordinator, _ = grid
    old, new, file = Home(tmp_path / "old"), Home(tmp_path / "new"), tmp_path / "identity.json"
    await join(coordinator, old, "attic")
    await earn(coordinator, old, 2000)
    membership, before = old.membership(), await hosts_of(coordinator, old.membership().account_id)
    old.keep_join_code(membership.url, "Early Birds", "the-code")
    memgrid("move", file, "--home", old.folder)
    with pytest.raises(InvalidError, match="was moved to another machine"):
        old.membership()
    with pytest.raises(InvalidError, match="was moved to another machine"):
        await running.run(old, OPTIONS, lambda line: None, Stopping())
    assert "is the host attic on" in memgrid("restore", file, "--home", new.folder)
    assert new.membership() == membership and new.join_code(membership.url, "Early Birds") == "the-code"
    stopping = Stopping()
    task = asyncio.create_task(running.run(new, OPTIONS, lambda line: None, stopping))
    try:
        # Whether it may compute is for its owner's preferences; that the grid knows it, it can show.
        await eventually(lambda: is_heard(new))
    finally:
        stopping.stop()
        await task
    assert await hosts_of(coordinator, membership.account_id) == before == {"attic": membership.host_id}
    assert await credit_of(coordinator, new) == 2000
    # The old machine may work for the same account, but not as the same host.
    with pytest.raises(InvalidError, match="join with another --label"):
        keys.check_label(old, "attic")
    keys.check_label(old, "shed")
    await join(coordinator, old, "shed")
    assert set(await hosts_of(coordinator, membership.account_id)) == {"attic", "shed"}


async def is_heard(home: Home) -> bool:
    return home.status().get("state") in ("idle", "paused")


def made(folder: Path) -> Home:
    home = Home(folder)
    home.make()
    home.key()
    return home


def test_a_running_volunteer_is_not_moved_nor_one_with_results_to_deliver(tmp_path: Path) -> None:
    home = made(tmp_path / "home")
    home.join(Membership(url="https://g", name="g", account_id=AccountId("a"), host_id=HostId("h"), label="attic"))
    with home.lock(), pytest.raises(InvalidError, match="is running here"):
        keys.move(home, tmp_path / "one.json", PASSPHRASE, NOW)
    assert not (tmp_path / "one.json").exists()
    (home.outbox / "lease").mkdir()
    with pytest.raises(InvalidError, match="1 results here await"):
        CliRunner().invoke(
            app, ["key", "move", str(tmp_path / "x"), "--home", str(home.folder)], catch_exceptions=False
        )
    assert home.membership().label == "attic"


def test_what_moved_away_may_come_back(tmp_path: Path) -> None:
    home, file = made(tmp_path / "home"), tmp_path / "identity.json"
    membership = Membership(url="https://g", name="g", account_id=AccountId("a"), host_id=HostId("h"), label="attic")
    home.join(membership)
    keys.move(home, file, PASSPHRASE, NOW)
    keys.restore(home, file, PASSPHRASE)
    assert home.membership() == membership
    keys.check_label(home, "attic")
    home.forget()
    with pytest.raises(InvalidError, match="no grid joined yet"):
        home.membership()


def test_nothing_is_written_over(tmp_path: Path) -> None:
    first, second, file = made(tmp_path / "first"), made(tmp_path / "second"), tmp_path / "key.json"
    keys.back_up(first, file, PASSPHRASE, NOW)
    with pytest.raises(InvalidError, match="is there already"):
        keys.back_up(second, file, PASSPHRASE, NOW)
    former = (second.folder / keys.KEY_FILE).read_bytes()
    with pytest.raises(InvalidError, match="there is another key; --replace"):
        keys.restore(second, file, PASSPHRASE)
    assert (second.folder / keys.KEY_FILE).read_bytes() == former
    sealed = keys.restore(second, file, PASSPHRASE, is_replacing=True)
    assert second.key().public_key == first.key().public_key == sealed.public_key
    (kept,) = second.folder.glob(f"{keys.KEY_FILE}.before-*")
    assert kept.read_bytes() == former
    # Once more is harmless.
    keys.restore(second, file, PASSPHRASE)


def test_a_key_that_a_grid_knows_is_not_replaced(tmp_path: Path) -> None:
    other, home, file = made(tmp_path / "other"), made(tmp_path / "home"), tmp_path / "key.json"
    keys.back_up(other, file, PASSPHRASE, NOW)
    home.join(Membership(url="https://g", name="g", account_id=AccountId("a"), host_id=HostId("h"), label="attic"))
    with pytest.raises(InvalidError, match="has joined a grid"):
        keys.restore(home, file, PASSPHRASE, is_replacing=True)


def test_the_passphrase_is_asked_for_twice_and_must_be_long(tmp_path: Path) -> None:
    home = made(tmp_path / "home")

    def ask(answers: str, name: str) -> str:
        words = ["key", "backup", str(tmp_path / name), "--home", str(home.folder)]
        return CliRunner().invoke(app, words, input=answers).output

    assert "do not match" in ask(f"{PASSPHRASE}\n{PASSPHRASE}x\n", "a")
    assert not (tmp_path / "a").exists()
    output = ask(f"{PASSPHRASE}\n{PASSPHRASE}\n", "b")
    assert "nobody can use it" in output and PASSPHRASE not in output
    with pytest.raises(InvalidError, match="at least 10 characters"):
        keys.back_up(home, tmp_path / "c", "short", NOW)
    assert not (tmp_path / "c").exists()


def test_another_passphrase_and_other_files_are_told_apart(tmp_path: Path) -> None:
    content = seal(Sealed(key=bytes(32), made_at=NOW), PASSPHRASE, log_n=4)
    with pytest.raises(InvalidError, match="passphrase is not that"):
        unseal(content, PASSPHRASE + "x")
    with pytest.raises(InvalidError, match="passphrase is not that"):
        unseal(content.replace(b'"log_n": 4', b'"log_n": 5'), PASSPHRASE)
    for other in (b"", b"{}", b"[]", b"\xff", content.replace(b'"log_n": 4', b'"log_n": 30')):
        with pytest.raises(InvalidError, match="not a key file"):
            unseal(other, PASSPHRASE)
    with pytest.raises(InvalidError, match="no such file"):
        keys.restore(Home(tmp_path / "new"), tmp_path / "nothing", PASSPHRASE)


@settings(max_examples=40, deadline=None)
@given(key=st.binary(min_size=32, max_size=32), passphrase=st.text(min_size=10), place=st.integers(0, 10_000))
def test_what_is_sealed_comes_back_and_a_changed_file_never_does(key: bytes, passphrase: str, place: int) -> None:
    sealed = Sealed(key=key, made_at=NOW, team={"code": "x"})
    content = seal(sealed, passphrase, log_n=2)
    assert unseal(content, passphrase) == sealed
    at = place % len(content)
    changed = bytes([*content[:at], content[at] ^ 1, *content[at + 1 :]])
    try:
        found = unseal(changed, passphrase)
    except InvalidError:
        return
    assert found == sealed, "a changed blank changes nothing; anything else is noticed"
