"""What a gateway or neuronctl says to a supervisor."""

from typing import Literal

from common.catalogue import Defaults, Profile
from common.messages.base import Message, Part
from common.messages.jobs import Job, JobKey


class Eviction(Part, frozen=True, kw_only=True):
    """A gateway's eviction settings; a neuron's own win."""

    strategy: Literal["lru", "priority"] = "lru"
    defrag_after_cycles: int = 50


class Hello(Message, frozen=True, kw_only=True):
    """Opens a connection; answered with a full NodeState, or Refused."""

    version: tuple[int, int]
    incarnation: str
    role: Literal["gateway", "admin"]
    name: str = ""
    eviction: Eviction | None = None


class Beat(Message, frozen=True, kw_only=True):
    """A gateway is alive, and these are the jobs it still wants. Every second; 5 s of silence abort its jobs."""

    incarnation: str
    jobs: list[JobKey] = []


class Submit(Message, frozen=True, kw_only=True):
    """Jobs to run."""

    jobs: list[Job]
    profile: Profile | None = None
    """Of their model, where the sender has not seen the neuron tell of it."""


class Offer(Message, frozen=True, kw_only=True):
    """What the gateway's models file says, all of it; not answered: states tell which of the files are here.

    Said after the first state, and again when the file has changed.
    """

    profiles: list[Profile] = []
    defaults: Defaults = Defaults()
    """For models that nobody describes, which are found on disk."""


class Abort(Message, frozen=True, kw_only=True):
    """Jobs nobody waits for any more. Idempotent; overtakes queued work; not answered."""

    jobs: list[JobKey]


class Claim(Message, frozen=True, kw_only=True):
    """A gateway wants to load a model that nobody has on the neuron `choice`; answered with the first such claim."""

    request: str
    model: str
    """Of a further replica: the model's id, `#`, and the replica's number."""
    choice: str
    refused: list[str] = []
    """Neurons that cannot take it; a claim on record that names one of them is replaced."""


class Status(Message, frozen=True, kw_only=True):
    """Ask for the full NodeState and the running jobs."""

    request: str


class Discover(Message, frozen=True, kw_only=True):
    """Ask which devices there are, also those that are not served."""

    request: str


class Health(Message, frozen=True, kw_only=True):
    """Ask whether the neuron serves, and if not, why."""

    request: str


class Models(Message, frozen=True, kw_only=True):
    """Ask for the models this neuron serves or could serve."""

    request: str


class Effective(Message, frozen=True, kw_only=True):
    """Ask what a model runs with here, and why."""

    request: str
    model: str


class Version(Message, frozen=True, kw_only=True):
    """Ask for the versions of neuron, protocol and llama.cpp."""

    request: str


class Load(Message, frozen=True, kw_only=True):
    """Load a model; answered when it is loaded. `device` None: the device with the most free memory."""

    request: str
    model: str
    profile: Profile | None = None
    """The gateway's catalogue is the source; None: the neuron's own profile."""
    device: str | None = None
    may_evict: bool = True
    """False: load it only where nothing has to give way."""
    replace: bool = False
    """Where it is loaded: finish its jobs and load it anew, with the newest profile."""


class Unload(Message, frozen=True, kw_only=True):
    """Finish the model's jobs, then unload it; answered when it is gone. `device` None: every replica."""

    request: str
    model: str
    device: str | None = None


class Pin(Message, frozen=True, kw_only=True):
    """Never unload the model to make room. A later Unload is still obeyed."""

    request: str
    model: str


class Unpin(Message, frozen=True, kw_only=True):
    """End a pin, also one of the profile's until the neuron restarts."""

    request: str
    model: str


class ClearCache(Message, frozen=True, kw_only=True):
    """Forget KV that belongs to no running job. `model` None: all."""

    request: str
    model: str | None = None


class Memory(Message, frozen=True, kw_only=True):
    """Ask the workers themselves what they hold."""

    request: str


class Drain(Message, frozen=True, kw_only=True):
    """Take no new jobs: on a MODEL (then unload it), a DEVICE, or (target None) the NODE. Answered when empty."""

    request: str
    scope: Literal["model", "device", "node"]
    target: str | None = None


class Undrain(Message, frozen=True, kw_only=True):
    """End a drain."""

    request: str
    scope: Literal["model", "device", "node"]
    target: str | None = None


class Pause(Message, frozen=True, kw_only=True):
    """Finish a device's jobs, unload its models, end its worker and leave it alone, also after a restart of the neuron.

    Answered when the device is free.
    """

    request: str
    device: str
    for_s: float | None = None
    """None: until Resume."""


class Resume(Message, frozen=True, kw_only=True):
    """End a pause, and load again what the device held."""

    request: str
    device: str


class RestartWorker(Message, frozen=True, kw_only=True):
    """End the device's worker and start another; its models are loaded again. Running jobs fail, retriable."""

    request: str
    device: str


class ReadEvents(Message, frozen=True, kw_only=True):
    """Ask what has happened since an event. Only what is remembered comes back."""

    request: str
    since: int = 0
    """Cursor of the last event that is known."""


class CancelJobs(Message, frozen=True, kw_only=True):
    """End the jobs of one HTTP request with an error of their dialect."""

    request: str
    target: str
    """A request's id, or the beginning of a job's."""


class ReadLog(Message, frozen=True, kw_only=True):
    """Ask what a child has written to stderr, over all its lives."""

    request: str
    child: str
    """A device, for its worker; `prep`; or `probe`."""
    since: int = 0
    """Number of the last line that is known."""


class Join(Message, frozen=True, kw_only=True):
    """Who has been invited gives the key that it wants to be known by, as a gateway; answered with Done or Refused.

    Sent with the invitation's own key, which is good for this message, once.
    """

    request: str
    key: str
    """Public, 64 hexadecimal digits."""
    comment: str = ""
    """Whose it is; kept beside the key."""


ToNeuron = (
    Hello | Beat | Offer | Submit | Abort | Claim | Status | Discover | Health | Models | Effective | Version
    | Load | Unload | Pin | Unpin | ClearCache | Memory | Drain | Undrain | Pause | Resume | RestartWorker
    | ReadEvents | ReadLog | CancelJobs | Join
)  # fmt: skip
