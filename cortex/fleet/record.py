"""What is measured of one request while its jobs run. Pure; times are seconds of the event loop's clock.

Measuring a token must cost next to nothing, so the times between tokens are sorted into buckets here, and handed to
the metrics in one go when the request has ended.
"""

from bisect import bisect_left

from common.messages import EndedItem, Job, StartedItem, Timings

GAP_BOUNDS_S = (0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 5.0)
"""Upper bounds of the buckets for the time between two tokens; one without a bound follows."""


class Record:
    """One request, all its jobs together."""

    def __init__(self, accepted_at: float = 0.0, *, is_cold: bool = False) -> None:
        """`is_cold`: nobody had its model loaded."""
        self.accepted_at = accepted_at
        self.is_cold = is_cold
        self.begun_at: float | None = None
        """When its first job had been admitted to a slot."""
        self.node: str | None = None
        """The neuron that has it, or had it last."""
        self.prompt_tokens = 0
        """A prompt counts once, however many answers it got."""
        self.cached_tokens = 0
        self.recoveries = 0
        """Times that a job of it was sent again after a fault."""
        self.resumed = 0
        """So many of these led on: to another token, or to the end."""
        self.gaps = [0] * (len(GAP_BOUNDS_S) + 1)
        """Tokens by the time since the one before."""
        self.gaps_s = 0.0
        """All those times together."""
        self.timings: Timings | None = None
        """Of its first job to end."""
        self._prompts: set[str] = set()
        self._faults: dict[str, int] = {}
        """By job: since its last token."""
        self._left: dict[str, int] = {}
        self._token_at: dict[str, float] = {}

    @property
    def tokens_left(self) -> int:
        """Return how many tokens its unfinished jobs were still allowed."""
        return sum(self._left.values())

    def begin(self, job: Job, item: StartedItem, now: float) -> None:
        """Note a job's beginning."""
        if self.begun_at is None:
            self.begun_at = now
        self._left[job.id] = item.max_tokens
        prompt = job.group or job.id
        if prompt not in self._prompts:
            self._prompts.add(prompt)
            self.prompt_tokens += item.prompt_tokens
            self.cached_tokens += item.cached_tokens

    def add(self, job: str, tokens: int, now: float) -> None:
        """Note tokens that came at once; the time since those before is shared out among them."""
        before = self._token_at.get(job)
        self._token_at[job] = now
        if job in self._left:
            self._left[job] -= tokens
        if before is not None:
            self.gaps[bisect_left(GAP_BOUNDS_S, (now - before) / tokens)] += tokens
            self.gaps_s += now - before

    def note_fault(self, job: str) -> None:
        """Note that a job is sent again."""
        self.recoveries += 1
        self._faults[job] = self._faults.get(job, 0) + 1

    def note_resumed(self, job: str) -> None:
        """Note that a job goes on, or has ended well."""
        self.resumed += self._faults.pop(job, 0)

    def end(self, job: str, item: EndedItem) -> None:
        """Note a job's good end."""
        self._left.pop(job, None)
        if self.timings is None:
            self.timings = item.timings
