"""One loaded model: its waiting and running generations, and the step that moves them on."""

import bisect
import logging
import math
import time
from collections.abc import Callable
from typing import Literal

from msgspec import structs

from common.errors import Code, RequestError, overflow
from common.log import fields
from common.messages import EndedItem, FailedItem, JobKey, JobProgress, LaneLoad, ModelMemory, Task, TokenLogprob
from neuron.process.breadcrumb import Breadcrumb
from neuron.worker.engine import DecodeResult, DeviceLost, Model
from neuron.worker.generation import Generation
from neuron.worker.host_tier import HostTier
from neuron.worker.kv_pool import KvPool, Saved
from neuron.worker.outbox import Outbox
from neuron.worker.planner import FIRST_CHUNK, Pace, Plan, plan
from neuron.worker.sampling import stages

log = logging.getLogger(__name__)

Reason = Literal["stop", "stop_sequence", "length"]

LONGEST_STEP_S = 5.0
"""Of a prompt that nobody's tokens wait for. On a slow host a whole chunk may take minutes, as if the device hung."""
GATHER_S = 0.05
"""Of restoring from host memory in one step, while others wait for their next token."""


class Lane:
    """Continuous batching over one model.

    A generation is waiting (no sequence), seated (has a sequence; prompt or decode), or over and forgotten. It ends in
    exactly one Ended or Failed, unless it is aborted.
    """

    def __init__(
        self,
        name: str,
        model: Model,
        *,
        context: int,
        parallel: int,
        outbox: Outbox,
        host: HostTier,
        token_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        crumb: Breadcrumb | None = None,
    ) -> None:
        """`token_s`: how long a token took when the model was loaded; no prompt's takes longer."""
        self.model = model
        self.kv = KvPool(model, host, parallel=parallel, clock=clock)
        self.slots = self.kv.slots
        self._name = name
        self._context = context
        self._host = host
        self._outbox = outbox
        self._clock = clock
        self._crumb = crumb or Breadcrumb()
        self._pace = Pace(model.batch_tokens)
        self._jobs: dict[str, Generation] = {}
        self._waiting: list[Generation] = []
        self._serial = 0
        self.tokens = 0
        """Generated so far."""
        self._first_token_s = token_s

    @property
    def is_busy(self) -> bool:
        """Whether there is anything to step for."""
        return bool(self._jobs)

    @property
    def is_decoding(self) -> bool:
        """Whether a client is watching tokens come."""
        return any(g.is_decoding and g.output_n > 0 for g in self.slots.seated)

    @property
    def is_prefilling(self) -> bool:
        """Whether the next step works on a prompt."""
        return any(not g.is_decoding for g in self.slots.seated)

    def add(self, task: Task) -> None:
        """Take a task in. A higher attempt at the same job replaces the older one; any other repeat is ignored."""
        known = self._jobs.get(task.job)
        if known is not None:
            if known.task.attempt >= task.attempt:
                return
            self._drop(known)
        generation = Generation(task, self._serial, self._clock())
        self._serial += 1
        self._jobs[task.job] = generation
        try:
            self._check(task)
            for token in task.resume_tokens:
                generation.text.push(self.model.piece(token, is_shown=token in generation.shown))
        except Exception as error:
            self._fail_for(generation, error)
            return
        if generation.text.matched is not None or generation.output_n >= task.max_tokens:
            # The earlier attempt produced all of it; only its end was lost.
            self._start(generation, with_sampler=False)
            self._end(generation, "length" if generation.text.matched is None else "stop_sequence")
            return
        self._waiting.append(generation)

    def abort(self, key: JobKey) -> None:
        """End a job without any event."""
        generation = self._jobs.get(key.job)
        if generation is not None and generation.task.attempt <= key.attempt:
            self._drop(generation)

    def fail_all(self, code: Code, message: str) -> None:
        """End every job, retriable."""
        for generation in list(self._jobs.values()):
            self._fail(generation, code, message, retriable=True)

    def admit(self, *, is_timed: bool) -> None:
        """Seat who has been waiting longest, as long as there are slots and cells, and start who has gathered his.

        With `is_timed`, when a client is watching tokens come, gathering from host memory takes a bounded time.
        """
        self._seat_waiting()
        self.kv.gather(GATHER_S if is_timed else math.inf)
        for generation in list(self.slots.seated):
            if not generation.is_started and not generation.is_gathering:
                try:
                    self._start(generation, with_sampler=True)
                except DeviceLost:
                    raise
                except Exception as error:
                    self._fail_for(generation, error)

    def step(self, budget_s: float | None) -> bool:
        """Compute one batch and emit what it yields; False if nothing could be computed.

        With `budget_s` prompt chunks are cut so that the step takes no longer. Raises DeviceLost.
        """
        batch = self._plan(budget_s)
        if batch is None:
            return False
        began = self._clock()
        self._crumb.batch([g.task.job for g in batch.owners])
        try:
            result = self.model.decode(batch.chunks)
        except DeviceLost:
            raise
        except Exception as error:
            for generation in batch.owners:
                self.kv.unseat(generation, keep=False)
                self._fail_for(generation, error)
            return False
        if result is DecodeResult.NO_ROOM:
            if not self.kv.note_refusal(sum(len(c.tokens) for c in batch.chunks)):
                self._make_room(batch.owners[-1])
            return False
        now = self._clock()
        self._pace.observe(batch, now - began)
        for index, (generation, chunk) in enumerate(zip(batch.owners, batch.chunks, strict=True)):
            self.kv.advance(generation, len(chunk.tokens))
            if chunk.wants_logits:
                self._crumb.member(index)
                self._advance(generation, index, now)
        return True

    def tidy(self) -> bool:
        """Look after idle sequences; True if something was done."""
        return self.kv.tidy(is_busy=self.is_busy)

    def clear(self) -> int:
        """Forget idle sequences; return how many."""
        return self.kv.clear()

    def save_all(self, budget: int) -> list[Saved]:
        """Return the states of idle sequences, for when the model comes back."""
        return self.kv.save_all(budget)

    def memory(self) -> ModelMemory:
        """Return what the model holds."""
        return ModelMemory(
            model=self._name,
            weights_mb=self.model.weights_mb,
            kv_mb=self.model.kv_mb,
            kv_tokens=self.model.kv_tokens,
            kv_used=self.kv.cells.used,
            sequences=len(self.slots.seated),
            idle=len(self.kv.cache),
            host_mb=self._host.used_by(self.model.state_key) >> 20,
        )

    def load(self) -> LaneLoad:
        """Return how busy the model is."""
        return LaneLoad(model=self._name, sequences=len(self.slots.seated), kv_used=self.kv.cells.used)

    def progress(self) -> list[JobProgress]:
        """Return how far each job is."""
        return [
            JobProgress(
                job=g.task.job,
                phase="waiting" if g.sequence is None else "decode" if g.is_decoding else "prefill",
                prompt_n=g.prompt_n,
                done_n=min(g.position, g.prompt_n),
                tokens=g.output_n,
            )
            for g in self._jobs.values()
        ]

    def check(self) -> None:
        """Assert that books agree."""
        self.kv.check()
        assert len(self._jobs) == len(self._waiting) + len(self.slots.seated)

    def _check(self, task: Task) -> None:
        tokens = task.tokens + task.resume_tokens
        if not task.tokens:
            raise RequestError(Code.INVALID_VALUE, "the prompt is empty")
        if min(tokens) < 0 or max(tokens) >= self.model.vocabulary:
            raise RequestError(Code.INVALID_VALUE, f"a token is outside the vocabulary of {self.model.vocabulary}")
        if len(task.tokens) >= self._context:
            raise overflow(f"{len(task.tokens)}", self._context)

    def _seat_waiting(self) -> None:
        while self._waiting:
            generation = self._waiting[0]
            if not self.slots.can_hold(generation):
                self._waiting.pop(0)
                self._end_for_want_of_cells(generation)
                continue
            if not self.kv.seat(generation, self._pace.token_s(0), self._waiting[1 : self.slots.free]):
                return
            self._waiting.pop(0)

    def _start(self, generation: Generation, *, with_sampler: bool) -> None:
        task, sampler = generation.task, None
        if with_sampler:
            chain = stages(task.sampling, self.model.vocabulary, self._context)
            self._crumb.batch([task.job])  # a grammar may be more than llama.cpp can take
            sampler = self.model.new_sampler(chain, task.tokens, task.resume_tokens, task.constraint)
        generation.start(sampler, self._clock())
        self._outbox.started(task.gateway, structs.replace(task.started, cached_tokens=generation.cached_n))

    def _plan(self, budget_s: float | None) -> Plan | None:
        """Return the next batch, sending generations back until the decode tokens have cells."""
        while ready := [g for g in self.slots.seated if not g.is_gathering]:
            prompts = [g for g in ready if not g.is_decoding]
            pending = sum(g.pending for g in prompts)
            decodes = len(ready) - len(prompts)
            chunk_tokens = rows = self.model.batch_tokens
            if prompts:
                chunk_tokens = self._chunk_tokens(prompts[0].position, budget_s, decodes)
            self.kv.reclaim(min(rows, decodes + min(pending, chunk_tokens)))
            batch = plan(ready, self.kv.cells.free, chunk_tokens, rows)
            if batch is not None:
                return batch
            self._make_room(ready[-1])
        return None

    def _chunk_tokens(self, position: int, budget_s: float | None, decodes: int) -> int:
        """Return how much of a prompt is computed in one step; also where nobody waits the watchdog must see steps."""
        if budget_s is not None:
            return self._pace.chunk(position, budget_s, decodes)
        if self._pace.token_s(position) is None:
            return max(FIRST_CHUNK, min(self.model.batch_tokens, int(LONGEST_STEP_S / max(self._first_token_s, 1e-6))))
        return self._pace.chunk(position, LONGEST_STEP_S, decodes)

    def _make_room(self, last: Generation) -> None:
        """Send the sequence that is cheapest to redo back to the queue; the last one alone has to end."""
        victim = self.slots.cheapest_to_redo(self._clock())
        if victim is None:
            self._end_for_want_of_cells(last)
            return
        victim.sent_back_at = self._clock()
        self.kv.unseat(victim, keep=True)
        bisect.insort(self._waiting, victim, key=lambda g: g.serial)
        log.info(
            "out of KV cells: a sequence goes back to the queue",
            extra=fields(request_id=victim.task.request_id, job=victim.task.job, tokens=len(victim.tokens)),
        )

    def _end_for_want_of_cells(self, generation: Generation) -> None:
        if generation.is_started and generation.output_n > len(generation.task.resume_tokens):
            text = generation.text.finish()
            if text:
                self._outbox.tokens(generation.task.gateway, generation.key, generation.output_n, text, [])
            self._end(generation, "length")
            return
        text = f"the prompt has {len(generation.tokens)} tokens; the model's KV memory here holds {self.kv.cells.total}"
        self._fail(generation, Code.PROMPT_TOO_LONG_FOR_MEMORY, text)

    def _advance(self, generation: Generation, chunk: int, now: float) -> None:
        """Sample the generation's next token; whatever goes wrong is this one's alone."""
        assert generation.sampler is not None
        try:
            token, count = generation.sampler.sample(chunk), generation.task.logprobs
            told = [] if count is None else [self.model.likelihoods(chunk, token, count)]
            self._emit(generation, token, told, now)
        except DeviceLost:
            raise
        except Exception as error:
            self._fail_for(generation, error)

    def _emit(self, generation: Generation, token: int, told: list[TokenLogprob], now: float) -> None:
        task, text = generation.task, generation.text
        if self.model.is_end(token):
            rest = text.finish()
            if rest:
                self._outbox.tokens(task.gateway, generation.key, generation.output_n, rest, [])
            self._end(generation, "stop" if text.matched is None else "stop_sequence")
            return
        at = generation.output_n
        self.tokens += 1
        generation.take(token, now)
        shown = text.push(self.model.piece(token, is_shown=token in generation.shown))
        is_full = generation.output_n >= task.max_tokens
        if is_full and text.matched is None:
            shown += text.finish()
        self._outbox.tokens(task.gateway, generation.key, at, shown, [token], told)
        if text.matched is not None:
            self._end(generation, "stop_sequence")
        elif is_full:
            self._end(generation, "length")

    def _end(self, generation: Generation, reason: Reason) -> None:
        task, timings = generation.task, generation.timings(self._clock())
        self._release(generation)
        self._outbox.ended(
            task.gateway,
            EndedItem(
                job=task.job,
                attempt=task.attempt,
                total=generation.output_n,
                reason=reason,
                stop_sequence=generation.text.matched,
                prompt_tokens=generation.prompt_n,
                cached_tokens=generation.cached_n,
                timings=timings,
            ),
        )
        log.debug("task ended", extra=fields(request_id=task.request_id, job=task.job, reason=reason))

    def _fail(
        self, generation: Generation, code: Code, message: str, *, param: str | None = None, retriable: bool = False
    ) -> None:
        task = generation.task
        self._release(generation)
        item = FailedItem(
            job=task.job, attempt=task.attempt, code=code, message=message, param=param, retriable=retriable
        )
        self._outbox.failed(task.gateway, item)
        log.info("task failed: %s", message, extra=fields(request_id=task.request_id, job=task.job, code=code))

    def _fail_for(self, generation: Generation, error: Exception) -> None:
        """End a task by an exception that is its own; the others go on."""
        if isinstance(error, RequestError):
            self._fail(generation, error.code, error.message, param=error.param)
            return
        task = generation.task
        log.error("task broke", exc_info=error, extra=fields(request_id=task.request_id, job=task.job))
        self._fail(generation, Code.INTERNAL_ERROR, f"{type(error).__name__}: {error}")

    def _drop(self, generation: Generation) -> None:
        self._release(generation)
        self._outbox.forget(generation.task.gateway, generation.key)
        log.debug("task aborted", extra=fields(request_id=generation.task.request_id, job=generation.task.job))

    def _release(self, generation: Generation) -> None:
        """Free everything it holds."""
        if self._jobs.pop(generation.task.job, None) is None:
            return
        if generation.sequence is not None:
            self.kv.unseat(generation, keep=True)
        elif generation in self._waiting:
            self._waiting.remove(generation)
        generation.close()
