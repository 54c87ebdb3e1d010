"""What an endpoint offers to the HTTP side that only asks for a prompt. Pure."""

from typing import Any, NamedTuple, Protocol

from common.messages import Chat, RenderedItem, Text, TokenIds


class Question(NamedTuple):
    """A prompt to be made."""

    model: str
    input: Chat | Text | TokenIds


class Asking(Protocol):
    """One endpoint's language."""

    name: str

    def read(self, body: bytes) -> Question:
        """Return the question in an HTTP body. Raises RequestError naming the field."""

    def write(self, item: RenderedItem) -> dict[str, Any]:
        """Return the reply."""
