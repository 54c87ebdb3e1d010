"""A model that nobody has is loaded once, whoever asks and whatever else goes on: real processes, a fake engine."""

import concurrent.futures
import itertools
import re
import signal
import threading
from collections.abc import Iterator

import pytest

from cortex.fleet.claims import registrars
from tests.integration.test_fleet import NAMES, Fleet, running, wait_until
from tests.support.fake_engine import write_model

CROWD = 16
"""First requests that come at once; as many slots has each model, so that nobody is left to wait for its return."""
OTHERS = 9
"""Models that are asked for all the time: three for each neuron, whose two devices have room for one each."""
WANTED = 4


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    base = tmp_path_factory.mktemp("once")
    slow = write_model(base / "slow.gguf", load_s=1.5)
    quick = write_model(base / "quick.gguf", load_s=0.2)
    sizes = {"vram_mb": 600, "context": 1024, "kv_tokens": 8192, "parallel": CROWD}
    rows = [{"id": f"wanted/{n}", "source": f"file:{slow}", **sizes} for n in range(WANTED)]
    rows += [{"id": f"other/{n}", "source": f"file:{quick}", **sizes} for n in range(OTHERS)]
    devices = [{"kind": "cpu", "memory_mb": 700, "threads": 1}] * 2
    engine = "tests.support.fake_engine"
    with running(base, dict.fromkeys(NAMES, devices), {"models": rows}, engine=engine) as made:
        yield made


def ask(fleet: Fleet, pool: concurrent.futures.Executor, model: str) -> "list[concurrent.futures.Future[str]]":
    """Send the crowd's first requests to both gateways at once; each gives its status and text."""

    def one(number: int) -> str:
        answer = fleet.chat(model, number % 2)
        return "" if answer.status_code == 200 else f"{answer.status_code} {answer.text}"

    return [pool.submit(one, number) for number in range(CROWD)]


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
