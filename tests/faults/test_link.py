"""The network between a gateway and its neurons fails, for a moment or one way; streams go on in the same response."""

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.fake_engine import answer, text_of, tokenise, write_model
from tests.support.harness import ADMIN_KEY, Gateway, Neuron
from tests.support.proxy import Proxy, Way
from tests.support.streams import Stream, chat

CPU = {"kind": "cpu", "memory_mb": 1024, "threads": 1}
ENGINE = "tests.support.fake_engine"
TOKENS = 400
"""Four seconds."""


class Wire:
    """A gateway, and a neuron behind a proxy; another neuron could load the model."""

    def __init__(self, near: Neuron, far: Neuron, proxy: Proxy, gateway: Gateway) -> None:
        self.near = near
        self.far = far
        self.proxy = proxy
        self.gateway = gateway

    def link(self) -> str:
        """Return how the gateway finds the far neuron."""
        reply = httpx.get(f"{self.gateway.url}/fleet/status", headers={"Authorization": f"Bearer {ADMIN_KEY}"})
        link: str = next(n["link"] for n in reply.json()["nodes"] if n["name"] == "far")
        return link

    def wait_up(self) -> None:
        """Wait until the gateway has the far neuron again."""
        deadline = time.monotonic() + 20
        while self.link() != "up":
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def begin(self, prompt: str) -> Stream:
        """Begin a stream at the far neuron."""
        stream = Stream(f"{self.gateway.url}/v1/chat/completions", chat("m", prompt, max_tokens=TOKENS))
        assert stream.started.wait(20)
        assert self.far.status()["jobs"]
        return stream


@pytest.fixture(scope="module")
def neurons(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Neuron, Neuron]]:
    folder = tmp_path_factory.mktemp("link")
    models = [{"id": "m", "source": f"file:{write_model(folder / 'm.json', token_s=0.01)}", "vram_mb": 100}]
    with (
        Neuron(folder / "near", name="near", devices=[CPU], models=models, engine=ENGINE) as near,
        Neuron(folder / "far", name="far", devices=[CPU], models=models, engine=ENGINE, preload=["m"]) as far,
    ):
        far.wait_for(lambda s: s["state"]["models"][0]["status"] == "loaded")
        yield near, far


@pytest.fixture
def wire(neurons: tuple[Neuron, Neuron], tmp_path: Path) -> Iterator[Wire]:
    """Two neurons, of which one has the model; afterwards nothing is held, and the other has still loaded nothing."""
    near, far = neurons
    proxy = Proxy(far.port)
    try:
        with Gateway(tmp_path, neurons=[near], endpoints={"far": f"127.0.0.1:{proxy.port}"}) as gateway:
            wire = Wire(near, far, proxy, gateway)
            wire.wait_up()
            yield wire
            wire.wait_up()
            far.wait_for(lambda s: s["jobs"] == [])
            status = near.status()
            assert (status["jobs"], [m["replicas"] for m in status["state"]["models"]]) == ([], [[]])
    finally:
        proxy.close()


def whole(stream: Stream, prompt: str) -> list[float]:
    """Assert that a stream is what nobody disturbed would have got; return its gaps."""
    reading = stream.finish(60)
    assert (reading.done, reading.error) == (True, None)
    assert reading.text == text_of(answer(tokenise(f"user: {prompt}"), TOKENS))
    return reading.gaps()


@pytest.mark.parametrize("away_s", [0.0, 2.0])
def test_a_connection_that_is_cut_and_healed_costs_a_pause(wire: Wire, away_s: float) -> None:
    stream = wire.begin(f"cut for {away_s}")
    wire.proxy.cut()
    time.sleep(away_s)
    wire.proxy.heal()
    whole(stream, f"cut for {away_s}")


@pytest.mark.parametrize("way", ["to-gateway", "to-neuron"])
def test_what_is_lost_one_way_is_missed_and_computed_again(wire: Wire, way: Way) -> None:
    stream = wire.begin(f"lost {way}")
    wire.proxy.swallow(way)
    time.sleep(2.0)
    wire.proxy.heal()
    whole(stream, f"lost {way}")


def test_a_network_that_is_away_for_two_seconds_raises_no_alarm(wire: Wire) -> None:
    before = wire.gateway.log.count("is suspect")
    stream = wire.begin("away")
    wire.proxy.freeze()
    time.sleep(2.0)
    wire.proxy.heal()
    assert max(whole(stream, "away")) >= 1.5, "it was away"
    assert wire.gateway.log.count("is suspect") == before
