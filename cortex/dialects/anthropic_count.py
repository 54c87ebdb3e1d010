"""POST /v1/messages/count_tokens: how many tokens the prompt of a request would have."""

from typing import Any

from common.messages import RenderedItem
from cortex.dialects.anthropic_messages import AnthropicMessages
from cortex.dialects.question import Question


class AnthropicCount:
    """Implements question.Asking."""

    name = "anthropic_count_tokens"

    def __init__(self, messages: AnthropicMessages) -> None:
        self._messages = messages

    def read(self, body: bytes) -> Question:
        """Return the question in an HTTP body. Raises RequestError naming the field."""
        return Question(*self._messages.read_count(body))

    def write(self, item: RenderedItem) -> dict[str, Any]:
        """Return the reply."""
        return {"input_tokens": len(item.tokens)}
