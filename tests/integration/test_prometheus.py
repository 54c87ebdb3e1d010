"""A real Prometheus scrapes gateways and neurons under load, and is asked every query of the dashboard and alerts."""

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.support.fake_engine import write_model
from tests.support.harness import ROOT, Gateway, Neuron, free_port

ALERTS = ROOT / "deploy" / "prometheus" / "alerts.yaml"
DASHBOARD = ROOT / "deploy" / "grafana" / "helexa.json"
NAMES = ("beast", "benjy", "quadbrat")
PATIENCE_S = 30.0
LOAD_S = 60.0 if os.environ.get("HELEXA_REQUIRE_TOOLS") else 10.0
"""A minute in `make test-all`."""
AFTER_S = 3.0
"""Of load after a process has died."""
CLIENTS = 6


@dataclass
class Stack:
    """What is scraped, and who scrapes."""

    gateway: Gateway
    url: str
    """Of Prometheus."""
    scraped: str
    """Where the gateway serves its metrics."""

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the instant vector of an expression; Prometheus refuses one that it cannot evaluate."""
        reply = httpx.get(f"{self.url}/api/v1/query", params={"query": expression}, timeout=PATIENCE_S)
        assert reply.status_code == 200, f"{expression}: {reply.text}"
        result: list[dict[str, Any]] = reply.json()["data"]["result"]
        return result

    def value(self, expression: str) -> float:
        """Return the one value of an expression, 0 where there is none."""
        result = self.query(expression)
        return float(result[0]["value"][1]) if result else 0.0

    def wait(self, expression: str, wanted: float) -> None:
        """Wait until an expression has a value."""
        deadline = time.monotonic() + PATIENCE_S
        while self.value(expression) != wanted:
            assert time.monotonic() < deadline, f"{expression} is {self.value(expression)}, not {wanted}"
            time.sleep(0.1)


@contextlib.contextmanager
def prometheus(folder: Path, targets: dict[str, int]) -> Iterator[str]:
    """Run a Prometheus that scrapes the targets twice a second; hand out its address."""
    port = free_port()
    jobs = [{"job_name": job, "static_configs": [{"targets": [f"127.0.0.1:{p}"]}]} for job, p in targets.items()]
    config = {
        "global": {"scrape_interval": "500ms", "scrape_timeout": "500ms"},
        "rule_files": [str(ALERTS)],
        "scrape_configs": jobs,
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    command = [
        "prometheus",
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not _is_ready(port):
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def _is_ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/-/ready", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Three neurons with a model each, two gateway processes, a Prometheus."""
    base = tmp_path_factory.mktemp("stack")
    ports = {name: free_port() for name in ("gateway", *NAMES)}
    with contextlib.ExitStack() as running:
        neurons = []
        for name in NAMES:
            (base / name).mkdir()
            source = f"file:{write_model(base / name / 'm.json', length=20, token_s=0.002)}"
            neuron = Neuron(
                base / name,
                name=name,
                engine="tests.support.fake_engine",
                models=[{"id": f"tiny/{name}", "source": source, "vram_mb": 100}],
                metrics_listen=f"127.0.0.1:{ports[name]}",
            )
            neurons.append(running.enter_context(neuron))
        listen = f"127.0.0.1:{ports['gateway']}"
        gateway = running.enter_context(Gateway(base / "cortex", neurons=neurons, workers=2, metrics_listen=listen))
        (base / "prometheus").mkdir()
        url = running.enter_context(prometheus(base / "prometheus", ports))
        yield Stack(gateway, url, f"http://{listen}/metrics")


def expressions() -> list[str]:
    """Return every query of the dashboard and the alerts, with Grafana's variables filled in."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    found = [t["expr"] for p in panels for t in p.get("targets", ())]
    found += [r["expr"] for g in yaml.safe_load(ALERTS.read_text())["groups"] for r in g["rules"]]
    return [e.replace("$__rate_interval", "5m").replace("$model", ".*") for e in found]


@pytest.mark.needs_prometheus
def test_the_alert_rules_pass_promtool() -> None:
    result = subprocess.run(["promtool", "check", "rules", str(ALERTS)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@dataclass
class Counted:
    """What clients have had of the gateway."""

    usages: list[dict[str, int]] = field(default_factory=list)

    def drive(self, url: str, seconds: float) -> None:
        """Have six clients chat with all models, every second answer streamed."""
        ends_at = time.monotonic() + seconds
        with ThreadPoolExecutor(CLIENTS) as clients:
            for part in clients.map(lambda i: _chat(url, i, ends_at), range(CLIENTS)):
                self.usages += part

    def check(self, stack: Stack) -> None:
        """Wait until Prometheus has the same sums."""
        stack.wait('sum(helexa_requests_total{job="gateway",outcome="ok"})', len(self.usages))
        assert stack.value('sum(helexa_requests_total{job="gateway"})') == len(self.usages)
        for metric, key in (("prompt", "prompt_tokens"), ("completion", "completion_tokens")):
            total = sum(u[key] for u in self.usages)
            stack.wait(f'sum(helexa_{metric}_tokens_total{{job="gateway"}})', total)
        stack.wait('sum(helexa_request_duration_seconds_count{job="gateway"})', len(self.usages))


def _chat(url: str, client: int, ends_at: float) -> list[dict[str, int]]:
    found: list[dict[str, int]] = []
    with httpx.Client(base_url=url, timeout=PATIENCE_S) as session:
        while time.monotonic() < ends_at:
            is_stream = len(found) % 2 == 1
            body: dict[str, Any] = {
                "model": f"tiny/{NAMES[client % 3]}",
                "messages": [{"role": "user", "content": f"count {client}, {len(found)}"}],
                "stream": is_stream,
                **({"stream_options": {"include_usage": True}} if is_stream else {}),
            }
            text = session.post("/v1/chat/completions", json=body).raise_for_status().text
            if is_stream:
                text = next(e for e in reversed(text.split("\n\n")) if '"usage"' in e).removeprefix("data: ")
            found.append(json.loads(text)["usage"])
    return found


def _kill_one(stack: Stack) -> None:
    """Kill a gateway process, and wait until another has taken its place."""
    before = psutil.Process(stack.gateway.pid).children()
    before[0].kill()
    deadline = time.monotonic() + PATIENCE_S
    while before[0] in (now := psutil.Process(stack.gateway.pid).children()) or len(now) < len(before):
        assert time.monotonic() < deadline, stack.gateway.log
        time.sleep(0.05)


@pytest.mark.needs_prometheus
@pytest.mark.timeout(LOAD_S + 120)
def test_prometheus_counts_what_the_clients_counted_and_no_sum_falls_when_a_process_dies(stack: Stack) -> None:
    counted = Counted()
    counted.drive(stack.gateway.url, LOAD_S)
    assert len(counted.usages) > 10 * CLIENTS
    counted.check(stack)
    for _ in range(2):  # each of the processes that counted all this
        _kill_one(stack)
        counted.drive(stack.gateway.url, AFTER_S)
        counted.check(stack)
    for metric in ("requests", "prompt_tokens", "completion_tokens"):
        assert stack.value(f"sum(resets(helexa_{metric}_total[{LOAD_S + 120:.0f}s]))") == 0
    stack.wait('count(count by (model) (helexa_requests_total{outcome="ok"}))', len(NAMES))
    stack.wait('sum(helexa_node_up{job="gateway"})', 3)
    for name in NAMES:
        stack.wait(f'sum(helexa_node_up{{job="{name}"}})', 1)
        stack.wait(f'sum(helexa_model_status{{job="{name}",status="loaded"}})', 1)
        stack.wait(f'min(helexa_disk_free_bytes{{job="{name}"}}) > bool 0', 1)
    begun = stack.value('sum(helexa_prompt_tokens_total{job="gateway"})')
    stack.wait('sum(helexa_engine_prompt_tokens_total{job="gateway"})', begun)


@pytest.mark.needs_prometheus
def test_every_query_of_the_dashboard_and_the_alerts_can_be_answered(stack: Stack) -> None:
    asked = expressions()
    assert len(asked) > 30
    for expression in asked:
        stack.query(expression)


@pytest.mark.needs_prometheus
def test_every_metric_that_a_query_names_is_served(stack: Stack) -> None:
    known = {m.removeprefix("helexa_") for m in _described()}
    for expression in expressions():
        words = {w for w in _words(expression) if w.startswith("helexa_")}
        assert words
        for word in words:
            base = word.removeprefix("helexa_")
            base = next((base.removesuffix(s) for s in ("_bucket", "_sum", "_count") if base.endswith(s)), base)
            assert base in known, expression


def _described() -> set[str]:
    page = (ROOT / "docs" / "metrics.md").read_text()
    return {line.split("`")[1] for line in page.splitlines() if line.startswith("| `")}


def _words(expression: str) -> list[str]:
    return "".join(c if c.isalnum() or c == "_" else " " for c in expression).split()


@pytest.mark.needs_prometheus
def test_promtool_finds_nothing_wrong_with_what_is_served(stack: Stack) -> None:
    text = httpx.get(stack.scraped, timeout=PATIENCE_S).text
    assert list(text_string_to_metric_families(text))
    result = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
