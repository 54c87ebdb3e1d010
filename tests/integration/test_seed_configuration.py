"""The configuration that every document starts from, live, and the same one in YAML: one fleet, whoever reads it."""

from pathlib import Path
from typing import Any

import httpx

from tests.integration.test_fleet import wait_until
from tests.support.fake_engine import write_model
from tests.support.harness import Daemon, Neuron, free_port
from tests.unit.test_config import SEED_TOML, SEED_YAML

FAKE = "tests.support.fake_engine"
NAMES = ("beast", "benjy")


class Seed(Daemon):
    """A gateway with one of the two files, in which only hosts and ports are others."""

    def __init__(self, folder: Path, file: str, text: str, neurons: list[Neuron]) -> None:
        folder.mkdir()
        self.port, self.metrics_port = free_port(), free_port()
        for neuron in neurons:
            text = text.replace(f"{neuron.name}.internal:13131", f"127.0.0.1:{neuron.port}")
        text = text.replace("0.0.0.0:31313", f"0.0.0.0:{self.port}").replace(":31314", f":{self.metrics_port}")
        assert "internal" not in text
        (folder / file).write_text(text)
        super().__init__(folder, ["cortex", "serve", "--config", str(folder / file)])

    def get(self, path: str, port: int | None = None) -> httpx.Response:
        return httpx.get(f"http://127.0.0.1:{port or self.port}{path}", timeout=10)

    def serves_all(self) -> bool:
        try:
            return bool(self.get("/health").json()["status"] == "ok")
        except httpx.TransportError:
            return False

    def models(self) -> dict[str, Any]:
        rows = {m["id"]: m for m in self.get("/v1/models").json()["data"]}
        return {name: (m["status"], m.get("locations"), sorted(m["feasible_on"])) for name, m in rows.items()}


def test_the_seed_configuration_and_its_yaml_twin_serve_the_same_fleet(tmp_path: Path) -> None:
    neurons: list[Neuron] = []
    gateways: list[Seed] = []
    try:
        for name in NAMES:
            path = write_model(tmp_path / f"{name}.gguf")
            models = [{"id": f"on-{name}", "source": f"file:{path}", "context": 1024, "parallel": 2}]
            devices = [{"kind": "cpu", "memory_mb": 500, "threads": 1}]
            neurons.append(Neuron(tmp_path / name, name=name, models=models, devices=devices, engine=FAKE))
        for file, text in (("cortex.toml", SEED_TOML), ("cortex.yaml", SEED_YAML)):
            gateways.append(Seed(tmp_path / file.replace(".", "-"), file, text, neurons))
        for gateway in gateways:
            wait_until(gateway.serves_all, 30, f"it does not serve:\n{gateway.log}")
        for gateway, model in zip(gateways, ("on-beast", "on-benjy"), strict=True):
            body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
            answer = httpx.post(f"http://127.0.0.1:{gateway.port}/v1/chat/completions", json=body, timeout=30)
            assert answer.status_code == 200, answer.text
        wait_until(lambda: all(m[0] == {"value": "loaded"} for g in gateways for m in g.models().values()), 5, "unlike")
        toml, yaml = (g.models() for g in gateways)
        assert toml == yaml
        assert {name: [at["node"] for at in m[1]] for name, m in toml.items()} == {
            "on-beast": ["beast"], "on-benjy": ["benjy"],
        }  # fmt: skip
        assert all("helexa" in g.get("/metrics", g.metrics_port).text for g in gateways)
    finally:
        for daemon in (*gateways, *neurons):
            daemon.stop()
