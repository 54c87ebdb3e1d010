"""A small fleet with life in it, for the page's tests and pictures: three neurons, five devices, six models."""

import contextlib
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx

from tests.support.fake_engine import write_model
from tests.support.harness import Gateway, Neuron

ANSWER = (
    "A supervisor that never touches the device starts one worker process for each of them, so a driver fault costs "
    "one worker and no other. Its models are loaded again at once, and the streams that ran there go on. "
)
FLEET: dict[str, list[str]] = {
    "beast": ["qwen3-32b", "gpt-oss-20b", "embed-large"],
    "benjy": ["llama-3.1-8b", "qwen3-4b"],
    "quadbrat": ["smollm2-135m"],
}


@dataclass
class Showcase:
    """The running fleet."""

    gateway: Gateway
    neurons: dict[str, Neuron]

    @contextlib.contextmanager
    def load(self, clients: int = 4) -> Iterator[None]:
        """Have clients chat meanwhile, each with a model of its own choice."""
        models = ["qwen3-32b", "llama-3.1-8b", "smollm2-135m", "gpt-oss-20b"]
        stop = threading.Event()
        threads = [threading.Thread(target=self._chat, args=(models[i % len(models)], stop)) for i in range(clients)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join()

    def _chat(self, model: str, stop: threading.Event) -> None:
        body: dict[str, Any] = {"model": model, "max_tokens": 60, "stream": True}
        turn = 0
        with httpx.Client(timeout=30) as client:
            while not stop.is_set():
                turn += 1
                messages = [{"role": "user", "content": f"{'Why is it isolated? ' * (turn % 7 + 1)}{turn}"}]
                with client.stream(
                    "POST", f"{self.gateway.url}/v1/chat/completions", json={**body, "messages": messages}
                ) as answer:
                    for _ in answer.iter_bytes():
                        if stop.is_set():
                            break


@contextlib.contextmanager
def showcase(
    folder: Path, *, workers: int = 2, extra: Mapping[str, dict[str, str]] = MappingProxyType({}), **gateway: Any
) -> Iterator[Showcase]:
    """Run it; `folder` is for its files. `extra`: by neuron, the answers of further models."""
    memory = {"beast": [24000, 24000], "benjy": [12000, 12000], "quadbrat": [8000]}
    sizes = {"qwen3-32b": 19500, "gpt-oss-20b": 13200, "embed-large": 1400, "llama-3.1-8b": 6100, "qwen3-4b": 3400,
             "smollm2-135m": 240}  # fmt: skip
    with contextlib.ExitStack() as running:
        neurons = {}
        for name, models in FLEET.items():
            (folder / name).mkdir(parents=True)
            profiles = []
            for model in models:
                knobs = {"length": 90, "token_s": 0.012, "load_s": 0.4, "memory_mb": sizes[model], "text": ANSWER,
                         "bytes_per_token": 4}  # fmt: skip
                source = f"file:{write_model(folder / name / f'{model}.json', **knobs)}"
                profiles.append({"id": model, "source": source, "vram_mb": sizes[model], "parallel": 4})
            for number, (model, text) in enumerate(extra.get(name, {}).items()):
                path = write_model(folder / name / f"extra{number}.json", text=text, memory_mb=100)
                profiles.append({"id": model, "source": f"file:{path}", "vram_mb": 100})
            devices = [{"kind": "cpu", "memory_mb": mb, "threads": 1} for mb in memory[name]]
            neurons[name] = running.enter_context(
                Neuron(
                    folder / name,
                    name=name,
                    devices=devices,
                    engine="tests.support.fake_engine",
                    models=profiles,
                    preload=models[:2],
                )
            )
        front = running.enter_context(
            Gateway(folder / "cortex", neurons=list(neurons.values()), workers=workers, **gateway)
        )
        yield Showcase(front, neurons)
