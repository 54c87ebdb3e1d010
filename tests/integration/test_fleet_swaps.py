"""More models than fit: three neurons, two gateways of two processes, six models of which four fit."""

import concurrent.futures
import random
import re
from collections.abc import Iterator

import pytest

from tests.integration.test_fleet import NAMES, Fleet, running
from tests.support.harness import DEMO_SOURCE

MODELS = [
    {
        "id": f"swap/{n}",
        "source": DEMO_SOURCE,
        "vram_mb": 600,
        "context": 1024 + 256 * n,
        "kv_tokens": 2048,
        "parallel": 4,
    }
    for n in range(6)
]
LARGE, SMALL = ({"kind": "cpu", "memory_mb": memory_mb, "threads": 1} for memory_mb in (700, 400))
DEVICES = {NAMES[0]: [LARGE, LARGE], NAMES[1]: [LARGE, SMALL], NAMES[2]: [LARGE, SMALL]}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with running(tmp_path_factory.mktemp("swaps"), DEVICES, {"models": MODELS}) as made:
        yield made


def test_every_model_answers_though_only_four_fit(fleet: Fleet) -> None:
    for number in range(6):
        answer = fleet.chat(f"swap/{number}", number % 2, max_tokens=2)
        assert answer.status_code == 200, answer.text
    held = [n for number in range(6) for n in fleet.nodes_of(f"swap/{number}")]
    assert len(held) == 4
    assert {n: held.count(n) for n in NAMES} == {n: DEVICES[n].count(LARGE) for n in NAMES}


def test_random_requests_over_all_models_are_all_answered(fleet: Fleet) -> None:
    dice = random.Random(4)
    asked = [(f"swap/{dice.randrange(6)}", dice.randrange(2)) for _ in range(200)]
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda ask: fleet.chat(*ask, max_tokens=2), asked))
    assert [a.text for a in answers if a.status_code != 200] == []
    status = fleet.cortex("status")
    assert (status.returncode, status.stderr) == (0, "")
    assert re.search(r"^  swap/\d: made room for swap/\d on CPU-\d \(lru: (idle|busy)", status.stdout, re.MULTILINE)
    logs = "".join(neuron.log for neuron in fleet.neurons.values())
    assert "evicting model" in logs
    assert "makes_room_for=swap/" in logs
    # What a worker says of a job whose model it unloads; the gateway would have had it done elsewhere without a word.
    assert "code=model_unloaded" not in logs
    assert "worker ended" not in logs
    assert "job is sent again" not in "".join(gateway.log for gateway in fleet.gateways)
