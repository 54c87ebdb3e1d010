"""Who is to blame when a worker dies at work. Pure.

The worker leaves behind which jobs it computed (neuron.process.breadcrumb). One request alone gets a strike, a batch
nobody the first time; jobs that have shared two fatal batches are run one at a time, until each has shown that it
computes, or has ended a worker alone. Two strikes convict; the batches that led to a job's trial count as one. What is
held against a job travels with it, so that it meets two workers, not two of each neuron.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from common.messages import Job
from common.poison import fingerprint

STRIKES = 2
SHARED_DEATHS = 2
"""Fatal batches, after which a job is run alone."""
CONVICTED_S = 600.0
"""How long a request is refused, and a strike remembered."""
TRIAL_STEPS = 16
"""Tokens that a job has to compute alone; then others may join it."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What is held against a job after a death."""

    strikes: int
    shared_deaths: int
    is_convicted: bool = False


@dataclass(slots=True)
class _Trial:
    job: str
    first_step: int | None = None
    """Of the worker's count, when the job began to decode."""


class Inquest:
    """The deaths of this host's workers, as far as requests are to blame."""

    def __init__(self) -> None:
        self._convicted: dict[str, float] = {}
        """By fingerprint: until when."""
        self._strikes: dict[str, tuple[int, float]] = {}
        """By fingerprint: how many, and until when they count."""
        self._trials: dict[str, _Trial] = {}
        """By device: the job that is to run there alone."""
        self._proven: set[str] = set()
        """Jobs that have come well through their trial, and still run."""

    @property
    def convicted(self) -> list[str]:
        """Return the fingerprints of requests that are refused."""
        return sorted(self._convicted)

    def is_convicted(self, job: Job) -> bool:
        """Say whether a job asks for what has ended workers."""
        return bool(self._convicted) and fingerprint(job) in self._convicted

    def blame(self, jobs: Sequence[Job], now: float) -> dict[str, Finding]:
        """Take the death of a worker that computed these jobs; return what is held against each now, by job."""
        jobs = [job for job in jobs if job.id not in self._proven] or jobs
        prints = {job.id: fingerprint(job) for job in jobs}
        is_alone = len(set(prints.values())) == 1
        known = {p: self._strikes.get(p, (0, 0.0))[0] for p in prints.values()}
        findings = {}
        for job in jobs:
            mark = prints[job.id]
            strikes = max(job.strikes, known[mark])
            if not is_alone:
                findings[job.id] = Finding(strikes, job.shared_deaths + 1)
                continue
            strikes += 1
            self._strikes[mark] = strikes, now + CONVICTED_S
            is_convicted = strikes + (job.shared_deaths >= SHARED_DEATHS) >= STRIKES
            if is_convicted:
                self._convicted[mark] = now + CONVICTED_S
            findings[job.id] = Finding(strikes, job.shared_deaths, is_convicted)
        return findings

    def expire(self, now: float) -> bool:
        """Forget what is long ago; say whether that changes what is refused."""
        self._strikes = {p: s for p, s in self._strikes.items() if s[1] > now}
        lapsed = [p for p, until in self._convicted.items() if until <= now]
        for mark in lapsed:
            del self._convicted[mark]
        return bool(lapsed)

    # Trials.

    def needs_trial(self, job: Job) -> bool:
        """Say whether a job may only run alone."""
        return job.shared_deaths >= SHARED_DEATHS

    def is_open(self, device: str, job: Job) -> bool:
        """Say whether a job may begin on a device: no other one is, or is about to be, alone there."""
        trial = self._trials.get(device)
        return trial is None or trial.job == job.id

    def is_alone(self, device: str, job: Job) -> bool:
        """Say whether a device is kept for this job."""
        trial = self._trials.get(device)
        return trial is not None and trial.job == job.id

    def reserve(self, devices: Iterable[str], job: Job) -> None:
        """Let nobody else begin on the first of these devices that is free for it, unless the job has one already."""
        if any(t.job == job.id for t in self._trials.values()):
            return
        device = next((d for d in devices if d not in self._trials), None)
        if device is not None:
            self._trials[device] = _Trial(job.id)

    def is_proven(self, job: Job) -> bool:
        """Say whether a job has come well through its trial, and still runs."""
        return job.id in self._proven

    def note_step(self, device: str, job: str | None, steps: int, *, is_decoding: bool) -> bool:
        """Take a worker's progress, while `job` runs there; True if a trial has ended well."""
        trial = self._trials.get(device)
        if trial is None or trial.job != job or not is_decoding:
            return False
        if trial.first_step is None:
            trial.first_step = steps
        if steps - trial.first_step < TRIAL_STEPS:
            return False
        self._proven.add(trial.job)
        del self._trials[device]
        return True

    def end(self, job: str) -> bool:
        """Take the end of a job, whatever it was; True if a device is open again."""
        self._proven.discard(job)
        held = [d for d, t in self._trials.items() if t.job == job]
        for device in held:
            del self._trials[device]
        return bool(held)

    def close_device(self, device: str) -> bool:
        """Take that a device does not serve any more; True if somebody had it to himself."""
        return self._trials.pop(device, None) is not None
