"""One model loaded for vectors or scores: its jobs, and the step that computes some of their texts."""

import logging
import time
from collections.abc import Callable, Sequence

from msgspec import structs

from common.errors import Code
from common.log import fields
from common.messages import EndedItem, FailedItem, JobKey, JobProgress, LaneLoad, ModelMemory, Task, Timings
from neuron.process.breadcrumb import Breadcrumb
from neuron.worker.engine import CHUNK_TOKENS, DeviceLost, Embedder
from neuron.worker.kv_pool import Saved
from neuron.worker.outbox import Outbox

log = logging.getLogger(__name__)


class _Work:
    """A task and how many of its texts are done."""

    def __init__(self, task: Task, now: float) -> None:
        self.task = task
        self.key = JobKey(task.job, task.attempt)
        self.received_at = now
        self.vectors: list[bytes] = []
        self.scores: list[float] = []

    @property
    def done(self) -> int:
        return len(self.vectors) + len(self.scores)


class EmbeddingLane:
    """Packs texts, also of different jobs, into few batches. Stands where a Lane does in the loop.

    A job is begun when it comes and ends in exactly one Ended or Failed, unless it is aborted.
    """

    is_decoding = False

    def __init__(
        self,
        name: str,
        model: Embedder,
        *,
        context: int,
        outbox: Outbox,
        clock: Callable[[], float] = time.monotonic,
        crumb: Breadcrumb | None = None,
    ) -> None:
        self.model = model
        self._name = name
        self._context = min(context, model.kv_tokens)
        self._outbox = outbox
        self._clock = clock
        self._crumb = crumb or Breadcrumb()
        self._jobs: dict[str, _Work] = {}

    @property
    def is_busy(self) -> bool:
        """Whether there is anything to step for."""
        return bool(self._jobs)

    @property
    def is_prefilling(self) -> bool:
        """Whether the next step works on a text."""
        return bool(self._jobs)

    def add(self, task: Task) -> None:
        """Take a task in. A higher attempt at the same job replaces the older one; any other repeat is ignored."""
        known = self._jobs.get(task.job)
        if known is not None:
            if known.task.attempt >= task.attempt:
                return
            self._outbox.forget(known.task.gateway, known.key)
        work = self._jobs[task.job] = _Work(task, self._clock())
        reason = self._refusal(task)
        if reason is not None:
            self._fail(work, Code.INVALID_VALUE, reason)
            return
        self._outbox.started(task.gateway, structs.replace(task.started, cached_tokens=0))

    def _refusal(self, task: Task) -> str | None:
        if not task.texts:
            made = "scores" if self.model.is_ranking else "vectors"
            return f"model '{self._name}' is loaded for {made}, not for text"
        for number, text in enumerate(task.texts):
            if not text:
                return f"text {number} is empty"
            if len(text) > self._context:
                return f"text {number} has {len(text)} tokens; at most {self._context} are possible here"
            if min(text) < 0 or max(text) >= self.model.vocabulary:
                return f"text {number} has a token outside the vocabulary of {self.model.vocabulary}"
        return None

    def abort(self, key: JobKey) -> None:
        """End a job without any event."""
        work = self._jobs.get(key.job)
        if work is not None and work.task.attempt <= key.attempt:
            del self._jobs[key.job]
            self._outbox.forget(work.task.gateway, work.key)

    def fail_all(self, code: Code, message: str) -> None:
        """End every job, retriable."""
        for work in list(self._jobs.values()):
            self._fail(work, code, message, retriable=True)

    def admit(self, *, is_timed: bool) -> None:
        """Do nothing: texts hold no place between two steps."""

    def step(self, budget_s: float | None) -> bool:
        """Compute one batch: the next texts in order of arrival, as many as pay. Raises DeviceLost."""
        owners: list[_Work] = []
        texts: list[list[int]] = []
        total, most = 0, min(CHUNK_TOKENS, self.model.kv_tokens)
        for work in self._jobs.values():
            for text in work.task.texts[work.done :]:
                if texts and (total + len(text) > most or len(texts) == self.model.sequences):
                    break
                owners.append(work)
                texts.append(text)
                total += len(text)
            else:
                continue
            break
        if not texts:
            return False
        self._crumb.batch([work.task.job for work in dict.fromkeys(owners)])
        try:
            results: Sequence[bytes | float] = self.model.compute(texts)
        except DeviceLost:
            raise
        except Exception as error:
            log.exception("embedding batch refused")
            for work in dict.fromkeys(owners):
                self._fail(work, Code.INTERNAL_ERROR, f"{type(error).__name__}: {error}")
            return True
        for work, result in zip(owners, results, strict=True):
            if isinstance(result, float):
                work.scores.append(result)
            else:
                work.vectors.append(result)
        for work in dict.fromkeys(owners):
            if work.done == len(work.task.texts):
                self._end(work)
        return True

    def tidy(self) -> bool:
        """Return False: nothing idle is ever kept."""
        return False

    def clear(self) -> int:
        """Return 0, as above."""
        return 0

    def save_all(self, budget: int) -> list[Saved]:
        """Return nothing, as above."""
        return []

    def memory(self) -> ModelMemory:
        """Return what the model holds."""
        model = self.model
        return ModelMemory(
            model=self._name,
            weights_mb=model.weights_mb,
            kv_mb=model.kv_mb,
            kv_tokens=model.kv_tokens,
            kv_used=0,
            sequences=0,
        )

    @property
    def tokens(self) -> int:
        """Return 0: nothing is generated."""
        return 0

    def load(self) -> LaneLoad:
        """Return how busy the model is."""
        return LaneLoad(model=self._name, sequences=len(self._jobs), kv_used=0)

    def progress(self) -> list[JobProgress]:
        """Return how far each job is."""
        works = self._jobs.values()
        return [
            JobProgress(job=w.task.job, phase="prefill", prompt_n=sum(map(len, w.task.texts)),
                        done_n=sum(map(len, w.task.texts[: w.done])))
            for w in works
        ]  # fmt: skip

    def check(self) -> None:
        """Assert that no job waits for nothing."""
        assert all(work.done < len(work.task.texts) for work in self._jobs.values())

    def _end(self, work: _Work) -> None:
        task, now = work.task, self._clock()
        del self._jobs[task.job]
        count = sum(map(len, task.texts))
        timings = Timings(queue_ms=task.queue_ms, prompt_n=count, prompt_ms=(now - work.received_at) * 1000)
        self._outbox.ended(
            task.gateway,
            EndedItem(
                job=task.job,
                attempt=task.attempt,
                total=0,
                reason="stop",
                prompt_tokens=count,
                timings=timings,
                vectors=work.vectors,
                scores=work.scores,
            ),
        )

    def _fail(self, work: _Work, code: Code, message: str, *, retriable: bool = False) -> None:
        task = work.task
        del self._jobs[task.job]
        self._outbox.failed(
            task.gateway,
            FailedItem(job=task.job, attempt=task.attempt, code=code, message=message, retriable=retriable),
        )
        log.info("task failed: %s", message, extra=fields(request_id=task.request_id, job=task.job, code=code))
