"""What every dialect offers to the HTTP side. All of it is pure: bytes to a request, events to bytes."""

from typing import Any, Protocol

from common.errors import RequestError
from cortex.dialects.canonical import Generation
from cortex.fleet.contract import Events


class Reply(Protocol):
    """The reply to one request, fed with its events in order."""

    @property
    def is_complete(self) -> bool:
        """Whether every job has ended well."""

    def feed(self, events: Events) -> bytes:
        """Take events; return what a stream sends for them, its end included once all jobs have ended."""

    def body(self) -> bytes:
        """Return the whole reply as JSON, once it is complete."""

    def error(self, error: RequestError) -> bytes:
        """Return what a stream sends when it fails; nothing may follow."""


class Dialect(Protocol):
    """One endpoint's language."""

    name: str

    def read(self, body: bytes) -> tuple[Any, Generation]:
        """Return the request as its dialect has it, and what it wants. Raises RequestError naming the field."""

    def reply(self, request: Any, generation: Generation, *, id: str, model: str, created: int) -> Reply:
        """Return an empty reply. `id`: random part of the reply's id; `created`: seconds since 1970."""
