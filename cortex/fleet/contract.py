"""What the HTTP side may ask of the fleet.

A request becomes one Call of one or more jobs. The call hands out events until every job has ended, or raises once:

    not begun ──StartedItem──► running ──str…──► EndedItem
        │                         │
        └────── RequestError ◄────┘        then nothing more; the other jobs of the call are aborted

Whoever holds a Call closes it; closing aborts what still runs, and is idempotent.
"""

from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple, Protocol

import msgspec
from msgspec import Meta

from common.catalogue import Alias
from common.errors import Code, RequestError
from common.messages import EndedItem, Job, RenderedItem, StartedItem, TokenLogprob
from cortex.fleet.history import Happened
from cortex.fleet.record import Record


class Merged(str):
    """A piece of text of several tokens, or of none of its own."""

    __slots__ = ("tokens",)
    tokens: int

    def __new__(cls, text: str, tokens: int) -> "Merged":
        """Return the text with the number of its tokens, those included whose text had been held back."""
        made = super().__new__(cls, text)
        made.tokens = tokens
        return made


def tokens_of(text: str) -> int:
    """Return how many tokens a piece of text has."""
    return text.tokens if isinstance(text, Merged) else 1


class Told(NamedTuple):
    """A piece of text of a job that asks for log-probabilities, and those of the tokens it came with."""

    text: str
    """May be empty while half a character is held back."""
    logprobs: list[TokenLogprob]


Event = StartedItem | str | Told | EndedItem | RenderedItem
"""Of one job: begun; text, of one token unless it is Merged; the good end; that of one that asked for its prompt."""
Events = list[tuple[int, Event]]
"""With the index of the job in its call."""


class Health(msgspec.Struct, frozen=True):
    """ok; impaired: something does not serve; degraded: nothing does."""

    status: str
    reasons: list[str]


Verb = Literal["load", "unload", "pin", "unpin", "drain", "undrain", "pause", "resume", "restart"]


class Order(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is wanted, of which model, neuron, device. Without a neuron: of every one that it concerns."""

    model: str | None = None
    node: str | None = None
    device: str | None = None
    replace: bool = False
    """Of a load: also where it is loaded, with the newest profile."""
    for_s: Annotated[float, Meta(gt=0)] | None = None
    """Of a pause: it ends after so many seconds; None: when it is resumed."""


class Step(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one neuron says about an order; `done` and `refused` are its last word."""

    node: str
    state: Literal["progress", "done", "refused"]
    text: str
    fraction: float | None = None
    """0 to 1."""
    code: Code | None = None


class Errand(Protocol):
    """An order that has been given to one or several neurons."""

    @property
    def is_over(self) -> bool:
        """Whether every neuron's last word has been handed out."""

    async def next(self, timeout_s: float) -> Step | None:
        """Return what is said next; None after `timeout_s` of silence."""

    def close(self) -> None:
        """Listen no more. The neurons go on with what they were asked."""


class Call(Protocol):
    """The jobs of one request."""

    @property
    def record(self) -> Record:
        """What was measured so far."""

    @property
    def tokens(self) -> int:
        """Output tokens received so far, over all jobs."""

    @property
    def first_text_at(self) -> float | None:
        """When the first text came, on the event loop's clock."""

    async def next(self, timeout_s: float | None) -> Events:
        """Return everything that is ready, waiting for the first event; empty after `timeout_s` without any.

        Raises RequestError when a job has failed, after the events that came before.
        """

    def take(self) -> Events:
        """Return everything that is ready, without waiting. Raises as next() does."""

    def listen(self, on_ready: Callable[[], None] | None) -> None:
        """Have a function called when there is something to take, at most once in a turn of the loop; None: no more."""

    def waits_for(self) -> str | None:
        """Return why nothing has begun, for people: `queue 3`, `loading 40%`. None: it has, or nobody knows."""

    def fail(self, error: RequestError) -> None:
        """Abort what still runs; the reader gets the error."""

    def close(self) -> None:
        """Abort what still runs."""


class Fleet(Protocol):
    """All neurons, as the HTTP side sees them."""

    def resolve(self, model: str) -> tuple[str, Alias | None]:
        """Return the id behind a model's name or alias, and the alias if it says more. Raises RequestError."""

    def submit(self, jobs: list[Job]) -> Call:
        """Send the jobs of one request, all of one model, to a neuron. Raises RequestError where none can take them."""

    async def carry_out(self, verb: Verb, order: Order) -> Errand:
        """Ask the neurons that an admin's order concerns. Raises RequestError for one that makes no sense."""

    def models(self) -> list[dict[str, Any]]:
        """Return the entries of /v1/models."""

    def nodes(self) -> list[dict[str, Any]]:
        """Return every neuron with its link and its state."""

    def happened(self, since: int) -> list[Happened]:
        """Return the remembered lifecycle events after number `since`."""

    def health(self) -> Health:
        """Return whether the fleet serves, and if not, why."""
