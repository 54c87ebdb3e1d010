"""Limits of a real gateway of four processes, with fifty clients at once, and after one of the processes was killed."""

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.support.fake_neuron import MODEL, FakeNeuron, started, token
from tests.support.harness import ROOT, Gateway, wait_gone

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 16}
CLIENTS = 50
PER_MINUTE = 100
SEATS = 12
TOKENS = 4000
TOKENS_AN_ANSWER = 3
TOKENS_A_REQUEST = 5 + TOKENS_AN_ANSWER
"""As the fake neuron counts its prompt."""
PATIENCE_S = 20.0


@pytest.fixture
def neuron() -> Iterator[FakeNeuron]:
    with FakeNeuron() as fake:
        yield fake


@pytest.fixture
def gateway(neuron: FakeNeuron, tmp_path: Path) -> Iterator[Gateway]:
    """One for each test: processes that begin later connect to the fake neuron, which lives in this process."""
    folder = tmp_path / "gateway"
    state = tmp_path / "state"
    state.mkdir()
    with Gateway(folder, endpoints={"beast": neuron.endpoint}, workers=4, state_dir=str(state)) as running:
        yield running


def cortex(gateway: Gateway, *arguments: str) -> str:
    command = [sys.executable, "-m", "cortex", *arguments, "--config", str(gateway.folder / "cortex.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def make_key(gateway: Gateway, *limits: str) -> str:
    """Make a key and wait until every process knows it."""
    key = cortex(gateway, "keys", "create", *limits)
    ends_at, in_a_row = time.monotonic() + PATIENCE_S, 0
    while in_a_row < 12:
        answer = httpx.get(f"{gateway.url}/v1/models", headers={"x-api-key": key}, timeout=5, verify=False)
        in_a_row = in_a_row + 1 if answer.status_code == 200 else 0
        assert time.monotonic() < ends_at, gateway.log
    return key


async def ask(gateway: Gateway, key: str, times: int) -> Counter[int]:
    """Be one client, with a connection of its own."""
    # Without certificates to verify, which each client would load for itself.
    async with httpx.AsyncClient(headers={"x-api-key": key}, timeout=PATIENCE_S, verify=False) as client:
        answers = [await client.post(f"{gateway.url}/v1/chat/completions", json=CHAT) for _ in range(times)]
    assert all("retry-after" in a.headers for a in answers if a.status_code == 429)
    return Counter(a.status_code for a in answers)


def test_fifty_clients_get_what_one_key_allows_and_usage_tells_it(gateway: Gateway, neuron: FakeNeuron) -> None:
    neuron.on_job = neuron.run
    key = make_key(gateway, "--requests-per-minute", str(PER_MINUTE), "--comment", "flood")

    async def all_at_once() -> Counter[int]:
        return sum(await asyncio.gather(*(ask(gateway, key, 5) for _ in range(CLIENTS))), Counter())

    statuses = asyncio.run(all_at_once())
    assert statuses[200] + statuses[429] == CLIENTS * 5
    assert statuses[200] == pytest.approx(PER_MINUTE, rel=0.01)
    ends_at = time.monotonic() + PATIENCE_S
    while True:  # each process writes once a second
        rows = json.loads(cortex(gateway, "usage", "--json"))
        found = {r["key"]: r for r in rows}.get(key[10:18])
        if found is not None and found["requests"] >= statuses[200]:
            break
        assert time.monotonic() < ends_at, rows
    assert (found["model"], found["requests"]) == (MODEL, statuses[200])
    assert found["completion_tokens"] == 3 * statuses[200]
    assert "flood" in cortex(gateway, "usage")


async def spend(gateway: Gateway, key: str, times: int, outcome: Counter[int]) -> None:
    """Be one client; count its answers by status, and as 0 those that were cut."""
    body = {"model": MODEL, "prompt": "x", "max_tokens": TOKENS_AN_ANSWER}
    limits = httpx.Limits(max_keepalive_connections=0)
    async with httpx.AsyncClient(headers={"x-api-key": key}, timeout=PATIENCE_S, verify=False, limits=limits) as client:
        for _ in range(times):
            try:
                answer = await client.post(f"{gateway.url}/v1/completions", json=body)
            except httpx.TransportError:
                outcome[0] += 1
            else:
                outcome[answer.status_code] += 1


def check_spent(outcome: Counter[int]) -> None:
    """Hold the answers to the limit. What was cut was computed, whether its tokens have been counted or not."""
    assert set(outcome) <= {0, 200, 429}
    assert outcome[200] * TOKENS_A_REQUEST <= 1.01 * TOKENS
    assert (outcome[200] + outcome[0]) * TOKENS_A_REQUEST >= 0.99 * TOKENS


@pytest.mark.parametrize("limit", ["--tokens-per-minute", "--tokens-per-day"])
def test_fifty_clients_get_the_tokens_that_one_key_allows_also_when_a_process_is_killed(
    neuron: FakeNeuron, tmp_path: Path, limit: str
) -> None:
    neuron.on_job = neuron.run
    state = tmp_path / "state"
    state.mkdir()
    folder, settings = tmp_path / "gateway", {"endpoints": {"beast": neuron.endpoint}, "state_dir": str(state)}
    with Gateway(folder, workers=4, **settings) as gateway:  # type: ignore[arg-type]
        key = make_key(gateway, limit, str(TOKENS))
        victim = psutil.Process(gateway.pid).children()[0]
        outcome: Counter[int] = Counter()

        async def all_at_once() -> None:
            each = [4] + [14] * (CLIENTS - 1)
            clients = [asyncio.create_task(spend(gateway, key, times, outcome)) for times in each]
            await asyncio.wait({clients[0]})  # the others are in the middle of it
            victim.send_signal(signal.SIGKILL)
            await asyncio.gather(*clients)

        asyncio.run(all_at_once())
        assert outcome[429]
        assert wait_gone([victim], PATIENCE_S) == []
        neuron.wait_for_gateways(5)
        refused = outcome[429]
        while outcome[429] == refused:  # nothing is reserved any more; what is left is to be had
            asyncio.run(spend(gateway, key, 1, outcome))
        check_spent(outcome)
    if limit == "--tokens-per-day":
        with Gateway(folder, workers=2, **settings) as gateway:  # type: ignore[arg-type]
            asyncio.run(spend(gateway, key, 4, outcome))
            check_spent(outcome)


def test_seats_of_a_killed_process_are_free_again(gateway: Gateway, neuron: FakeNeuron) -> None:
    def begin(gateway_id: str, job: object) -> None:
        neuron._send(gateway_id, started(job))  # type: ignore[arg-type]
        neuron._send(gateway_id, token(job, 0, "word"))  # type: ignore[arg-type]

    neuron.on_job = begin
    key = make_key(gateway, "--concurrent", str(SEATS))
    victim = psutil.Process(gateway.pid).children()[0]

    async def hold(client: httpx.AsyncClient, began: asyncio.Queue[int]) -> bool:
        """Hold a stream open; say whether it was cut."""
        body = {**CHAT, "stream": True}
        try:
            async with client.stream("POST", f"{gateway.url}/v1/chat/completions", json=body) as reply:
                began.put_nowait(reply.status_code)
                async for _ in reply.aiter_lines():
                    pass
        except httpx.HTTPError:
            return True
        return False

    async def scenario() -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        async with httpx.AsyncClient(headers={"x-api-key": key}, timeout=PATIENCE_S, limits=limits) as client:
            began: asyncio.Queue[int] = asyncio.Queue()
            streams = [asyncio.create_task(hold(client, began)) for _ in range(CLIENTS)]
            first = Counter([await began.get() for _ in range(CLIENTS)])
            assert first == {200: SEATS, 429: CLIENTS - SEATS}
            refused = await asyncio.wait_for(_some(streams, CLIENTS - SEATS), PATIENCE_S)
            victim.send_signal(signal.SIGKILL)
            assert await asyncio.to_thread(wait_gone, [victim], PATIENCE_S) == []
            cut = await asyncio.wait_for(_cut([s for s in streams if s not in refused]), PATIENCE_S)
            ends_at = time.monotonic() + PATIENCE_S
            again = 0
            while again < cut:
                streams.append(asyncio.create_task(hold(client, began)))
                again += await began.get() == 200
                assert time.monotonic() < ends_at, gateway.log
            for _ in range(8):
                streams.append(asyncio.create_task(hold(client, began)))
                assert await began.get() == 429
            await asyncio.to_thread(cortex, gateway, "keys", "revoke", key)  # which ends them all
            await asyncio.wait_for(asyncio.gather(*streams), PATIENCE_S)

    asyncio.run(scenario())


async def _some(tasks: list[asyncio.Task[bool]], count: int) -> set[asyncio.Task[bool]]:
    """Return so many tasks that are done."""
    while len(done := {t for t in tasks if t.done()}) < count:
        await asyncio.wait(set(tasks) - done, return_when=asyncio.FIRST_COMPLETED)
    return done


async def _cut(tasks: list[asyncio.Task[bool]]) -> int:
    """Return how many streams were cut, once that is known: all of a process end in the same moment."""
    done, left = await asyncio.wait(tasks, timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
    while done and left:
        fresh, left = await asyncio.wait(left, timeout=0.5, return_when=asyncio.FIRST_COMPLETED)
        if not fresh:
            break
        done |= fresh
    assert all(t.result() for t in done)
    return len(done)
