"""A neuron without processes or models: a ROUTER in a thread that speaks the protocol and does what the test says.

By default it has one loaded model and answers every job with the words of `answer`, a token each.
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import zmq

from common.codec import decode_to_neuron, encode
from common.ids import new_incarnation
from common.messages import (
    Claim,
    Claimed,
    DeviceState,
    Done,
    Ended,
    EndedItem,
    FromNeuron,
    Health,
    HealthReply,
    Hello,
    HelloWanted,
    Job,
    JobKey,
    Load,
    ModelState,
    NodeState,
    Rendered,
    RenderedItem,
    ReplicaState,
    Started,
    StartedItem,
    Submit,
    Timings,
    TokenItem,
    Tokens,
    ToNeuron,
)
from common.sockets import Channel, bus_router
from neuron.broker.claims import Claims

M = TypeVar("M")
MODEL = "tiny/model"
DEADLINE_S = 10.0


def model_state(model: str = MODEL, **changes: object) -> ModelState:
    """Return a loaded model with one replica."""
    values: dict[str, object] = {
        "id": model,
        "status": "loaded",
        "replicas": [ReplicaState(device="dev-0", status="loaded", memory_mb=100)],
        "context": 1000,
        "parallel": 4,
        "memory_mb": 100,
        "capabilities": ["chat", "completion"],
    }
    return ModelState(**{**values, **changes})  # type: ignore[arg-type]


def node_state(*models: ModelState, seq: int = 1, full: bool = True, **changes: object) -> NodeState:
    """Return a state with one device."""
    values: dict[str, object] = {
        "incarnation": "life-1",
        "name": "beast",
        "version": "0",
        "devices": [DeviceState(uuid="dev-0", name="virtual", kind="cpu", state="ready", memory_mb=1000)],
        "models": list(models),
    }
    return NodeState(seq=seq, full=full, **{**values, **changes})  # type: ignore[arg-type]


def started(job: Job | JobKey, *, prompt_tokens: int = 5, cached_tokens: int = 0) -> Started:
    """Return the beginning of a job."""
    key = _key(job)
    item = StartedItem(
        job=key.job,
        attempt=key.attempt,
        prompt_tokens=prompt_tokens,
        cached_tokens=cached_tokens,
        max_tokens=100,
        resumed=len(job.resume_tokens) if isinstance(job, Job) else 0,
    )
    return Started(items=[item])


def token(job: Job | JobKey, at: int, text: str, *, count: int = 1) -> Tokens:
    """Return a step's output for one job."""
    key = _key(job)
    return Tokens(items=[TokenItem(key.job, key.attempt, at, text, list(range(at, at + count)))])


def ended(job: Job | JobKey, total: int, *, reason: str = "stop") -> Ended:
    """Return the good end of a job."""
    key = _key(job)
    timings = Timings(prompt_n=5, prompt_ms=1.0, predicted_n=total, predicted_ms=2.0)
    item = EndedItem(
        job=key.job,
        attempt=key.attempt,
        total=total,
        reason=reason,  # type: ignore[arg-type]
        prompt_tokens=5,
        timings=timings,
    )
    return Ended(items=[item])


def _key(job: Job | JobKey) -> JobKey:
    return job if isinstance(job, JobKey) else JobKey(job.id, job.attempt)


class FakeNeuron:
    """Started with `with`; `received` holds every message in order."""

    def __init__(self, *models: ModelState, port: int = 0, name: str = "beast", greets: bool = True) -> None:
        """`port` 0: any free one. `greets` False: a Hello is not answered."""
        self.name = name
        self.incarnation = new_incarnation()
        self.models = list(models) or [model_state()]
        self.greets = greets
        self.claims = Claims()
        self.answers_claims = True
        self.mute = False
        """Says nothing at all."""
        self.poisoned: list[str] = []
        self.answer = "Hello wide world"
        self.on_job: Callable[[str, Job], None] = self.run
        """(gateway, job): what happens to a job that is submitted."""
        self.received: list[ToNeuron] = []
        self.gateways: list[str] = []
        self.jobs_from: list[str] = []
        """Which gateway sent each Submit."""
        self._changed = threading.Condition()
        self._port = port
        self._ready = threading.Event()
        self._stop: asyncio.Event | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="fake-neuron")

    @property
    def endpoint(self) -> str:
        """Its address."""
        return f"127.0.0.1:{self._port}"

    def __enter__(self) -> "FakeNeuron":
        self._thread.start()
        assert self._ready.wait(DEADLINE_S), "the fake neuron did not start"
        return self

    def __exit__(self, *_: object) -> None:
        stop = self._stop
        assert stop is not None
        self._loop.call_soon_threadsafe(stop.set)
        self._thread.join(DEADLINE_S)

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        socket = bus_router(context, f"tcp://127.0.0.1:{self._port or '*'}")
        self._port = int(socket.getsockopt_string(zmq.LAST_ENDPOINT).rsplit(":", 1)[1])
        self._channel = Channel(socket, self._receive)
        self._ready.set()
        await self._stop.wait()
        self._channel.close()
        context.term()

    def _receive(self, frames: list[bytes]) -> None:
        gateway, message = frames[0].decode(), decode_to_neuron(frames[1])
        if self.mute:
            return
        if isinstance(message, Hello):
            if gateway not in self.gateways:
                self.gateways.append(gateway)
            if self.greets:
                self._send(gateway, self.state())
        elif gateway not in self.gateways:
            self._send(gateway, HelloWanted())
        elif isinstance(message, Health):
            self._send(gateway, HealthReply(request=message.request, status="ok"))
        elif isinstance(message, Claim) and self.answers_claims:
            choice = self.claims.record(message.model, message.choice, message.refused, self._loop.time())
            self._send(gateway, Claimed(request=message.request, model=message.model, choice=choice))
        elif isinstance(message, Load):
            self._send(gateway, Done(request=message.request, text="loaded"))
        elif isinstance(message, Submit):
            self.jobs_from.append(gateway)
            for job in message.jobs:
                self.on_job(gateway, job)
        with self._changed:
            self.received.append(message)
            self._changed.notify_all()

    def state(self, **changes: object) -> NodeState:
        """Return its full state."""
        own = {"incarnation": self.incarnation, "name": self.name, "poisoned": self.poisoned}
        return node_state(*self.models, **{**own, **changes})  # type: ignore[arg-type]

    def run(self, gateway: str, job: Job) -> None:
        """Answer a job at once, from where it is to be resumed."""
        if job.answer == "prompt":
            item = RenderedItem(job=job.id, attempt=job.attempt, text="prompt", tokens=[1, 2, 3], template="t")
            self._send(gateway, Rendered(items=[item]))
            return
        words = self.answer.split(" ")
        self._send(gateway, started(job))
        for at, word in list(enumerate(words))[len(job.resume_tokens) :]:
            self._send(gateway, token(job, at, word if at == 0 else " " + word))
        self._send(gateway, ended(job, len(words)))

    def hold(self, gateway: str, job: Job) -> None:
        """Begin a job and say no more."""
        self._send(gateway, started(job))

    def ignore(self, gateway: str, job: Job) -> None:
        """Leave a job waiting."""

    def send(self, message: FromNeuron, gateway: str | None = None) -> None:
        """Send to a gateway, by default the first that said Hello. From any thread."""
        self._loop.call_soon_threadsafe(self._send, gateway or self.gateways[0], message)

    def send_raw(self, *frames: bytes) -> None:
        """Send frames as they are to the first gateway."""
        self._loop.call_soon_threadsafe(self._channel.send, [self.gateways[0].encode(), *frames])

    def _send(self, gateway: str, message: FromNeuron) -> None:
        self._channel.send([gateway.encode(), encode(message)])

    def wait_for(self, kind: type[M], where: Callable[[M], bool] = lambda _: True, *, count: int = 1) -> M:
        """Return the `count`-th message of a kind, waiting for it."""
        ends_at = time.monotonic() + DEADLINE_S
        with self._changed:
            while True:
                found = [m for m in self.received if isinstance(m, kind) and where(m)]
                if len(found) >= count:
                    return found[count - 1]
                left = ends_at - time.monotonic()
                assert left > 0, f"no {kind.__name__} (number {count}) came; received: {self.received}"
                self._changed.wait(left)

    def wait_for_gateways(self, count: int) -> None:
        """Wait for so many gateway processes: one that connects later would pass for a leak of the test that runs."""
        with self._changed:
            is_there = self._changed.wait_for(lambda: len(self.gateways) >= count, DEADLINE_S)
        assert is_there, f"{len(self.gateways)} gateway processes came, not {count}"

    def jobs(self, count: int = 1) -> list[Job]:
        """Return the first jobs that were submitted, waiting for `count` of them."""
        ends_at = time.monotonic() + DEADLINE_S
        with self._changed:
            while True:
                found = [j for m in self.received if isinstance(m, Submit) for j in m.jobs]
                if len(found) >= count:
                    return found
                left = ends_at - time.monotonic()
                assert left > 0, f"{len(found)} jobs came, not {count}"
                self._changed.wait(left)


@contextlib.contextmanager
def neuron(*models: ModelState, **options: object) -> Iterator[FakeNeuron]:
    """Run a fake neuron."""
    with FakeNeuron(*models, **options) as fake:  # type: ignore[arg-type]
        yield fake
