"""The real `cortex serve` with its metrics on an address of their own, and a fake neuron behind it."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.fake_neuron import MODEL, FakeNeuron
from tests.support.harness import Gateway, free_port, wait_gone

CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
PATIENCE_S = 20.0
Samples = dict[str, float]


class Scraper:
    """Reads what is served, summed up over all labels but the given ones."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/metrics"

    def total(self, name: str, **labels: str) -> float:
        """Return the sum of a metric's samples that carry `labels`."""
        text = httpx.get(self.url, timeout=PATIENCE_S).raise_for_status().text
        return sum(
            s.value
            for family in text_string_to_metric_families(text)
            for s in family.samples
            if s.name == name and labels.items() <= s.labels.items()
        )

    def wait(self, name: str, wanted: float, **labels: str) -> None:
        """Wait until a sum is `wanted`; the reply is out a moment before the request has been counted."""
        until(lambda: self.total(name, **labels) == wanted, lambda: f"{name} is {self.total(name, **labels)}")


def until(is_true: Callable[[], bool], explain: Callable[[], str]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not is_true():
        assert time.monotonic() < deadline, explain()
        time.sleep(0.02)


@pytest.fixture(scope="module")
def neuron() -> Iterator[FakeNeuron]:
    with FakeNeuron() as fake:
        yield fake


@pytest.fixture(scope="module")
def running(neuron: FakeNeuron, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gateway, Scraper]]:
    port = free_port()
    endpoints = {"beast": neuron.endpoint}
    folder = tmp_path_factory.mktemp("gateway")
    with Gateway(folder, endpoints=endpoints, workers=2, metrics_listen=f"127.0.0.1:{port}") as gateway:
        neuron.wait_for_gateways(2)
        yield gateway, Scraper(port)


def chat(gateway: Gateway, **fields: Any) -> httpx.Response:
    return httpx.post(f"{gateway.url}/v1/chat/completions", json={**CHAT, **fields}, timeout=PATIENCE_S)


def test_the_sums_are_what_the_clients_counted_also_after_every_process_was_killed(tmp_path: Path) -> None:
    port = free_port()
    with (
        FakeNeuron() as neuron,
        Gateway(
            tmp_path, endpoints={"beast": neuron.endpoint}, workers=2, metrics_listen=f"127.0.0.1:{port}"
        ) as gateway,
        ThreadPoolExecutor(4) as clients,
    ):
        scraper = Scraper(port)
        usages = [r.raise_for_status().json()["usage"] for r in clients.map(lambda _: chat(gateway), range(24))]
        scraper.wait("helexa_requests_total", 24, outcome="ok")
        seen: list[float] = []
        is_over = threading.Event()

        def watch() -> None:
            while not is_over.is_set():
                with contextlib.suppress(httpx.TransportError):  # whom it asked was killed
                    seen.append(scraper.total("helexa_requests_total", outcome="ok"))

        watcher = clients.submit(watch)
        for process in psutil.Process(gateway.pid).children():
            process.kill()
            assert wait_gone([process], PATIENCE_S) == []
            count = len(seen)
            until(lambda count=count: len(seen) > count + 2, lambda: gateway.log)  # type: ignore[misc]
        is_over.set()
        watcher.result(PATIENCE_S)
        assert set(seen) == {24.0}
        usages.append(chat(gateway).raise_for_status().json()["usage"])
        scraper.wait("helexa_requests_total", 25, outcome="ok", model=MODEL, node="beast")
        for metric in ("prompt", "completion"):
            total = scraper.total(f"helexa_{metric}_tokens_total")
            assert total == sum(u[f"{metric}_tokens"] for u in usages) > 0
        assert scraper.total("helexa_request_duration_seconds_count") == 25


def test_the_dead_leave_one_archive_and_no_files_of_their_own(tmp_path: Path) -> None:
    port = free_port()
    with (
        FakeNeuron() as neuron,
        Gateway(tmp_path, endpoints={"beast": neuron.endpoint}, metrics_listen=f"127.0.0.1:{port}") as gateway,
    ):
        scraper = Scraper(port)
        chat(gateway).raise_for_status()
        scraper.wait("helexa_requests_total", 1, outcome="ok")
        first = psutil.Process(gateway.pid).children()[0]
        folder = Path(_folder(first))
        first.send_signal(signal.SIGKILL)
        until(lambda: (folder / "counter_archive.db").exists(), lambda: str(sorted(folder.iterdir())))
        until(lambda: not list(folder.glob(f"*_{first.pid}.db")), lambda: str(sorted(folder.iterdir())))
    assert not folder.exists()


def _folder(process: psutil.Process) -> str:
    return next(str(Path(m.path).parent) for m in process.memory_maps() if "cortex-metrics-" in m.path)


def test_names_that_nobody_knows_do_not_make_series(running: tuple[Gateway, Scraper]) -> None:
    gateway, scraper = running
    before = scraper.total("helexa_rejections_total", model="unknown", reason="model_not_found")
    for index in range(5):
        assert chat(gateway, model=f"made-up-{index}").status_code == 404
    scraper.wait("helexa_rejections_total", before + 5, model="unknown", reason="model_not_found")
    assert "made-up" not in httpx.get(scraper.url, timeout=PATIENCE_S).text


def test_the_whole_fleet_is_shown_and_each_address_knows_only_its_own_paths(running: tuple[Gateway, Scraper]) -> None:
    gateway, scraper = running
    scraper.wait("helexa_node_up", 1, node="beast")
    assert scraper.total("helexa_model_status", node="beast", model=MODEL) == 1
    assert httpx.get(f"{gateway.url}/metrics", timeout=PATIENCE_S).status_code == 404
    assert httpx.get(scraper.url.replace("/metrics", "/v1/models"), timeout=PATIENCE_S).status_code == 404


def test_a_metrics_address_in_use_is_named(tmp_path: Path, running: tuple[Gateway, Scraper]) -> None:
    taken = f"127.0.0.1:{running[0].port}"
    with pytest.raises(AssertionError, match=r"already in use.*gateway\.metrics_listen"):
        Gateway(tmp_path, metrics_listen=taken).__enter__()
