"""The book of accepted jobs: each is in it from Submit to its one end. Pure."""

from collections import Counter
from dataclasses import dataclass
from typing import Literal

from common.messages import Job, JobKey, Prepared
from neuron.broker.queue import FairQueue

JobState = Literal["waiting", "preparing", "queued", "running"]
"""waiting: for the model's file to be inspected; preparing: in the prep process; queued: for a slot or a load."""


@dataclass(slots=True)
class Entry:
    """One accepted job."""

    serial: int
    """Rises with each acceptance."""
    gateway: str
    job: Job
    state: JobState
    accepted_at: float
    """Monotonic seconds."""
    deadline: float | None
    """For the start of its output."""
    device: str | None = None
    run_at: float = 0.0
    """When it got its slot."""
    prepared: Prepared | None = None
    preparations: int = 0
    """How often prep was given it: one that kills prep twice is refused."""

    @property
    def key(self) -> JobKey:
        """The attempt this entry stands for."""
        return JobKey(self.job.id, self.job.attempt)


class JobBook:
    """All accepted jobs, by id, and each model's queue."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self._queues: dict[str, FairQueue[Entry]] = {}
        self._waiting: dict[str, Counter[tuple[int, str]]] = {}
        """By model, then by priority and principal."""
        self._running: Counter[str] = Counter()
        self._total: Counter[str] = Counter()
        self._serial = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def last_serial(self) -> int:
        """Serial number of the job accepted last."""
        return self._serial

    def add(self, gateway: str, job: Job, now: float) -> Entry:
        """Accept a job."""
        assert job.id not in self._entries, f"job {job.id} is in the book already"
        self._serial += 1
        deadline = None if job.budget_ms is None else now + job.budget_ms / 1000
        entry = Entry(self._serial, gateway, job, "waiting", now, deadline)
        self._entries[job.id] = entry
        self._total[job.model] += 1
        self._count_waiting(entry, 1)
        return entry

    def find(self, job: str) -> Entry | None:
        """Return the entry of a job, whatever its attempt and gateway."""
        return self._entries.get(job)

    def find_of(self, gateway: str, job: str) -> Entry | None:
        """Return the entry of a gateway's job; another gateway's does not count."""
        entry = self._entries.get(job)
        return entry if entry is not None and entry.gateway == gateway else None

    def remove(self, entry: Entry) -> None:
        """Strike a job out: it has ended."""
        model = entry.job.model
        del self._entries[entry.job.id]
        self._total[model] -= 1
        if entry.state == "running":
            self._running[model] -= 1
            self._queues[model].end(entry)
        else:
            self._count_waiting(entry, -1)
        if entry.state == "queued":
            self._queues[model].discard(entry)
        if model in self._queues and not self._queues[model]:
            del self._queues[model]

    def enqueue(self, entry: Entry) -> None:
        """Put a prepared job into its model's queue."""
        entry.state = "queued"
        self._queues.setdefault(entry.job.model, FairQueue()).add(entry)

    def run(self, entry: Entry, device: str, now: float) -> None:
        """Take a job out of the queue: it has a slot on `device`."""
        self._queues[entry.job.model].begin(entry)
        entry.state, entry.device, entry.run_at = "running", device, now
        self._running[entry.job.model] += 1
        self._count_waiting(entry, -1)

    def queue(self, model: str) -> list[Entry]:
        """Return a model's queued jobs, in the order of acceptance."""
        return self._queues[model].waiting() if model in self._queues else []

    def next(self, model: str, until: int | None = None) -> Entry | None:
        """Return the queued job that runs next; `until`: among those up to this serial number."""
        return self._queues[model].next(until) if model in self._queues else None

    def _count_waiting(self, entry: Entry, change: int) -> None:
        waiting = self._waiting.setdefault(entry.job.model, Counter())
        share = (entry.job.priority, entry.job.principal)
        waiting[share] += change
        if not waiting[share]:
            del waiting[share]

    def may_wait(self, model: str, principal: str, limit: int, priority: int) -> bool:
        """Say whether one more job of a principal may wait.

        Beyond `limit` jobs only who has less than a fair share of it may add to them, and twice the limit is the end.
        Jobs of a higher priority number do not count: they take no place from this one.
        """
        waiting = {share: n for share, n in self._waiting.get(model, {}).items() if share[0] <= priority}
        total, own = sum(waiting.values()), (priority, principal)
        if total < limit:
            return True
        return total < 2 * limit and waiting.get(own, 0) < limit // len(waiting.keys() | {own})

    def entries(self) -> list[Entry]:
        """Return all jobs, in the order of acceptance."""
        return list(self._entries.values())

    def of_gateway(self, gateway: str) -> list[Entry]:
        """Return a gateway's jobs."""
        return [e for e in self._entries.values() if e.gateway == gateway]

    def of_model(self, model: str) -> list[Entry]:
        """Return a model's jobs in any state."""
        return [e for e in self._entries.values() if e.job.model == model]

    def running_on(self, device: str) -> list[Entry]:
        """Return the jobs that have a slot on a device."""
        return [e for e in self._entries.values() if e.device == device]

    def running(self, model: str) -> int:
        """Return how many of a model's jobs have a slot."""
        return self._running[model]

    def waiting(self, model: str) -> int:
        """Return how many of a model's jobs have no slot yet."""
        return self._total[model] - self._running[model]
