"""The lane of a model for vectors, with an embedder that writes down what it is given."""

import struct
from collections.abc import Sequence

import pytest

from common.codec import decode_from_worker
from common.errors import Code
from common.messages import Ended, EndedItem, Failed, FailedItem, FromWorker, JobKey, Started, StartedItem, Task
from neuron.worker.embedding import EmbeddingLane
from neuron.worker.engine import DeviceLost, MemoryKind
from neuron.worker.outbox import Outbox


class Scribe:
    """Its vectors are the first token and the length of their texts."""

    vocabulary, kv_tokens, weights_mb, kv_mb, memory_mb = 1000, 64, 1, 0, 1
    kind, state_key, sequences, is_ranking = MemoryKind.CELLS, "", 4, False

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.error: Exception | None = None
        self.in_force: dict[str, str] = {}
        self.host_mb = self.mapped_mb = 0

    def warm_up(self) -> None:
        """Need nothing."""

    def compute(self, texts: Sequence[list[int]]) -> list[bytes]:
        """Note the lengths."""
        if self.error is not None:
            raise self.error
        self.batches.append([len(t) for t in texts])
        return [struct.pack("<2f", t[0], len(t)) for t in texts]

    def close(self) -> None:
        """Have nothing to free."""


class Bench:
    """A lane, and what it has sent."""

    def __init__(self) -> None:
        self.model = Scribe()
        self.messages: list[FromWorker] = []
        self._outbox = Outbox(self._send)
        self.lane = EmbeddingLane("m", self.model, context=32, outbox=self._outbox)

    def _send(self, gateway: str, kind: bytes, payload: bytes) -> bool:
        self.messages.append(decode_from_worker(payload))
        return True

    def run(self) -> int:
        """Step until nothing is left; return the steps."""
        steps = 0
        while self.lane.is_busy:
            assert self.lane.step(None)
            self.lane.check()
            steps += 1
        self._outbox.flush()
        return steps

    def ended(self) -> dict[str, EndedItem]:
        return {i.job: i for m in self.messages if isinstance(m, Ended) for i in m.items}

    def failed(self) -> dict[str, FailedItem]:
        return {i.job: i for m in self.messages if isinstance(m, Failed) for i in m.items}

    def started(self) -> list[str]:
        return [i.job for m in self.messages if isinstance(m, Started) for i in m.items]


@pytest.fixture
def bench() -> Bench:
    return Bench()


def task(job: str, *lengths: int, attempt: int = 0) -> Task:
    """Return a task whose texts have these lengths; the first token is the text's number."""
    return Task(
        job=job,
        attempt=attempt,
        gateway="g",
        model="m",
        request_id="r",
        tokens=[],
        texts=[[number] * length for number, length in enumerate(lengths)],
        max_tokens=1,
        started=StartedItem(job=job, attempt=attempt, prompt_tokens=sum(lengths), max_tokens=1),
    )


def test_texts_of_several_jobs_share_batches_and_keep_their_order(bench: Bench) -> None:
    bench.lane.add(task("a", 10, 20, 30))
    bench.lane.add(task("b", 5, 5, 5, 5, 5))  # the first would not fit in the first batch
    bench.run()
    assert bench.model.batches == [[10, 20, 30], [5, 5, 5, 5], [5]]
    vectors = [struct.unpack("<2f", v) for v in bench.ended()["a"].vectors]
    assert vectors == [(0, 10), (1, 20), (2, 30)]
    assert len(bench.ended()["b"].vectors) == 5
    assert bench.ended()["a"].prompt_tokens == 60
    assert bench.started() == ["a", "b"]


def test_no_batch_is_larger_than_the_context_or_has_too_many_texts(bench: Bench) -> None:
    bench.lane.add(task("a", *[30] * 5, *[1] * 9))
    bench.run()
    assert all(sum(b) <= 64 and len(b) <= 4 for b in bench.model.batches)
    assert sum(map(len, bench.model.batches)) == 14


@pytest.mark.parametrize(
    ("given", "reason"),
    [(task("x"), "not for text"), (task("x", 33), "at most 32"), (task("x", 3, 0), "text 1 is empty")],
)
def test_what_cannot_be_computed_fails_alone(bench: Bench, given: Task, reason: str) -> None:
    bench.lane.add(task("a", 3))
    bench.lane.add(given)
    bench.run()
    assert (bench.failed()["x"].code, reason in bench.failed()["x"].message) == (Code.INVALID_VALUE, True)
    assert list(bench.ended()) == ["a"]


def test_an_aborted_job_is_heard_of_no_more_and_a_later_attempt_replaces_an_earlier(bench: Bench) -> None:
    bench.lane.add(task("a", *[30] * 6))
    bench.lane.add(task("b", 3))
    assert bench.lane.step(None)
    bench.lane.abort(JobKey("a", 0))
    bench.lane.add(task("b", 4, attempt=1))
    bench.lane.add(task("b", 5, attempt=1))
    bench.run()
    assert list(bench.ended()) == ["b"]
    assert (bench.ended()["b"].attempt, bench.ended()["b"].prompt_tokens) == (1, 4)


def test_a_batch_that_breaks_ends_its_jobs_and_no_other(bench: Bench) -> None:
    bench.lane.add(task("a", 3))
    bench.model.error = RuntimeError("as told")
    assert bench.lane.step(None)
    bench.model.error = None
    bench.lane.add(task("b", 3))
    bench.run()
    assert "as told" in bench.failed()["a"].message
    assert list(bench.ended()) == ["b"]


def test_a_lost_device_is_not_the_jobs_fault(bench: Bench) -> None:
    bench.lane.add(task("a", 3))
    bench.model.error = DeviceLost("gone")
    with pytest.raises(DeviceLost):
        bench.lane.step(None)
    bench.lane.fail_all(Code.WORKER_DIED, "gone")
    bench.run()
    assert bench.failed()["a"].retriable
