"""The connection of this gateway process to one neuron: Hello, Beat, and whether anybody answers.

The neuron pushes its state only when something changes, so a silent one is asked for its health; whatever it says is a
sign of life. Three seconds without one make it suspect (no new work), six lose it: by then its lease on this gateway's
jobs has run out too.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Protocol

import zmq

from common.catalogue import Profile
from common.codec import decode_from_neuron, encode
from common.endpoint import Endpoint
from common.errors import Code, ProtocolError, RequestError
from common.ids import new_job_id
from common.keys import Credentials
from common.log import fields
from common.messages import (
    PROTOCOL_VERSION,
    Abort,
    Beat,
    Claim,
    Claimed,
    Done,
    Ended,
    Eviction,
    Failed,
    FromNeuron,
    Health,
    Hello,
    HelloWanted,
    Job,
    JobKey,
    Load,
    NodeState,
    Offer,
    Progress,
    Refused,
    Rendered,
    Started,
    Submit,
    Tokens,
    ToNeuron,
)
from cortex.fleet.connection import Connection
from cortex.fleet.history import History
from cortex.fleet.view import Applied, LinkState, Node

log = logging.getLogger(__name__)

BEAT_S = 1.0
HELLO_S = 1.0
"""Between Hellos that are not answered."""
REFUSED_S = 5.0
"""Between Hellos to a neuron that speaks another protocol: it may be updated."""
CUT_TICKS = 2
"""Looks at a connection that takes nothing, a quarter of a second apart, until it counts as cut."""
QUIET_S = 1.0
"""After this much silence the neuron is asked for its health."""
SUSPECT_S = 3.0
LOST_S = 6.0
COMPLAINT_S = 5.0
"""Undecodable frames are logged no more often than this."""

Answer = Progress | Done | Refused
JobEvent = Started | Tokens | Ended | Failed | Rendered


class Jobs(Protocol):
    """Whose jobs the link carries."""

    def live(self, node: str) -> list[JobKey]:
        """Return the jobs that are to run on this neuron."""

    def handle(self, node: str, event: JobEvent) -> None:
        """Take events of jobs from this neuron."""

    def suspect(self, node: str, message: str) -> None:
        """Take the jobs on this neuron elsewhere where that costs nothing."""

    def lose(self, node: str, message: str) -> None:
        """Give up all jobs on this neuron."""

    def learn(self, node: Node, state: NodeState) -> None:
        """Take note of a state that has been applied."""

    def claimed(self, node: str, message: Claimed) -> None:
        """Take this neuron's answer to a claim."""


class Link:
    """One DEALER, and what is known of the neuron at its other end."""

    def __init__(
        self,
        name: str,
        endpoint: Endpoint,
        *,
        incarnation: str,
        eviction: Eviction,
        jobs: Jobs,
        clock: Callable[[], float],
        history: History,
        credentials: Sequence[Credentials] = (),
    ) -> None:
        """`incarnation`: of this gateway process. `clock`: monotonic seconds. `credentials`: none is plain text."""
        self.node = Node(name, str(endpoint))
        self.greetings = 0
        """Hellos that were answered; what was told after an earlier one may be forgotten."""
        self.undecodable = 0
        """Frames that were no messages."""
        self._hello = Hello(
            version=PROTOCOL_VERSION, incarnation=incarnation, role="gateway", name="cortex", eviction=eviction
        )
        self._jobs = jobs
        self._history = history
        self._clock = clock
        self._connection = Connection(name, endpoint.zmq, incarnation, self._receive, clock, credentials)
        self._is_greeted = False
        """A full state has answered the last Hello."""
        self._is_name_checked = False
        self._unwritable = 0
        """Looks in a row at a connection that would take nothing."""
        self._is_absence_told = False
        self._opened_at = self._heard_at = clock()
        self._hello_at = self._beat_at = self._complained_at = -1e9
        self._loads: dict[str, str] = {}
        """Loads that are not answered: request id → model."""
        self._questions: dict[str, Callable[[Answer], None]] = {}
        """Admin requests that are not answered: request id → who listens."""

    def open(self, context: "zmq.Context[zmq.Socket[bytes]]") -> None:
        """Connect; tick() does the rest."""
        self._opened_at = self._heard_at = self._clock()
        self._connection.open(context)

    def adopt_keys(self, credentials: Sequence[Credentials]) -> None:
        """Take other keys of the neuron."""
        if not self._connection.adopt(credentials) and self._is_greeted:
            self._cut()

    def close(self) -> None:
        """Tell the neuron that nothing is wanted any more, and disconnect."""
        if self._is_greeted:
            self._send(Beat(incarnation=self._hello.incarnation))
        self._connection.close()

    def tick(self) -> None:
        """Say what is due, and judge the silence. To be called a few times a second."""
        now, node = self._clock(), self.node
        if not self._is_greeted:
            wait_s = REFUSED_S if node.link is LinkState.REFUSED else HELLO_S
            if now - self._hello_at >= wait_s:
                if self._send(self._hello):
                    self._hello_at = now
                else:
                    self._explain_silence(self._connection.retry())
            if not node.is_known and not self._is_absence_told and now - self._opened_at >= HELLO_S:
                self._is_absence_told = True
                log.warning("neuron %s at %s does not answer; waiting for it", node.name, node.endpoint)
        elif now - self._beat_at >= BEAT_S:
            self._beat_at = now
            if not self._send(Beat(incarnation=self._hello.incarnation, jobs=self._jobs.live(node.name))):
                self._cut()
            elif now - self._heard_at >= QUIET_S:
                self._send(Health(request=new_job_id()))
        if self._is_greeted and self._connection.is_open:
            self._unwritable = 0 if self._connection.can_send() else self._unwritable + 1
            if self._unwritable >= CUT_TICKS:
                self._cut()
        silence_s = now - self._heard_at
        if silence_s >= LOST_S and node.link in (LinkState.UP, LinkState.SUSPECT):
            self._lose(f"silent for {silence_s:.0f} s")
        elif silence_s >= SUSPECT_S:
            self._suspect(f"silent for {silence_s:.1f} s")

    def _explain_silence(self, error: str | None) -> None:
        """Tell a neuron with which no handshake succeeds from one that is not there."""
        if error is not None and error != self.node.error:
            self.node.error = error
            log.error("neuron %s at %s cannot be spoken to: %s", self.node.name, self.node.endpoint, error)

    def submit(self, jobs: list[Job], profile: Profile | None = None) -> bool:
        """Send jobs of one model; False if the connection takes none now. Raises RequestError for unsendable ones.

        `profile`: the model's, for a neuron that may not know it.
        """
        try:
            is_sent = self._send(Submit(jobs=jobs, profile=profile))
        except (OverflowError, RecursionError):
            raise RequestError(
                Code.INVALID_VALUE,
                "messages: a number is larger than 64 bits, or the nesting is too deep",
                param="messages",
            ) from None
        if is_sent:
            self.node.note_sent(jobs[0].model, len(jobs))
        return is_sent

    def abort(self, keys: list[JobKey]) -> None:
        """Tell that nobody waits for these jobs. If this gets lost, the next Beat tells it by not listing them."""
        self._send(Abort(jobs=keys))

    def ask_load(self, model: str, profile: Profile | None, memory_mb: int | None, *, may_evict: bool = True) -> None:
        """Have the neuron load a model unless it has been asked already; jobs sent afterwards wait for it there.

        `memory_mb`: what the load is expected to take; counted until the neuron says what it takes.
        """
        if model not in self._loads.values():
            request = new_job_id()
            if self._send(Load(request=request, model=model, profile=profile, may_evict=may_evict)):
                self._loads[request] = model
                self.node.note_load(model, memory_mb or 0)

    def offer(self, offer: Offer) -> bool:
        """Tell what the models file says; False if that cannot be sent now."""
        return self._is_greeted and self._send(offer)

    def claim(self, claim: Claim) -> bool:
        """Send a claim; False if the connection takes nothing now."""
        return self._send(claim)

    def ask(self, message: ToNeuron, request: str, listener: Callable[[Answer], None]) -> bool:
        """Send an admin request, whose Progress and one Done or Refused go to `listener`; False if it cannot be sent.

        A connection that is lost answers for the neuron.
        """
        is_sent = self._is_greeted and self._send(message)
        if is_sent:
            self._questions[request] = listener
        return is_sent

    def forget(self, request: str) -> None:
        """Listen no more for the answer to an admin request, which the neuron still carries out."""
        self._questions.pop(request, None)

    def _give_up(self, why: str) -> None:
        """Answer all that the neuron can no longer be expected to answer."""
        for model in self._loads.values():
            self.node.forget_load(model)
        self._loads.clear()
        questions, self._questions = self._questions, {}
        for request, listener in questions.items():
            listener(Refused(request=request, code=Code.NEURON_LOST, message=why))
        self._jobs.lose(self.node.name, why)

    def _send(self, message: ToNeuron) -> bool:
        return self._connection.send(encode(message))

    def _receive(self, frames: list[bytes]) -> None:
        try:
            if len(frames) != 1:
                raise ProtocolError(f"{len(frames)} frames instead of one")
            message = decode_from_neuron(frames[0])
        except ProtocolError as error:
            self._complain(error)
            return
        self._heard_at = self._clock()
        self.node.is_cut = False
        self._handle(message)
        if self._is_greeted and self.node.link is not LinkState.UP:
            log.info("neuron %s is back", self.node.name)
            self._history.note(self.node.name, "info", "neuron is back")
            self.node.link, self.node.error = LinkState.UP, None
            self.node.missing_since = None

    def _handle(self, message: FromNeuron) -> None:
        match message:
            case Tokens() | Started() | Ended() | Failed() | Rendered():
                self._jobs.handle(self.node.name, message)
            case NodeState():
                self._apply(message)
            case HelloWanted():
                self._say_hello()
            case Refused(request=None):
                self._refuse(message.message)
            case Claimed():
                self._jobs.claimed(self.node.name, message)
            case Done() | Refused() | Progress():
                self._answered(message)
            case _:
                pass  # an answer to Health: a sign of life

    def _answered(self, message: Answer) -> None:
        request = message.request
        assert request is not None
        listener = self._questions.get(request)
        if listener is not None:
            if not isinstance(message, Progress):
                del self._questions[request]
            listener(message)
        elif not isinstance(message, Progress):
            model = self._loads.pop(request, None)
            if model is not None and isinstance(message, Refused):
                self.node.forget_load(model)
                log.warning("neuron %s does not load %s: %s", self.node.name, model, message.message)

    def _say_hello(self) -> None:
        self._is_greeted = False
        if self._send(self._hello):
            self._hello_at = self._clock()

    def _apply(self, state: NodeState) -> None:
        node = self.node
        applied = node.apply(state)
        if applied is Applied.GAP:
            if self._is_greeted:
                self._say_hello()
            return
        if state.full and not self._is_greeted:
            self._is_greeted = True
            self.greetings += 1
            self._connection.settle()
        if applied is not Applied.LATE:
            self._jobs.learn(node, state)
            self._history.learn(node.name, state)
        if applied is Applied.REBORN:
            log.warning("neuron %s was restarted", node.name)
            self._history.note(node.name, "warning", "neuron was restarted")
            self._give_up(f"neuron {node.name} was restarted")
        elif self._loads:
            # Answered or not: a Done may have been lost in a cut.
            self._loads = {
                r: m for r, m in self._loads.items() if m not in node.models or node.models[m].status != "loaded"
            }
        if applied in (Applied.FIRST, Applied.REBORN):
            self._introduce(state)

    def _introduce(self, state: NodeState) -> None:
        node = self.node
        node.link, node.error, node.missing_since = LinkState.UP, None, None
        log.info(
            "neuron %s at %s answers", node.name, node.endpoint,
            extra=fields(version=state.version, devices=len(state.devices), models=len(state.models)),
        )  # fmt: skip
        if state.name != node.name and not self._is_name_checked:
            log.warning("neuron %s calls itself %s; the configured name is used", node.name, state.name)
        self._is_name_checked = True

    def _refuse(self, why: str) -> None:
        node = self.node
        is_news = node.link is not LinkState.REFUSED
        self._is_greeted = False
        self._hello_at = self._clock()
        # Before its jobs are given up, which else would be sent to it again.
        node.link, node.error = LinkState.REFUSED, why
        if is_news:
            log.error("neuron %s at %s refuses this gateway: %s", node.name, node.endpoint, why)
            self._history.note(node.name, "error", "neuron refuses this gateway", why)
            self._give_up(f"neuron {node.name} refuses this gateway")

    def _cut(self) -> None:
        """Take that the connection is gone: the next one is opened with Hello, whoever is at its other end."""
        self.node.is_cut = True
        self._is_greeted = False
        self._suspect("the connection is cut")

    def _suspect(self, why: str) -> None:
        if self.node.link is LinkState.UP:
            log.warning("neuron %s is suspect: %s; it gets no new work", self.node.name, why)
            self._history.note(self.node.name, "warning", "neuron is suspect; it gets no new work", why)
            self.node.link, self.node.missing_since = LinkState.SUSPECT, self._clock()
            self._jobs.suspect(self.node.name, f"neuron {self.node.name} is suspect: {why}")

    def _lose(self, why: str) -> None:
        node = self.node
        log.error("neuron %s is lost: %s", node.name, why)
        self._history.note(node.name, "error", "neuron is lost", why)
        node.link, node.missing_since = LinkState.DOWN, node.missing_since or self._clock()
        self._is_greeted = False
        self._give_up(f"neuron {node.name} is lost: {why}")

    def _complain(self, error: ProtocolError) -> None:
        self.undecodable += 1
        now = self._clock()
        if now - self._complained_at > COMPLAINT_S:
            self._complained_at = now
            log.warning("undecodable frame from neuron %s: %s (%d so far)", self.node.name, error, self.undecodable)
