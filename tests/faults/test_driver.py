"""What NVIDIA's driver may do to a host, to real processes: streams go on in the same response, and the reason is told.

The driver is tests/support/driver.py; the workers run the fake engine.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from common.endpoint import Endpoint
from common.messages import Health, HealthReply
from neuron.ctl.client import NeuronClient
from tests.support.driver import FakeDriver
from tests.support.fake_engine import answer, text_of, tokenise, write_model
from tests.support.harness import Gateway, Neuron
from tests.support.streams import Stream, chat
from tests.support.worker_process import WorkerProcess

GPUS = ["GPU-a", "GPU-b"]
ENGINE = "tests.support.fake_engine"
TOKENS = 300
"""A stream of three seconds: the probe looks once a second."""


class Host:
    """A neuron with two GPUs, one of which holds the model, and the driver."""

    def __init__(self, neuron: Neuron, gateway: Gateway, driver: FakeDriver, source: str) -> None:
        self.neuron = neuron
        self.gateway = gateway
        self.driver = driver
        self.source = source

    def device(self, uuid: str) -> dict[str, Any]:
        """Return the state of a GPU."""
        return next(d for d in self.neuron.status()["state"]["devices"] if d["uuid"] == uuid)

    def holder(self) -> str:
        """Return the GPU that holds the model."""
        [model] = self.neuron.wait_for(lambda s: s["state"]["models"][0]["status"] == "loaded")["state"]["models"]
        device: str = model["replicas"][0]["device"]
        return device

    def wait_for(self, uuid: str, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Return the first state of a GPU that is as wanted."""
        self.neuron.wait_for(lambda s: any(d["uuid"] == uuid and wanted(d) for d in s["state"]["devices"]))
        return self.device(uuid)

    def stream(self, prompt: str, tokens: int = TOKENS) -> Stream:
        """Begin a stream; it has said something."""
        stream = Stream(f"{self.gateway.url}/v1/chat/completions", chat("m", prompt, max_tokens=tokens))
        assert stream.started.wait(20)
        return stream

    def reasons(self) -> list[str]:
        """Return why the neuron says that it is not well."""
        with NeuronClient(Endpoint("127.0.0.1", self.neuron.port), 5.0, None) as client:
            return client.ask(lambda r: Health(request=r), HealthReply).reasons

    def wait_for_reason(self, text: str) -> None:
        """Wait until the neuron gives this reason."""
        deadline = time.monotonic() + 20
        while not any(text in reason for reason in self.reasons()):
            assert time.monotonic() < deadline, self.reasons()
            time.sleep(0.05)


def whole(stream: Stream, prompt: str, tokens: int = TOKENS) -> list[float]:
    """Assert that a stream has ended as if nothing had been, and return its gaps."""
    reading = stream.finish(60)
    assert (reading.done, reading.error) == (True, None)
    assert reading.text == text_of(answer(tokenise(f"user: {prompt}"), tokens))
    return reading.gaps()


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    folder = tmp_path_factory.mktemp("driver")
    driver = FakeDriver(folder, GPUS)
    source = write_model(folder / "m.json", token_s=0.01, load_s=0.2)
    models = [{"id": "m", "source": f"file:{source}", "vram_mb": 1500}]
    with (
        Neuron(folder / "n", driver=driver, devices=[{"uuid": g} for g in GPUS], models=models, preload=["m"],
               engine=ENGINE, idle_exit_s=600, restart={"backoff_s": 0.05, "cool_down_s": 1.5},
               watchdog={"release_s": 1.0, "term_s": 0.3}) as neuron,
        Gateway(folder / "g", neurons=[neuron]) as gateway,
    ):  # fmt: skip
        yield Host(neuron, gateway, driver, source)


@pytest.fixture
def host(machine: Host) -> Iterator[Host]:
    """The host; afterwards its driver is well, both GPUs serve again, and nothing is held."""
    yield machine
    machine.driver.change(lost=[], held={}, fails=None, hangs=False)
    status = machine.neuron.wait_for(
        lambda s: [d["state"] for d in s["state"]["devices"]] == ["ready"] * 2 and s["jobs"] == []
    )
    assert all(not r["running"] for m in status["state"]["models"] for r in m["replicas"])
    reply = httpx.post(f"{machine.gateway.url}/v1/chat/completions", json=chat("m", "next", max_tokens=3), timeout=30)
    assert reply.status_code == 200
    assert len(psutil.Process(machine.neuron.pid).children()) == 4, "two workers, prep, and the probe"


@pytest.mark.parametrize("xid", [79, None])
def test_an_event_of_the_device_takes_it_out_of_service_and_its_stream_goes_on_elsewhere(
    host: Host, xid: int | None
) -> None:
    stream, sick = host.stream("a"), host.holder()
    host.driver.happen(sick, xid)
    state = host.wait_for(sick, lambda d: d["state"] == "quarantined")
    assert f"Xid {xid or 48}: " in state["reason"]
    whole(stream, "a")
    assert host.holder() != sick


def test_an_event_of_a_request_leaves_the_device_and_its_worker_alone(host: Host) -> None:
    stream, device = host.stream("b"), host.holder()
    before = host.device(device)
    host.driver.happen(device, 31)
    after = host.wait_for(device, lambda d: d["xids"] > before["xids"])
    assert (after["state"], after["worker_pid"]) == ("ready", before["worker_pid"])
    whole(stream, "b")


def test_an_event_of_the_process_replaces_the_worker_alone(host: Host) -> None:
    stream, device = host.stream("c"), host.holder()
    before = host.device(device)["worker_pid"]
    host.driver.happen(device, 94)
    host.wait_for(device, lambda d: d["state"] == "ready" and d["worker_pid"] not in (None, before))
    whole(stream, "c")
    assert host.holder() == device


def test_a_gpu_that_is_lost_from_the_bus_is_left_alone_and_its_stream_goes_on_at_the_other(host: Host) -> None:
    stream, lost = host.stream("d"), host.holder()
    host.driver.change(lost=[lost])
    state = host.wait_for(lost, lambda d: d["state"] == "quarantined")
    assert "fallen off the bus" in state["reason"]
    whole(stream, "d")
    assert host.holder() != lost


def test_a_driver_that_fails_is_said_and_costs_nothing(host: Host) -> None:
    stream, device = host.stream("e"), host.holder()
    before = host.device(device)["worker_pid"]
    host.driver.change(fails="NVMLError_Unknown")
    host.wait_for_reason("NVML")
    assert host.device(device)["worker_pid"] == before
    whole(stream, "e")
    host.driver.change(fails=None)
    host.neuron.wait_for(lambda _: "the driver answers again" in host.neuron.log)
    assert host.reasons() == []


def test_a_driver_that_hangs_is_said_and_costs_nothing(host: Host) -> None:
    stream, device = host.stream("f", 600), host.holder()
    before = host.device(device)
    assert before["used_mb"] == 100
    host.driver.change(hangs=True)
    host.wait_for_reason("silent")
    after = host.device(device)
    assert (after["worker_pid"], after["state"]) == (before["worker_pid"], "ready")
    assert after.get("used_mb") is None, "what it said before is not known any more"
    whole(stream, "f", 600)
    host.driver.change(hangs=False)
    host.wait_for(device, lambda d: d.get("used_mb") == 100)


def test_memory_that_a_dead_worker_keeps_takes_its_gpu_out_of_service_with_the_reason(host: Host) -> None:
    stream, device = host.stream("g"), host.holder()
    pid = host.device(device)["worker_pid"]
    host.driver.change(held={device: [pid]})
    os.kill(pid, signal.SIGKILL)
    assert host.wait_for(device, lambda d: d["state"] != "ready")["state"] == "releasing"
    state = host.wait_for(device, lambda d: d["state"] == "quarantined")
    assert "memory was not released" in state["reason"]
    whole(stream, "g")
    assert host.holder() != device


@pytest.mark.alone
def test_a_gpus_worker_that_is_killed_pauses_its_stream_for_its_load_and_half_a_second(
    host: Host, tmp_path: Path
) -> None:
    began = time.monotonic()
    undisturbed = WorkerProcess(tmp_path / "w", engine=ENGINE, threads=1)
    try:
        undisturbed.load(host.source)
        load_s = time.monotonic() - began
    finally:
        undisturbed.close()
    for number in range(5):
        stream = host.stream(f"h{number}")
        pid = host.device(host.holder())["worker_pid"]
        host.driver.change(held={host.holder(): [pid]})
        os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)  # the driver takes a moment to give the memory back
        host.driver.change(held={})
        assert max(whole(stream, f"h{number}")) <= load_s + 0.5


def test_after_a_sleep_of_the_host_nothing_serves_that_has_slept_on_a_gpu(host: Host) -> None:
    stream = host.stream("i")
    before = {c.pid for c in psutil.Process(host.neuron.pid).children()}
    prep = next(c.pid for c in psutil.Process(host.neuron.pid).children() if "neuron.prep" in c.cmdline())
    host.driver.change(slept_s=3600.0)
    host.neuron.wait_for(lambda _: "the host has slept for 3600 s" in host.neuron.log)
    whole(stream, "i")
    host.neuron.wait_for(lambda s: [d["state"] for d in s["state"]["devices"]] == ["ready"] * 2)
    left = before & {c.pid for c in psutil.Process(host.neuron.pid).children()}
    assert left == {prep}, "both workers and the probe are new ones"
