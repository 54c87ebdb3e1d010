"""Claims on models that nobody has: every gateway process asks the same registrar, so all load on the same neuron."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from common.ids import digest, new_job_id
from common.messages import Claim, Claimed
from cortex.fleet.link import Link
from cortex.fleet.view import LinkState

log = logging.getLogger(__name__)

ANSWER_S = 1.0
"""A registrar that does not answer within this time is passed over."""

Then = Callable[[str], None]
"""What to do with the neuron that everybody agrees on."""


@dataclass(slots=True)
class _Pending:
    claim: Claim
    registrar: str
    asked_at: float
    then: list[Then]
    passed_over: set[str] = field(default_factory=set)


def registrars(up: list[str], model: str) -> list[str]:
    """Order the neurons that are connected by who keeps the record of a model's claims."""
    return sorted(up, key=lambda name: digest(f"registrar\0{model}\0{name}".encode()))


class Claims:
    """The claims of this gateway process that are not answered yet, one for each model and set of refusals."""

    def __init__(self, links: Mapping[str, Link], clock: Callable[[], float]) -> None:
        self._links = links
        self._clock = clock
        self._pending: dict[tuple[str, frozenset[str]], _Pending] = {}

    def ask(self, model: str, choice: str, refused: frozenset[str], then: Then) -> None:
        """Find out where `model` is to be loaded; `choice` is this process's own opinion.

        `then` is called with the neuron on record, or with `choice` if no registrar answers; perhaps at once.
        """
        pending = self._pending.get((model, refused))
        if pending is not None:
            pending.then.append(then)
            return
        claim = Claim(request=new_job_id(), model=model, choice=choice, refused=sorted(refused))
        pending = self._pending[model, refused] = _Pending(claim, "", 0.0, [then])
        self._send(pending)

    def answered(self, registrar: str, message: Claimed) -> None:
        """Take a registrar's answer; late ones are ignored."""
        for pending in list(self._pending.values()):
            if pending.claim.request == message.request and pending.registrar == registrar:
                # One that is known to be unable is never on a correct record; believing it would go round in circles.
                is_usable = message.choice not in pending.claim.refused
                self._settle(pending, message.choice if is_usable else pending.claim.choice)

    def tick(self) -> None:
        """Pass over registrars that do not answer or are not connected any more."""
        now = self._clock()
        for pending in list(self._pending.values()):
            is_up = self._links[pending.registrar].node.link is LinkState.UP
            if not is_up or now - pending.asked_at > ANSWER_S:
                log.warning("neuron %s does not answer a claim on %s", pending.registrar, pending.claim.model)
                self._send(pending)

    def _send(self, pending: _Pending) -> None:
        up = [n for n, link in self._links.items() if link.node.link is LinkState.UP and n not in pending.passed_over]
        for name in registrars(up, pending.claim.model):
            pending.passed_over.add(name)
            if self._links[name].claim(pending.claim):
                pending.registrar, pending.asked_at = name, self._clock()
                return
        self._settle(pending, pending.claim.choice)

    def _settle(self, pending: _Pending, choice: str) -> None:
        del self._pending[pending.claim.model, frozenset(pending.claim.refused)]
        for then in pending.then:
            then(choice)
