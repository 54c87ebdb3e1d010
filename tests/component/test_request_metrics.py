"""What the HTTP side counts of the thoughts in an answer, in every dialect: as many as the reply itself says."""

import asyncio
from typing import Any

import falcon.testing
import orjson
import pytest
from msgspec import structs
from prometheus_client import CollectorRegistry

from common.errors import Code, RequestError
from common.messages import Job
from cortex.access.access import Access
from cortex.api.status import Lifecycle
from cortex.app import create_app
from cortex.metrics.requests import RequestMetrics
from cortex.settings import CortexSettings
from tests.support.fake_fleet import MODEL, FakeFleet, Scripted, begun, done

QUESTION = [{"role": "user", "content": "why?"}]
THOUGHTS = 3
"""Of the pieces below: the one that ends them counts with them."""
PIECES = ("so", " it", " is</think>\n\n", "4", "2")
DIALECTS: dict[str, tuple[str, dict[str, Any]]] = {
    "openai_chat": ("/v1/chat/completions", {"messages": QUESTION}),
    "openai_responses": ("/v1/responses", {"input": "why?"}),
    "anthropic_messages": ("/v1/messages", {"messages": QUESTION, "max_tokens": 50}),
    "openai_completions": ("/v1/completions", {"prompt": "why?"}),
}


class Side:
    """An application that counts into a registry of its own."""

    def __init__(self) -> None:
        self.fleet, self.registry = FakeFleet(), CollectorRegistry()
        self.metrics = RequestMetrics(self.registry)
        app = create_app(CortexSettings(), self.fleet, Access(), Lifecycle(),
                         observe=lambda e: self.metrics.observe(e, e.began_at + 1.0))  # fmt: skip
        self.client = falcon.testing.TestClient(app)

    def ask(self, dialect: str, *, stream: bool) -> falcon.testing.Result:
        """Ask with one of DIALECTS."""
        path, body = DIALECTS[dialect]
        return self.client.simulate_post(path, json={"model": MODEL, "stream": stream, **body})

    def thoughts(self) -> dict[str, float]:
        """Return what has been counted, by dialect."""
        (family,) = (m for m in self.registry.collect() if m.name == "helexa_reasoning_tokens")
        return {s.labels["dialect"]: s.value for s in family.samples if s.name.endswith("_total")}


@pytest.fixture(scope="module", autouse=True)
def falcons_own_loop() -> None:
    """Falcon's test client keeps one event loop for the whole process."""
    falcon.async_to_sync(asyncio.sleep, 0)


def thinking(*ends: Any) -> Any:
    start = structs.replace(begun(), format="think+hermes", thinking_open=True)

    def script(job: Job) -> list[Scripted]:
        return [start, *PIECES, *ends]

    return script


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("dialect", ["openai_chat", "openai_responses", "anthropic_messages"])
def test_thoughts_are_counted_in_every_dialect_that_knows_them(dialect: str, stream: bool) -> None:
    side = Side()
    side.fleet.script = thinking(done(len(PIECES)))
    assert side.ask(dialect, stream=stream).status_code == 200
    assert list(side.thoughts().values()) == [THOUGHTS]
    side.fleet.script = lambda job: [begun(), "no", "thoughts", done(2)]
    assert side.ask(dialect, stream=stream).status_code == 200
    assert list(side.thoughts().values()) == [THOUGHTS]


def test_the_count_is_what_the_reply_says() -> None:
    side = Side()
    side.fleet.script = thinking(done(len(PIECES)))
    usage = orjson.loads(side.ask("openai_chat", stream=False).content)["usage"]
    assert usage["completion_tokens_details"]["reasoning_tokens"] == THOUGHTS


def test_thoughts_of_an_answer_that_failed_are_counted_too() -> None:
    side = Side()
    side.fleet.script = thinking(RequestError(Code.WORKER_DIED, "gone"))
    assert b"worker_died" in side.ask("openai_chat", stream=True).content
    assert list(side.thoughts().values()) == [THOUGHTS]


def test_text_that_nobody_reads_has_no_thoughts() -> None:
    side = Side()
    side.fleet.script = thinking(done(len(PIECES)))
    assert side.ask("openai_completions", stream=False).status_code == 200
    assert side.thoughts() == {}
