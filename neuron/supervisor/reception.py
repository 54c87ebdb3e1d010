"""Who comes and goes: greets gateways and neuronctl, and takes back what a lost one has asked for."""

from common.errors import Code
from common.messages import PROTOCOL_VERSION, Hello, Refused
from neuron.supervisor.host import Host
from neuron.supervisor.placement import Placement
from neuron.supervisor.publisher import Publisher
from neuron.supervisor.withdrawal import Withdrawal


class Reception:
    """Keeps the list of peers."""

    def __init__(self, host: Host, publisher: Publisher, withdrawal: Withdrawal, placement: Placement) -> None:
        self._host = host
        self._publisher = publisher
        self._withdrawal = withdrawal
        self._placement = placement

    def greet(self, peer: str, hello: Hello) -> None:
        """Answer a Hello with the whole state, or refuse it by name."""
        host = self._host
        if hello.version[0] != PROTOCOL_VERSION[0]:
            ours, theirs = (".".join(map(str, v)) for v in (PROTOCOL_VERSION, hello.version))
            text = (
                f"{hello.role} '{hello.name}' speaks protocol {theirs}, this neuron {ours}; update the older of the two"
            )
            host.say("warning", "peer refused", why=text)
            host.tell(peer, Refused(code=Code.INVALID_VALUE, message=text))
        elif hello.incarnation != peer:
            text = "the routing id of a peer must be its incarnation"
            host.tell(peer, Refused(code=Code.INVALID_VALUE, message=text))
        else:
            if hello.role == "gateway":
                host.say("info", "gateway connected", name=hello.name, peer=peer[:8])
                self._note_advice(hello)
            self._publisher.introduce(peer)
            host.peers.greet(peer, hello.role, hello.name, host.now)

    def _note_advice(self, hello: Hello) -> None:
        host = self._host
        if hello.eviction is None or hello.eviction == host.advised:
            return
        if host.advised is not None:
            host.say("warning", "gateways disagree on eviction; the last one counts", name=hello.name)
        host.advised = hello.eviction

    def forget(self, peer: str, why: str) -> None:
        """Abort what a peer that is gone has asked for."""
        host = self._host
        known = host.peers.forget(peer)
        aborted = self._withdrawal.abort_all(peer)
        self._placement.wants.peer_lost(peer)
        if known is not None and known.role == "gateway":
            host.say("warning", "gateway lost", name=known.name, peer=peer[:8], why=why, jobs_aborted=aborted)
