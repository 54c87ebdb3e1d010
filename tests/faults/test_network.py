"""A host whose network goes down, for a moment or for good: neurons in network namespaces of their own."""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.fake_engine import answer, text_of, tokenise, write_model
from tests.support.harness import ADMIN_KEY, Gateway, Neuron
from tests.support.streams import Reading, Stream, chat

pytestmark = [pytest.mark.long, pytest.mark.needs_netns]

CPU = {"kind": "cpu", "memory_mb": 1024, "threads": 1}
TOKENS = 300
"""Three seconds."""


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


class Island:
    """A network namespace, joined to this one by a pair of virtual interfaces."""

    def __init__(self, number: int) -> None:
        self.name = f"helexa-{os.getpid()}-{number}"
        self._inside, outside = "eth0", f"hx{os.getpid() % 100000}-{number}"
        self.address = f"10.213.{number}.2"
        ip("netns", "add", self.name)
        ip("link", "add", outside, "type", "veth", "peer", "name", self._inside, "netns", self.name)
        ip("addr", "add", f"10.213.{number}.1/24", "dev", outside)
        ip("link", "set", outside, "up")
        ip("-n", self.name, "addr", "add", f"{self.address}/24", "dev", self._inside)
        ip("-n", self.name, "link", "set", "lo", "up")
        self.set(is_up=True)

    def set(self, *, is_up: bool) -> None:
        """Take its one way out down, so that nothing arrives and nobody is told; or up again."""
        ip("-n", self.name, "link", "set", self._inside, "up" if is_up else "down")

    def remove(self) -> None:
        """Take it away, with its interfaces."""
        ip("netns", "del", self.name)


class Fleet:
    """Neurons on islands, and a gateway on the mainland."""

    def __init__(self, islands: list[Island], neurons: list[Neuron], gateway: Gateway) -> None:
        self.islands = islands
        self.neurons = neurons
        self.gateway = gateway
        self.url = f"{gateway.url}/v1/chat/completions"

    def begin(self, prompt: str) -> tuple[Stream, Island]:
        """Begin a stream; return it with the island where it runs."""
        stream = Stream(self.url, chat("m", prompt, max_tokens=TOKENS))
        assert stream.started.wait(20)
        [island] = [i for i, n in zip(self.islands, self.neurons, strict=True) if n.status()["jobs"]]
        return stream, island

    def close(self) -> None:
        """Have every network up again, and assert that nothing is held for anybody."""
        for island in self.islands:
            island.set(is_up=True)
        deadline = time.monotonic() + 30
        while any(n["link"] != "up" for n in self._nodes()):
            assert time.monotonic() < deadline, self._nodes()
            time.sleep(0.1)
        for neuron in self.neurons:
            neuron.wait_for(lambda s: s["jobs"] == [])
        assert httpx.post(self.url, json=chat("m", "next", max_tokens=3), timeout=30).status_code == 200

    def _nodes(self) -> list[dict[str, Any]]:
        reply = httpx.get(f"{self.gateway.url}/fleet/status", headers={"Authorization": f"Bearer {ADMIN_KEY}"})
        nodes: list[dict[str, Any]] = reply.json()["nodes"]
        return nodes


@contextmanager
def fleet(folder: Path, loaded: list[bool], **gateway: Any) -> Iterator[Fleet]:
    """Run a neuron for each of `loaded`, which says whether it has the model."""
    source = f"file:{write_model(folder / 'm.json', token_s=0.01)}"
    models = [{"id": "m", "source": source, "vram_mb": 100}]
    with ExitStack() as stack:
        islands: list[Island] = []
        neurons: list[Neuron] = []
        for number, has_model in enumerate(loaded):
            island = Island(number)
            stack.callback(island.remove)
            islands.append(island)
            neurons.append(stack.enter_context(
                Neuron(folder / str(number), name=f"n{number}", host=island.address, security="plaintext",
                       prefix=["ip", "netns", "exec", island.name], devices=[CPU], models=models,
                       preload=["m"] if has_model else [], engine="tests.support.fake_engine")
            ))  # fmt: skip
        for neuron, has_model in zip(neurons, loaded, strict=True):
            if has_model:
                neuron.wait_for(lambda s: s["state"]["models"][0]["status"] == "loaded")
        gateway_running = stack.enter_context(Gateway(folder / "g", neurons=neurons, **gateway))
        running = Fleet(islands, neurons, gateway_running)
        yield running
        running.close()


def whole(reading: Reading, prompt: str) -> float:
    """Assert that a stream is what nobody disturbed would have got; return its longest gap."""
    assert (reading.done, reading.error) == (True, None)
    assert reading.text == text_of(answer(tokenise(f"user: {prompt}"), TOKENS))
    return max(reading.gaps())


@pytest.mark.parametrize("away_s", [2.0, 10.0])
def test_without_a_replica_a_stream_waits_for_its_host_and_nothing_is_loaded_elsewhere(
    tmp_path: Path, away_s: float
) -> None:
    with fleet(tmp_path, [True, False]) as running:
        stream, island = running.begin("a")
        island.set(is_up=False)
        time.sleep(away_s)
        island.set(is_up=True)
        reading = stream.finish(60)
        assert whole(reading, "a") >= away_s - 1.0
        assert reading.comments >= int(away_s / 4), "bytes at least every few seconds"
        assert all(not m["replicas"] for m in running.neurons[1].status()["state"]["models"])


@pytest.mark.parametrize("away_s", [2.0, 10.0, None])
def test_with_a_replica_elsewhere_a_stream_goes_on_there(tmp_path: Path, away_s: float | None) -> None:
    with fleet(tmp_path, [True, True]) as running:
        stream, island = running.begin("b")
        island.set(is_up=False)
        if away_s is not None:
            time.sleep(away_s)
            island.set(is_up=True)
        assert whole(stream.finish(60), "b") <= 4.0


def test_a_host_that_is_gone_for_good_is_replaced_after_its_grace(tmp_path: Path) -> None:
    with fleet(tmp_path, [True, False], node_grace_s=8.0) as running:
        stream, island = running.begin("c")
        island.set(is_up=False)
        assert whole(stream.finish(60), "c") >= 7.0


def test_without_anybody_left_a_stream_ends_with_its_reason_when_its_time_is_over(tmp_path: Path) -> None:
    with fleet(tmp_path, [True], recovery_s=8.0) as running:
        stream, island = running.begin("d")
        island.set(is_up=False)
        reading = stream.finish(60)
        assert (reading.done, reading.problem) == (False, None)
        assert reading.error is not None
        assert reading.error["code"] == "neuron_lost"
        assert text_of(answer(tokenise("user: d"), TOKENS)).startswith(reading.text)
        assert reading.comments >= 2
