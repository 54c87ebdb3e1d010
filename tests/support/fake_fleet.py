"""A fleet without a bus, for the HTTP side alone: tests script what each call gives."""

import asyncio
from collections.abc import Callable
from typing import Any

from common.catalogue import Alias
from common.errors import Code, RequestError
from common.messages import EndedItem, Job, StartedItem, Timings
from cortex.fleet.contract import Event, Events, Health, Order, Step, Verb
from cortex.fleet.history import Happened
from cortex.fleet.record import Record

MODEL = "tiny/model"
Scripted = Event | RequestError | float
"""An event; an error; or seconds of silence."""


def begun(prompt_tokens: int = 5, cached_tokens: int = 0) -> StartedItem:
    """Return the beginning of a job."""
    return StartedItem(job="j", attempt=0, prompt_tokens=prompt_tokens, cached_tokens=cached_tokens, max_tokens=100)


def done(total: int, reason: Any = "stop") -> EndedItem:
    """Return the good end of a job."""
    timings = Timings(prompt_n=5, prompt_ms=10.0, predicted_n=total, predicted_ms=20.0)
    return EndedItem(job="j", attempt=0, total=total, reason=reason, prompt_tokens=5, timings=timings)


def answer(*pieces: str, reason: Any = "stop") -> list[Scripted]:
    """Return the script of a job that ends well."""
    return [begun(), *pieces, done(len(pieces), reason)]


class FakeCall:
    """Plays a script for each job, one step of every job at a time."""

    def __init__(self, scripts: list[list[Scripted]]) -> None:
        self._scripts = [list(s) for s in scripts]
        self.record = Record()
        self.tokens = 0
        self.first_text_at: float | None = None
        self.is_closed = False
        self.reason: str | None = None

    async def next(self, timeout_s: float | None) -> Events:
        """Return the next step of every job."""
        events: Events = []
        for index, script in enumerate(self._scripts):
            if not script:
                continue
            step = script[0]
            if isinstance(step, float):
                wait_s = step if timeout_s is None else min(step, timeout_s)
                await asyncio.sleep(wait_s)
                script[:1] = [] if step <= wait_s else [step - wait_s]
                return events
            script.pop(0)
            if isinstance(step, RequestError):
                raise step
            if isinstance(step, str):
                self.tokens += 1
            events.append((index, step))
        if not events:
            await asyncio.sleep(3600 if timeout_s is None else timeout_s)
        return events

    def take(self) -> Events:
        """Have nothing ready: a test's client has no connection that could take it directly."""
        return []

    def listen(self, on_ready: Callable[[], None] | None) -> None:
        """Never call."""

    def waits_for(self) -> str | None:
        """Return what the test set."""
        return self.reason

    def fail(self, error: RequestError) -> None:
        """Raise an error next."""
        self._scripts = [[error]]

    def close(self) -> None:
        """Remember that nobody listens any more."""
        self.is_closed = True


class FakeErrand:
    """Says what a test scripted."""

    def __init__(self, steps: list[Step]) -> None:
        self._steps = list(steps)
        self.is_closed = False

    @property
    def is_over(self) -> bool:
        """Whether all has been said."""
        return not self._steps

    async def next(self, timeout_s: float) -> Step | None:
        """Return the next step."""
        return self._steps.pop(0)

    def close(self) -> None:
        """Remember that nobody listens any more."""
        self.is_closed = True


class FakeFleet:
    """Implements contract.Fleet."""

    def __init__(self) -> None:
        self.script: Callable[[Job], list[Scripted]] = lambda job: answer("Hello", " world")
        self.jobs: list[Job] = []
        self.calls: list[FakeCall] = []
        self.entries: list[dict[str, Any]] = [{"id": MODEL, "object": "model", "created": 1, "owned_by": "helexa"}]
        self.state = Health("ok", [])
        self.orders: list[tuple[Verb, Order]] = []
        self.events: list[Happened] = []
        self.steps: list[Step] = []
        self.aliases: dict[str, Alias] = {}

    def resolve(self, model: str) -> tuple[str, Alias | None]:
        """Know one model and its alias, and those that a test has given it."""
        if model in (MODEL, "default") or model in self.aliases:
            return MODEL, self.aliases.get(model)
        raise RequestError(Code.MODEL_NOT_FOUND, f"the model '{model}' does not exist", param="model")

    def submit(self, jobs: list[Job]) -> FakeCall:
        """Play the script of each job."""
        self.jobs += jobs
        call = FakeCall([self.script(job) for job in jobs])
        self.calls.append(call)
        return call

    async def carry_out(self, verb: Verb, order: Order) -> FakeErrand:
        """Say what the test set."""
        self.orders.append((verb, order))
        return FakeErrand(self.steps)

    def models(self) -> list[dict[str, Any]]:
        """Return what the test set."""
        return self.entries

    def nodes(self) -> list[dict[str, Any]]:
        """Return no nodes."""
        return []

    def happened(self, since: int) -> list[Happened]:
        """Return what the test set."""
        return [h for h in self.events if h.serial > since]

    def health(self) -> Health:
        """Return what the test set."""
        return self.state
