"""Replies that are one job's end, and are never streamed."""

from common.messages import EndedItem
from cortex.dialects.canonical import Generation
from cortex.dialects.contract import Heading, Stream
from cortex.fleet.contract import Events


class WholeRequest:
    """A request whose reply cannot be streamed."""

    generation: Generation

    def stream(self, heading: Heading) -> Stream:
        """Never be asked: `is_stream` is never set."""
        raise AssertionError("this reply is not streamed")


class SingleBody:
    """Waits for the end."""

    reasoning_tokens = 0
    """All text is the answer's."""

    def __init__(self, heading: Heading) -> None:
        self._heading = heading
        self._end: EndedItem | None = None

    @property
    def is_complete(self) -> bool:
        """Whether the job has ended well."""
        return self._end is not None

    def feed(self, events: Events) -> None:
        """Take events."""
        for _, event in events:
            if isinstance(event, EndedItem):
                self._end = event

    def render(self) -> bytes:
        """Return the JSON, once complete."""
        assert self._end is not None
        return self.write(self._heading, self._end)

    def write(self, heading: Heading, item: EndedItem) -> bytes:
        """Return the JSON of a reply."""
        raise NotImplementedError
