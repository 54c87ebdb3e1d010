"""What a fleet promises by number, in real processes with a fake engine, whose speed is known.

A model that nobody has is loaded once, whoever asks and whatever else goes on. Conversations stay where they are,
evenly. Who waits is told why.
"""

import concurrent.futures
import itertools
import re
import signal
import threading
from collections.abc import Iterator

import httpx
import pytest

from common.messages import Chat
from cortex.fleet import prefix
from cortex.fleet.claims import registrars
from tests.integration.test_fleet import NAMES, PATIENCE_S, Fleet, running, wait_until
from tests.support.fake_engine import write_model
from tests.support.harness import ADMIN_KEY
from tests.support.terminal import Terminal

CROWD = 16
"""First requests that come at once; as many slots has each model, so that nobody is left to wait for its return."""
OTHERS = 9
"""Models that are asked for all the time: three for each neuron, whose two devices have room for one each."""
WANTED = 5
SMALL = {"vram_mb": 50, "context": 1024, "kv_tokens": 8192}
"""Of small models, which fit beside the others."""


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    base = tmp_path_factory.mktemp("once")
    slow = write_model(base / "slow.gguf", load_s=1.5)
    quick = write_model(base / "quick.gguf", load_s=0.2)
    sizes = {"vram_mb": 600, "context": 1024, "kv_tokens": 8192, "parallel": CROWD}
    rows = [{"id": f"wanted/{n}", "source": f"file:{slow}", **sizes} for n in range(WANTED)]
    rows += [{"id": f"other/{n}", "source": f"file:{quick}", **sizes} for n in range(OTHERS)]
    talk = write_model(base / "talk.gguf", token_s=0.02, length=5)
    single = write_model(base / "single.gguf", load_s=1.5, token_s=0.05, length=40)
    rows += [{"id": "talk", "source": f"file:{talk}", "parallel": 4, **SMALL}]
    rows += [{"id": "single", "source": f"file:{single}", "parallel": 1, **SMALL}]
    devices = [{"kind": "cpu", "memory_mb": 700, "threads": 1}] * 2
    engine = "tests.support.fake_engine"
    quick_words = {"first_byte_s": 0.3, "ping_s": 0.3}
    with running(base, dict.fromkeys(NAMES, devices), {"models": rows}, engine=engine, **quick_words) as made:
        yield made


def ask(fleet: Fleet, pool: concurrent.futures.Executor, model: str) -> "list[concurrent.futures.Future[str]]":
    """Send the crowd's first requests to both gateways at once; each gives its status and text."""

    def one(number: int) -> str:
        answer = fleet.chat(model, number % 2)
        return "" if answer.status_code == 200 else f"{answer.status_code} {answer.text}"

    return [pool.submit(one, number) for number in range(CROWD)]


def test_who_waits_is_told_why(fleet: Fleet) -> None:
    body = {"model": "single", "messages": [{"role": "user", "content": "hi"}], "stream": True}

    def comments(gateway: int) -> set[str]:
        url = f"{fleet.gateways[gateway].url}/v1/chat/completions"
        with httpx.stream("POST", url, json=body, timeout=PATIENCE_S) as reply:
            lines = list(reply.iter_lines())
        assert (reply.status_code, lines[-2:]) == (200, ["data: [DONE]", ""])
        return {line for line in lines if line.startswith(":")}

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        told = list(pool.map(comments, range(2)))
    assert all(any(re.fullmatch(r": loading \d+%", line) for line in lines) for lines in told), told
    assert sum(": queue 1" in lines for lines in told) == 1, told


def test_a_load_shows_how_far_it_is_on_a_terminal(fleet: Fleet) -> None:
    command = ["-m", "cortex", "load", f"wanted/{WANTED - 1}", "--url", fleet.gateways[0].url]
    with Terminal(command, {"CORTEX_ADMIN_KEY": ADMIN_KEY}) as terminal:
        assert terminal.end() == 0
    assert re.search(rf"loading wanted/{WANTED - 1} on CPU-\d .* [1-9]\d%", terminal.shown), terminal.shown
    assert re.search(rf"\w+: wanted/{WANTED - 1} is loaded on CPU-\d in \d\.\d s\s*$", terminal.shown)


def test_growing_conversations_stay_where_they_are_and_their_turns_are_spread_evenly(fleet: Fleet) -> None:
    homes = NAMES[:2]
    for node in homes:
        loaded = fleet.cortex("load", "talk", "--node", node)
        assert loaded.returncode == 0, loaded.stderr
    wait_until(lambda: len(fleet.nodes_of("talk")) == 2, 5, "the second replica is not listed")
    talks = [[{"role": "user", "content": f"Tell me about number {n}."}] for n in range(16)]
    served: list[list[str]] = []

    def turn(number: int) -> None:
        answer = fleet.chat("talk", number % 2, messages=talks[number], max_tokens=5)
        assert answer.status_code == 200, answer.text

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            list(pool.map(turn, range(16)))
            held = {node: fleet.prefixes(node, "talk") for node in homes}
            last = [prefix.chain(Chat(messages=talk))[-1] for talk in talks]
            served.append([next(node for node, links in held.items() if link in links) for link in last])
            for talk in talks:
                talk += [{"role": "assistant", "content": "Yes."}, {"role": "user", "content": "And?"}]
    stayed = [a == b for one, two in itertools.pairwise(served) for a, b in zip(one, two, strict=True)]
    assert sum(stayed) >= 0.95 * len(stayed), served
    turns = [node for row in served for node in row]
    assert all(0.8 <= turns.count(node) / (len(turns) / 2) <= 1.2 for node in homes), served


def test_a_crowd_brings_about_one_load_while_every_neuron_loads_and_evicts_others(fleet: Fleet) -> None:
    stop = threading.Event()
    failures: list[str] = []

    def keep_busy(first: int) -> None:
        for number in itertools.count(first, 4):
            if stop.is_set():
                return
            answer = fleet.chat(f"other/{number % OTHERS}", number % 2)
            if answer.status_code != 200:
                failures.append(answer.text)

    def evictions() -> int:
        return sum(neuron.log.count("evicting model") for neuron in fleet.neurons.values())

    for number in range(OTHERS):  # a model stays with the neuron that has read its file
        loaded = fleet.post(0, "/fleet/load", {"model": f"other/{number}", "node": NAMES[number % 3]})
        assert '"done"' in loaded.text, loaded.text
    threads = [threading.Thread(target=keep_busy, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: all("evicting model" in n.log for n in fleet.neurons.values()), 30, "nothing is evicted")
        with concurrent.futures.ThreadPoolExecutor(CROWD) as pool:
            for number in range(2):
                before = evictions()
                answers = [f.result() for f in ask(fleet, pool, f"wanted/{number}")]
                assert answers == [""] * CROWD
                (node,) = set(fleet.loads(f"wanted/{number}"))
                # On a slow machine somebody of the crowd may come after all others, when it has made room again.
                turns = re.findall(rf"(loading|evicting) model model=wanted/{number} ", fleet.neurons[node].log)
                assert turns == ["loading", "evicting"] * (len(turns) // 2) + ["loading"] * (len(turns) % 2)
                wait_until(lambda: evictions() > before, 30, "the others have come to rest")  # noqa: B023
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []


def test_a_crowd_brings_about_two_loads_at_most_while_its_registrar_or_its_loader_is_killed(fleet: Fleet) -> None:
    with concurrent.futures.ThreadPoolExecutor(CROWD) as pool:
        for number, victim in ((2, "registrar"), (3, "loader")):
            model = f"wanted/{number}"
            answers = ask(fleet, pool, model) if victim == "loader" else []
            if victim == "loader":
                wait_until(lambda: bool(fleet.loads(model)), 20, "nobody loads it")  # noqa: B023
                (name,) = set(fleet.loads(model))
            else:
                name = registrars(list(NAMES), model)[0]  # of neurons that are all up still
            gone = fleet.neurons[name]
            gone.kill(signal.SIGKILL)
            answers = answers or ask(fleet, pool, model)
            assert [f.result() for f in answers] == [""] * CROWD
            assert 1 <= len(fleet.loads(model)) <= 2
