"""What every dialect offers to the HTTP side. All of it is pure: bytes to a request, events to bytes."""

from typing import Protocol

import msgspec

from cortex.dialects.canonical import Generation
from cortex.fleet.contract import Events


class Heading(msgspec.Struct, frozen=True):
    """What a reply says about itself."""

    id: str
    """Random; the dialect puts its prefix before it."""
    model: str
    created: int
    """Seconds since 1970."""


class Stream(Protocol):
    """A reply that is sent as it comes."""

    @property
    def is_complete(self) -> bool:
        """Whether every job has ended well, and the stream's end has been returned."""

    @property
    def reasoning_tokens(self) -> int:
        """Tokens of its thoughts so far, a part of the answer's."""

    def feed(self, events: Events) -> bytes:
        """Return what is to be sent for these events; b"" if nothing."""

    def fail(self, envelope: bytes) -> bytes:
        """Return what is to be sent when the reply fails with this error; nothing may follow."""

    def ping(self) -> bytes:
        """Return what is to be sent in silence."""


class Body(Protocol):
    """A reply that is sent whole."""

    @property
    def is_complete(self) -> bool:
        """Whether every job has ended well."""

    @property
    def reasoning_tokens(self) -> int:
        """Tokens of its thoughts so far, a part of the answer's."""

    def feed(self, events: Events) -> None:
        """Take events."""

    def render(self) -> bytes:
        """Return the JSON, once complete."""


class Request(Protocol):
    """A request that has been read."""

    generation: Generation

    def stream(self, heading: Heading) -> Stream:
        """Return the empty stream of the reply."""

    def body(self, heading: Heading) -> Body:
        """Return the empty body of the reply."""


class Dialect(Protocol):
    """One endpoint's language."""

    name: str

    def read(self, body: bytes) -> Request:
        """Return the request in an HTTP body. Raises RequestError naming the field."""
