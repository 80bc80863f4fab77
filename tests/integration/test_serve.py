"""The official openai client against a real server: answers, streams, cubes by name and by relevance, refusals."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from aiohttp import web

from memgrid.cube.cube import MemCube
from memgrid.cube.identity import ModelIdentity, identity_of_folder
from memgrid.cube.oci import OciManifest
from memgrid.digest import digest_of
from memgrid.pool.client import Pool
from memgrid.serving.answering import Answerer
from memgrid.serving.choosing import Shelf
from memgrid.serving.loading import Loaded, load
from memgrid.serving.server import REQUEST_BYTES_MAX, Server
from memgrid.signing import SigningKey
from memgrid.specs import AdapterSpec
from tests.adapters import LORA, PREFIX, make_parameter_cube

KEY = SigningKey.generate()
BASE = "tiny"
TOLD = [{"role": "user", "content": "At how many bar does the valve of the pump open?"}]
ELSEWHERE = [{"role": "user", "content": "Who wrote Hamlet?"}]
MILL = "The mill grinds the grain into flour between two stones, and its wheel turns in the river."
Client = openai.AsyncOpenAI


@pytest.fixture(scope="module")
def loaded(tiny_model_folder: Path) -> Loaded:
    return load(str(tiny_model_folder))


@pytest.fixture(scope="module")
def base(tiny_model_folder: Path) -> ModelIdentity:
    return identity_of_folder(tiny_model_folder, "tiny")


@pytest.fixture
def pool(tmp_path: Path, loaded: Loaded, base: ModelIdentity) -> Pool:
    """A cache with two cubes of this model, and one of another that nobody should be offered."""
    pool = Pool("https://grid.example", cache=tmp_path / "cache")
    keep(pool, tmp_path / "pump", loaded, base, PREFIX, name="pumps/valves", seed=1)
    keep(pool, tmp_path / "mill", loaded, base, LORA, name="mills/flour", seed=2, text=MILL, title="The old mill")
    other = ModelIdentity.from_json({**base.to_json(), "weights": digest_of(b"others")})
    keep(pool, tmp_path / "other", loaded, other, PREFIX, name="pumps/others", seed=3)
    return pool


def keep(pool: Pool, folder: Path, loaded: Loaded, base: ModelIdentity, adapter: AdapterSpec, **changes: Any) -> None:
    """Put a cube into the cache as pulling it would."""
    made = make_parameter_cube(folder, adapter, loaded.model, base, KEY, **changes)
    name = f"https://grid.example/{made.manifest.name}:{made.manifest.version}"
    with pool.cache.staging() as staged:
        shutil.copytree(folder, staged, dirs_exist_ok=True)
        pool.cache.put_cube(staged, digest_of(made.oci), OciManifest.from_bytes(made.oci), name)


@asynccontextmanager
async def serving(loaded: Loaded, pool: Pool, **settings: Any) -> AsyncIterator[str]:
    """The address of a server on a free port."""
    answerer = Answerer(loaded)
    shelf = Shelf(loaded, pool, may_pull=False, keys=[KEY.public_key])
    runner = web.AppRunner(Server(BASE, answerer, shelf, **settings).app(), handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    finally:
        await runner.cleanup()
        answerer.close()


@pytest.fixture
async def address(loaded: Loaded, pool: Pool) -> AsyncIterator[str]:
    async with serving(loaded, pool) as address:
        yield address


@pytest.fixture
async def client(address: str) -> AsyncIterator[Client]:
    async with openai.AsyncOpenAI(base_url=address, api_key="none", max_retries=0) as client:
        yield client


async def ask(client: Client, model: str, messages: Any = TOLD, **settings: Any) -> Any:
    return await client.chat.completions.create(model=model, messages=messages, max_tokens=10, **settings)


async def test_models_are_the_base_auto_and_each_fitting_cube(client: Client) -> None:
    names = {model.id async for model in client.models.list()}
    assert names == {BASE, f"{BASE}+auto", f"{BASE}+pumps/valves:1.0.0", f"{BASE}+mills/flour:1.0.0"}
    assert (await client.models.retrieve(f"{BASE}+pumps/valves:1.0.0")).owned_by == "memgrid"
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        await client.models.retrieve(f"{BASE}+pumps/others:1.0.0")


async def test_answers_come_with_usage_and_their_cubes(client: Client, loaded: Loaded) -> None:
    plain = await ask(client, BASE)
    answer = await ask(client, f"{BASE}+pumps/valves")
    assert plain.object == "chat.completion" and plain.choices[0].finish_reason == "length"
    assert plain.choices[0].message.content != answer.choices[0].message.content
    usage = answer.usage
    assert usage.completion_tokens == 10 and usage.total_tokens == usage.prompt_tokens + 10
    assert usage.prompt_tokens == plain.usage.prompt_tokens + PREFIX.virtual_tokens
    assert usage.prompt_tokens_details.cached_tokens == PREFIX.virtual_tokens
    assert answer.model_extra["memgrid"]["cubes"][0]["name"] == "pumps/valves"
    assert plain.model_extra["memgrid"]["cubes"] == []


async def test_a_stream_says_what_the_whole_answer_says(client: Client) -> None:
    model = f"{BASE}+pumps/valves:1.0.0+mills/flour"
    whole = await ask(client, model)
    chunks = [chunk async for chunk in await ask(client, model, stream=True, stream_options={"include_usage": True})]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [cube["name"] for cube in chunks[0].model_extra["memgrid"]["cubes"]] == ["pumps/valves", "mills/flour"]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    assert text == whole.choices[0].message.content and len(chunks) > 6
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1] if chunk.choices[0].finish_reason] == ["length"]
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 10
    assert len({chunk.id for chunk in chunks}) == 1


async def test_auto_takes_what_the_question_is_about_or_nothing(client: Client) -> None:
    told = await ask(client, f"{BASE}+auto")
    assert told.model_extra["memgrid"]["cubes"][0]["name"] == "pumps/valves"
    assert told.model_extra["memgrid"]["why"] == "pumps/valves (4 of 4 words: bar, valve, pump, open)"
    milled = await ask(client, f"{BASE}+auto", [{"role": "user", "content": "What turns the wheel of the mill?"}])
    assert milled.model_extra["memgrid"]["cubes"][0]["name"] == "mills/flour"
    went_on = [*TOLD, {"role": "assistant", "content": "Three."}, {"role": "user", "content": "Why is that?"}]
    assert (await ask(client, f"{BASE}+auto", went_on)).model_extra["memgrid"]["cubes"][0]["name"] == "pumps/valves"
    turned = [*TOLD, {"role": "assistant", "content": "Three."}, *ELSEWHERE]
    assert (await ask(client, f"{BASE}+auto", turned)).model_extra["memgrid"]["cubes"] == []
    nothing = await ask(client, f"{BASE}+auto", ELSEWHERE)
    assert nothing.model_extra["memgrid"] == {"cubes": [], "why": "none of 2 cubes knows these words"}
    assert nothing.choices[0].message.content == (await ask(client, BASE, ELSEWHERE)).choices[0].message.content


async def test_unknown_models_and_cubes_are_not_found(client: Client) -> None:
    for model in ("gpt-5", f"{BASE}+pumps/nothing", f"{BASE}+pumps/valves:2.0.0", f"{BASE}+pumps/others"):
        with pytest.raises(openai.NotFoundError) as refused:
            await ask(client, model)
        assert refused.value.code == "model_not_found" and refused.value.param == "model"


@pytest.mark.parametrize(
    ("change", "param", "message"),
    [
        ({"messages": []}, "messages", "messages: List should have at least 1 item"),
        ({"messages": [{"role": "pump", "content": "x"}]}, "messages", r"messages\.0\.role: Input should be"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, None, "expected some text from the user"),
        ({"temperature": 3}, "temperature", "temperature: Input should be less than or equal to 2"),
        ({"n": 2}, "n", "n: Input should be 1"),
        ({"max_tokens": 0}, "max_tokens", "max_tokens: Input should be greater than or equal to 1"),
        ({"tools": [{"type": "function"}]}, "tools", "tools: List should have at most 0 items"),
        ({"model": f"{BASE}+auto+pumps/valves"}, None, "expected auto alone"),
        ({"model": f"{BASE}+Not A Name"}, None, r"expected namespace/name"),
        ({"messages": [{"role": "user", "content": "valve " * 5000}]}, "messages", r"takes \d+ tokens, the model"),
    ],
)
async def test_bad_requests_are_refused_with_the_field_in_one_line(
    address: str, change: dict[str, Any], param: str | None, message: str
) -> None:
    body = {"model": BASE, "messages": TOLD, **change}
    async with httpx.AsyncClient() as http:
        answer = await http.post(f"{address}/chat/completions", json=body)
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["type"] == "invalid_request_error"
    assert error["param"] == param
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(error["message"])


async def test_what_is_no_request_at_all_is_refused_too(address: str) -> None:
    async with httpx.AsyncClient() as http:
        url = f"{address}/chat/completions"
        assert (await http.post(url, content=b"{", headers={"Content-Type": "application/json"})).status_code == 400
        assert (await http.post(url, content=b"[]", headers={"Content-Type": "application/json"})).status_code == 400
        plain = await http.post(url, content=b"{}", headers={"Content-Type": "text/plain"})
        assert plain.status_code == 400 and "content type" in plain.json()["error"]["message"]
        large = await http.post(url, json={"model": "x" * (REQUEST_BYTES_MAX + 1)})
        assert large.status_code == 413 and large.json()["error"]["type"] == "invalid_request_error"
        missing = await http.get(f"{address}/embeddings")
        assert missing.status_code == 404 and "error" in missing.json()
        assert (await http.get(url)).status_code == 405


async def test_other_ways_to_say_the_same_are_understood(client: Client) -> None:
    parts = [
        {"role": "developer", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "When does the valve "}, {"type": "text", "text": "open?"}],
        },
    ]
    plain = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "When does the valve open?"}]
    first = await client.chat.completions.create(
        model=BASE,
        messages=parts,
        max_completion_tokens=10,
        user="somebody",
        seed=3,  # type: ignore[arg-type]
    )
    assert first.choices[0].message.content == (await ask(client, BASE, plain)).choices[0].message.content


async def test_a_key_is_asked_for_where_one_was_set(loaded: Loaded, pool: Pool) -> None:
    async with serving(loaded, pool, api_key="right") as address:
        async with openai.AsyncOpenAI(base_url=address, api_key="wrong", max_retries=0) as client:
            with pytest.raises(openai.AuthenticationError) as refused:
                await client.models.list()
            assert refused.value.code == "invalid_api_key"
        async with openai.AsyncOpenAI(base_url=address, api_key="right", max_retries=0) as client:
            assert (await ask(client, BASE)).choices[0].message.content


async def test_pages_that_call_themselves_this_machine_are_not_answered(address: str) -> None:
    async with httpx.AsyncClient() as http:
        assert (await http.get(f"{address}/models", headers={"Host": "localhost:8080"})).status_code == 200
        for name in ("evil.example", "evil.example:8080", "[", "127.0.0.1.evil.example"):
            refused = await http.get(f"{address}/models", headers={"Host": name})
            assert refused.status_code in (400, 403), name


async def test_more_than_may_wait_are_told_to_come_back(loaded: Loaded, pool: Pool) -> None:
    async with (
        serving(loaded, pool, waiting_max=1) as address,
        openai.AsyncOpenAI(base_url=address, api_key="none", max_retries=0) as client,
    ):
        long: dict[str, Any] = {"model": BASE, "messages": TOLD, "max_tokens": 1500}
        stream = await client.chat.completions.create(**long, stream=True)
        await anext(aiter(stream))  # it has begun, so it has the model
        waiting = asyncio.create_task(ask(client, BASE))
        with pytest.raises(openai.RateLimitError) as refused:
            while not waiting.done():  # until the other is seen to wait
                await asyncio.wait_for(ask(client, BASE), 60)
        assert refused.value.response.headers["Retry-After"] == "1"
        # Whoever leaves makes room at once: the answer would have gone on for a minute.
        await stream.close()
        assert (await asyncio.wait_for(waiting, 30)).choices[0].message.content


async def test_a_cube_that_was_changed_on_disk_does_not_answer(loaded: Loaded, pool: Pool, client: Client) -> None:
    folder = next(each.folder for each in pool.ls() if "pumps/valves" in each.names[0])
    tensors = folder / "adapter_model.safetensors"
    content = bytearray(tensors.read_bytes())
    content[-1] ^= 1
    tensors.unlink()
    tensors.write_bytes(bytes(content))
    with pytest.raises(openai.APIStatusError) as refused:
        await ask(client, f"{BASE}+pumps/valves")
    assert refused.value.status_code == 503 and "adapter_model.safetensors" in str(refused.value)
    assert (await ask(client, BASE)).choices[0].message.content


def test_cubes_given_by_folder_are_at_hand(tmp_path: Path, loaded: Loaded, base: ModelIdentity, pool: Pool) -> None:
    make_parameter_cube(tmp_path / "mine", PREFIX, loaded.model, base, KEY, name="own/notes", seed=9)
    shelf = Shelf(loaded, pool, may_pull=False, keys=[KEY.public_key])
    cube = shelf.add(str(tmp_path / "mine"))
    assert isinstance(cube, MemCube) and shelf.at_hand()[0] is cube
    assert shelf.named("own/notes") is cube


async def test_the_command_serves_until_it_is_told_to_stop(
    tmp_path: Path, tiny_model_folder: Path, loaded: Loaded, base: ModelIdentity
) -> None:
    make_parameter_cube(tmp_path / "mine", LORA, loaded.model, base, KEY, name="own/notes", seed=9)
    arguments = ["--model", str(tiny_model_folder), "--cube", str(tmp_path / "mine"), "--port", "0"]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-W",
        "error",
        "-c",
        "from memgrid.cli.main import main; main()",
        "serve",
        *arguments,
        "--key",
        KEY.public_key.hex(),
        stdout=asyncio.subprocess.PIPE,
        env=os.environ | {"MEMGRID_GRID": "https://grid.example", "MEMGRID_API_KEY": "secret"},
    )
    try:
        assert process.stdout is not None
        line = (await asyncio.wait_for(process.stdout.readline(), 240)).decode()
        found = re.fullmatch(r"serving (\S+) and \1\+auto at (http://127\.0\.0\.1:\d+/v1)\n", line)
        assert found is not None, line
        async with openai.AsyncOpenAI(base_url=found[2], api_key="secret", max_retries=0) as client:
            answer = await ask(client, f"{found[1]}+own/notes")
            assert answer.model_extra["memgrid"]["cubes"][0]["name"] == "own/notes"
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 60) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
