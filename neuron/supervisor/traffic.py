"""The way of a job through this host: accepted, prepared, queued, running, ended. Each ends in exactly one message."""

from collections.abc import Collection

from msgspec import structs

from common.errors import Code, overflow
from common.messages import (
    AbortTasks,
    Ended,
    Failed,
    FailedItem,
    Job,
    Prepare,
    Prepared,
    Rendered,
    RenderedItem,
    Run,
    Started,
    StartedItem,
    Task,
)
from neuron.broker.failures import failure, poisoned
from neuron.broker.jobs import Entry
from neuron.memory.residency import Model, Replica
from neuron.supervisor.host import Host
from neuron.supervisor.inspection import Inspection
from neuron.supervisor.placement import Placement
from neuron.supervisor.states import State

PREPARATIONS = 2
"""A job that takes the prep process with it so often is refused."""
PREP_STALL_S = 10.0
"""One job may keep prep busy for so long; rendering itself is limited to less."""


class Traffic:
    """Moves jobs on, and decides which device runs each."""

    def __init__(self, host: Host, inspection: Inspection, placement: Placement) -> None:
        self._host = host
        self._inspection = inspection
        self._placement = placement

    def submit(self, peer: str, jobs: list[Job]) -> None:
        """Accept jobs, or refuse each by name."""
        for job in jobs:
            job = structs.replace(job, model=self._host.aliases.get(job.model, job.model))
            known = self._host.jobs.find(job.id)
            if known is not None:
                if known.gateway != peer or known.job.attempt >= job.attempt:
                    self._host.say("warning", "job submitted twice", job=job.id, request_id=job.request_id)
                    continue
                self.abort(known)
            refusal = self._refusal(job)
            if refusal is not None:
                self._host.tell(peer, Failed(items=[refusal]))
                continue
            self._advance(self._host.jobs.add(peer, job, self._host.now))
            self._host.is_dirty = True

    def _refusal(self, job: Job) -> FailedItem | None:
        host = self._host
        model = host.models.get(job.model)
        if host.stopping or host.draining:
            return failure(job, Code.SHUTTING_DOWN, "this neuron takes no new work", retriable=True)
        if model is None:
            return failure(job, Code.MODEL_NOT_FOUND, f"model '{job.model}' is not known here", param="model")
        if model.draining:
            return failure(job, Code.MODEL_UNLOADED, f"model '{model.id}' is being drained here", retriable=True)
        if host.inquest.is_convicted(job):
            return poisoned(job)
        queued = host.jobs.waiting(model.id)
        if not host.jobs.may_wait(model.id, job.principal, host.settings.queue_limit, job.priority):
            slots = max(1, len(model.replicas)) * model.profile.parallel
            wait_ms = host.pace.queue_wait_ms(model.id, queued, slots, is_loaded=model.status == "loaded")
            return failure(job, Code.BUSY, f"{queued} requests are waiting for model '{model.id}'", retriable=True,
                            retry_after_ms=wait_ms)  # fmt: skip
        return None

    def _model(self, entry: Entry) -> Model:
        return self._host.models[entry.job.model]

    def _advance(self, entry: Entry) -> None:
        """Take a waiting job to prep as soon as its model's file has been inspected."""
        model = self._model(entry)
        if model.fault is not None and not self._inspection.is_fault_fresh(model):
            self._inspection.look_again(model)
        if model.fault is not None:
            self.fail(entry, Code.MODEL_LOADING_FAILED, f"model '{model.id}' cannot be loaded: {model.fault}")
        elif model.facts is None:
            self._inspection.inspect(model)
        elif self._host.prep.state is State.READY:
            self._prepare(entry, model)

    def _prepare(self, entry: Entry, model: Model) -> None:
        assert model.path is not None
        assert model.facts is not None
        context = model.facts.context_train if model.plan is None else model.plan.context
        if model.plan is None and entry.job.answer == "generated":
            self.fail(
                entry, Code.NO_CAPACITY, f"model '{model.id}' cannot be held here: {model.shortfall}", retriable=True
            )
            return
        if not any(e.state == "preparing" for e in self._host.jobs.entries()):
            self._host.prep.note_progress(self._host.now)  # prep was idle: its silence counts from here
        entry.state = "preparing"
        entry.preparations += 1
        profile = model.profile
        order = Prepare(
            job=entry.job, path=model.path, context=context, engine=profile.engine, sampling=profile.sampling
        )
        self._host.tell_prep(order)

    def inspection_ended(self, model: Model) -> None:
        """Move the jobs on that waited for the model's file."""
        for entry in self._host.jobs.of_model(model.id):
            if entry.state == "waiting":
                self._advance(entry)
        if model.fault is not None and not model.is_coming():
            text = f"model '{model.id}' cannot be loaded: {model.fault}"
            self.fail_waiting(model, Code.MODEL_LOADING_FAILED, text)

    def prep_came_up(self) -> None:
        """Give a new prep process everything that is to be prepared."""
        for entry in self._host.jobs.entries():
            if entry.state == "waiting" and self._model(entry).facts is not None:
                self._advance(entry)

    def prep_died(self) -> None:
        """Take back what prep had; the job it was at is refused if it has killed prep before."""
        at_work = [e for e in self._host.jobs.entries() if e.state == "preparing"]
        for entry in at_work:
            entry.state = "waiting"
        if at_work:
            culprit, *others = at_work  # prep answers in order, so it died with the oldest
            for entry in others:
                entry.preparations -= 1
            if culprit.preparations >= PREPARATIONS:
                self.fail(culprit, Code.TEMPLATE_FAILED, "rendering this request ended the helper process twice")

    def is_prep_stalled(self) -> bool:
        """Say whether prep owes an answer for too long."""
        owes = any(e.state == "preparing" for e in self._host.jobs.entries())
        return owes and self._host.now - self._host.prep.seen_at > PREP_STALL_S

    def prepared(self, message: Prepared) -> None:
        """Queue a prepared job and see to it that its model is coming."""
        entry = self._preparing(message.job, message.attempt)
        if entry is None:
            return
        entry.prepared = message
        self._host.jobs.enqueue(entry)
        model = self._model(entry)
        if not model.is_coming() and model.id not in self._host.leaving:
            error = self._placement.summon(model)
            if error is not None:
                self.fail(entry, error[0], error[1], retriable=True)
                return
        self.dispatch(model)

    def rendered(self, item: RenderedItem) -> None:
        """End a job that only asked for its prompt."""
        entry = self._preparing(item.job, item.attempt)
        if entry is not None:
            self._end(entry)
            self._host.tell(entry.gateway, Rendered(items=[item]))

    def preparation_failed(self, item: FailedItem) -> None:
        """End a job that prep refuses."""
        entry = self._preparing(item.job, item.attempt)
        if entry is not None:
            self._end(entry)
            self._host.tell(entry.gateway, Failed(items=[item]))

    def _preparing(self, job: str, attempt: int) -> Entry | None:
        entry = self._host.jobs.find(job)
        if entry is None or entry.job.attempt != attempt or entry.state != "preparing":
            return None
        return entry

    def dispatch(self, model: Model) -> None:
        """Give free slots to the queue's first jobs, where their prefix is, else with the fewest running."""
        host = self._host
        while (entry := host.jobs.next(model.id, model.unload_barrier)) is not None:
            free = [
                r
                for r in model.serving()
                if r.running < r.plan.parallel
                and host.worker(r.device).state is State.READY
                and not host.is_held(r.device)
                and host.inquest.is_open(host.owner(r.device), entry.job)
            ]
            if host.inquest.needs_trial(entry.job):
                owners = {host.owner(r.device): r for r in model.serving()}
                host.inquest.reserve(owners, entry.job)
                alone = [o for o in owners if host.inquest.is_alone(o, entry.job) and not self._unproven(o)]
                free = [r for r in free if host.owner(r.device) in alone]
            if not free:
                return
            chain = entry.job.prefix_chain
            self._run(entry, min(free, key=lambda r: (-r.prefixes.match(chain), r.running)))

    def _run(self, entry: Entry, replica: Replica) -> None:
        host, prepared = self._host, entry.prepared
        assert prepared is not None
        longest = max(map(len, prepared.texts), default=len(prepared.tokens))
        room = replica.plan.context - longest + bool(prepared.texts)  # a vector needs no token more
        if room < 1:
            # The model's context was cut to what fits when it was loaded, after this prompt had been checked.
            error = overflow(f"{longest}", replica.plan.context)
            self.fail(entry, error.code, error.message)
            return
        max_tokens = min(prepared.max_tokens, room)
        host.jobs.run(entry, replica.device, host.now)
        replica.running += 1
        replica.used_at = host.now
        replica.prefixes.add(entry.job.prefix_chain)
        host.is_dirty = True
        started = StartedItem(
            job=entry.job.id,
            attempt=entry.job.attempt,
            prompt_tokens=len(prepared.tokens) + sum(map(len, prepared.texts)),
            max_tokens=max_tokens,
            vocab_fingerprint=prepared.vocab_fingerprint,
            resumed=len(prepared.resume_tokens),
            format=prepared.format,
            thinking_open=prepared.thinking_open,
        )
        task = Task(
            job=entry.job.id,
            attempt=entry.job.attempt,
            gateway=entry.gateway,
            model=self._model(entry).id,
            request_id=entry.job.request_id,
            tokens=prepared.tokens,
            texts=prepared.texts,
            resume_tokens=prepared.resume_tokens,
            sampling=prepared.sampling or entry.job.sampling,
            constraint=prepared.constraint,
            logprobs=entry.job.logprobs,
            max_tokens=max_tokens,
            shown=prepared.shown,
            queue_ms=(host.now - entry.accepted_at) * 1000,
            started=started,
        )
        host.tell_worker(replica.device, Run(tasks=[task]))

    def worker_said(self, owner: str, gateway: str, message: Started | Ended | Failed) -> None:
        """Relay what a worker tells a gateway of jobs that are still on; count the ends."""
        current = [
            (entry, item)
            for item in message.items
            if (entry := self._host.jobs.find_of(gateway, item.job)) is not None
            and entry.job.attempt == item.attempt
            and entry.device is not None
            and self._host.owner(entry.device) == owner
        ]
        if isinstance(message, Started):
            for entry, _ in current:
                entry.deadline = None
        else:
            for entry, _ in current:
                self._host.pace.note_service(self._model(entry).id, self._host.now - entry.run_at)
                self._end(entry)
        if len(current) == len(message.items):
            self._host.tell(gateway, message)
        elif current:
            self._host.tell(gateway, structs.replace(message, items=[item for _, item in current]))

    def _end(self, entry: Entry) -> None:
        """Strike the job out, and give its slot to the next."""
        host = self._host
        host.jobs.remove(entry)
        host.is_dirty = True
        if entry.device is not None:
            model = self._model(entry)
            replica = model.replicas.get(entry.device)
            if replica is not None and replica.running > 0:
                replica.running -= 1
                replica.used_at, replica.has_served = host.now, True
            self.dispatch(model)
        if host.inquest.end(entry.job.id):
            self._dispatch_all()

    def _dispatch_all(self) -> None:
        for model in self._host.models.values():
            if model.replicas:
                self.dispatch(model)

    def _running_at(self, owner: str) -> list[Entry]:
        """Return the jobs that a worker runs."""
        return [e for device in self._host.members(owner) for e in self._host.jobs.running_on(device)]

    def _unproven(self, owner: str) -> list[Entry]:
        """Return the running jobs that a worker's death would leave in doubt."""
        return [e for e in self._running_at(owner) if not self._host.inquest.is_proven(e.job)]

    def note_step(self, owner: str, steps: int, phase: str) -> None:
        """Take a worker's progress: a job that had to run alone may have shown that it computes."""
        running = self._unproven(owner)
        job = running[0].job.id if len(running) == 1 else None
        if self._host.inquest.note_step(owner, job, steps, is_decoding=phase == "decode"):
            self._dispatch_all()

    def fail(
        self, entry: Entry, code: Code, message: str, *, retriable: bool = False, retry_after_ms: int | None = None
    ) -> None:
        """End a job with an error."""
        self._end(entry)
        item = failure(entry.job, code, message, retriable=retriable, retry_after_ms=retry_after_ms)
        self._host.tell(entry.gateway, Failed(items=[item]))

    def cut(self, entry: Entry, code: Code, message: str, *, retriable: bool = False) -> None:
        """End a job that may be running with an error."""
        self._stop_running(entry)
        self.fail(entry, code, message, retriable=retriable)

    def abort(self, entry: Entry) -> None:
        """End a job nobody waits for, without a word."""
        self._stop_running(entry)
        self._end(entry)

    def _stop_running(self, entry: Entry) -> None:
        """Have the worker drop the job, before its slot goes to the next: a worker takes its messages in order."""
        if entry.device is not None and self._host.worker(entry.device).is_alive:
            self._host.tell_worker(entry.device, AbortTasks(jobs=[entry.key]))

    def worker_died(self, owner: str, cause: str, named: Collection[str]) -> None:
        """End the jobs that had a slot there; `named` are those whose computation has ended it.

        Queued ones wait for the worker's return, but for what has just been found out to end workers.
        """
        host = self._host
        ended = self._running_at(owner)
        findings = host.inquest.blame([e.job for e in ended if e.job.id in named], host.now)
        for entry in ended:
            found = findings.get(entry.job.id)
            if found is None or not found.is_convicted:
                text = f"the worker of {owner} ended ({cause})"
                item = failure(entry.job, Code.WORKER_DIED, text, retriable=True, found=found)
            else:
                item = poisoned(entry.job)
                host.say("error", "request is refused: it ends workers", job=entry.job.id, device=owner,
                         request_id=entry.job.request_id)  # fmt: skip
            self._end(entry)
            host.tell(entry.gateway, Failed(items=[item]))
        if any(f.is_convicted for f in findings.values()):
            for entry in [e for e in host.jobs.entries() if host.inquest.is_convicted(e.job)]:
                self._stop_running(entry)
                self._end(entry)
                host.tell(entry.gateway, Failed(items=[poisoned(entry.job)]))
        if host.inquest.close_device(owner):
            self._dispatch_all()

    def settle(self, model: Model) -> None:
        """Unload the leaving replicas whose last job has ended; afterwards serve what has come since."""
        barrier = model.unload_barrier
        awaited = barrier is not None and self._host.jobs.next(model.id, barrier) is not None
        for replica in list(model.replicas.values()):
            if replica.leaving and replica.status == "loaded" and replica.running == 0 and not awaited:
                self._placement.begin_unload(model, replica.device)
        if not any(r.leaving for r in model.replicas.values()):
            model.unload_barrier = None
            self._host.leaving.discard(model.id)
            self.replica_lost(model)

    def replica_lost(self, model: Model) -> None:
        """Find another device for queued jobs whose model lost a replica for good, or end them."""
        if model.is_coming():
            self.dispatch(model)
            return
        if not self._host.jobs.queue(model.id):
            return
        error = self._placement.summon(model)
        if error is not None:
            self.fail_waiting(model, *error)

    def fail_waiting(self, model: Model, code: Code, message: str) -> None:
        """End a model's queued jobs: no replica is coming."""
        host, retry_after_ms = self._host, None
        if code is Code.NO_CAPACITY:
            retry_after_ms = host.pace.room_wait_ms(model.id, [m for m in host.models if host.jobs.running(m)])
        for entry in host.jobs.queue(model.id):
            retriable = code is not Code.MODEL_LOADING_FAILED
            self.fail(entry, code, message, retriable=retriable, retry_after_ms=retry_after_ms)

    def sweep(self) -> None:
        """End the jobs whose budget has run out before their first output."""
        for entry in self._host.jobs.entries():
            if entry.deadline is not None and self._host.now > entry.deadline:
                state, budget_ms = entry.state, entry.job.budget_ms or 0
                self._stop_running(entry)
                self.fail(
                    entry, Code.DEADLINE_EXCEEDED, f"still {state} after {budget_ms / 1000:g} s{self._why(entry)}"
                )

    def _why(self, entry: Entry) -> str:
        """Return what a job has waited for, where that is not its turn."""
        fetching = self._model(entry).fetching
        return "" if fetching is None else f": the model's file is being fetched, {fetching:.0%} have come"

    def fail_all(self, code: Code, message: str) -> None:
        """End every job, retriable: a replica elsewhere can take it."""
        # Running ones last: a slot that falls free must not go to a job that is about to be failed.
        for entry in sorted(self._host.jobs.entries(), key=lambda e: e.state == "running"):
            self.cut(entry, code, message, retriable=True)
