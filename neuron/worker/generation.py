"""One task on its way through the engine. Pure."""

import math

from common.messages import JobKey, Task, Timings
from neuron.worker.engine import Sampler
from neuron.worker.host_tier import Piece
from neuron.worker.text import TextStream


class Generation:
    """A task, its tokens so far, and how many of them are in KV cells.

    `tokens` is prompt plus output, resume tokens included. tokens[:position] are in cells; the rest is pending: the
    prompt's remainder, or the one token sampled last. Whoever loses its cells has everything pending again, and goes on
    where it was: sampler and text are not lost with them.
    """

    __slots__ = (
        "_admitted_at",
        "_first_at",
        "_received_at",
        "_resumed_n",
        "cached_n",
        "is_started",
        "key",
        "leader",
        "pieces",
        "position",
        "prompt_n",
        "sampler",
        "sent_back_at",
        "sequence",
        "serial",
        "shared_n",
        "shown",
        "stops",
        "task",
        "text",
        "tokens",
    )

    def __init__(self, task: Task, serial: int, now: float) -> None:
        self.task = task
        self.key = JobKey(task.job, task.attempt)
        self.serial = serial
        """Order of arrival; who comes first is served first, also after losing its cells."""
        self.tokens = task.tokens + task.resume_tokens
        self.prompt_n = len(task.tokens)
        self.position = 0
        self.sequence: int | None = None
        """Number of its sequence while it has a slot."""
        self.leader: Generation | None = None
        """Who computes the first `shared_n` tokens for both; until then this one waits."""
        self.shared_n = 0
        self.pieces: list[Piece] = []
        """To be restored from host memory before anything is computed."""
        self.stops: list[int] = []
        """Positions at which a chunk of the prompt has to end, because the state there is kept; in order."""
        self.cached_n = 0
        """Prompt tokens that did not have to be computed."""
        self.sent_back_at = -math.inf
        """When it last lost its cells to others."""
        self.sampler: Sampler | None = None
        self.text = TextStream(task.sampling.stop)
        self.shown = frozenset(task.shown)
        self.is_started = False
        self._resumed_n = len(task.resume_tokens)
        self._received_at = now
        self._admitted_at = now
        self._first_at: float | None = None

    @property
    def output_n(self) -> int:
        """Output tokens over all attempts."""
        return len(self.tokens) - self.prompt_n

    @property
    def pending(self) -> int:
        """Tokens that are not in cells yet."""
        return len(self.tokens) - self.position

    @property
    def is_decoding(self) -> bool:
        """Whether one token is all it needs computed."""
        return len(self.tokens) - self.position == 1

    @property
    def is_gathering(self) -> bool:
        """Whether cells that hold its tokens are still on their way."""
        return self.leader is not None or bool(self.pieces)

    @property
    def was_sent_back(self) -> bool:
        """Whether it ever lost its cells to others."""
        return self.sent_back_at > -math.inf

    @property
    def wants_the_same_again(self) -> bool:
        """Whether its client gave a seed, and nothing of the answer is there yet."""
        return self.task.sampling.seed is not None and not self.is_started and not self._resumed_n

    @property
    def next_stop(self) -> int:
        """Where the next chunk has to end at the latest."""
        return next((s for s in self.stops if s > self.position), len(self.tokens))

    def start(self, sampler: Sampler | None, now: float) -> None:
        """Note that the first batch is next; what is in cells by now was not computed for this task."""
        self.sampler, self.is_started, self._admitted_at = sampler, True, now
        self.cached_n = min(self.position, self.prompt_n)

    def take(self, token: int, now: float) -> None:
        """Append a sampled token."""
        if self._first_at is None:
            self._first_at = now
        self.tokens.append(token)

    def close(self) -> None:
        """Free the sampler."""
        if self.sampler is not None:
            self.sampler.close()
            self.sampler = None

    def timings(self, now: float) -> Timings:
        """Return where its time went."""
        first_at = now if self._first_at is None else self._first_at
        return Timings(
            queue_ms=self.task.queue_ms + (self._admitted_at - self._received_at) * 1000,
            cache_n=self.cached_n,
            prompt_n=self.prompt_n + self._resumed_n - self.cached_n,
            prompt_ms=(first_at - self._admitted_at) * 1000,
            predicted_n=self.output_n - self._resumed_n,
            predicted_ms=(now - first_at) * 1000,
        )
