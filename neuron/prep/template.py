"""The model's own chat template, rendered as its authors meant it: nothing added, merged, trimmed or reordered."""

from typing import Any

from jinja2 import Template
from jinja2.exceptions import SecurityError

from common.errors import Code, RequestError
from neuron.prep.sandbox import MEMORY_MB, Environment, limited

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""Used where the file has no template, as llama.cpp does."""
RESERVED = frozenset({"messages", "tools"})
"""What the request has fields for."""


class ChatTemplate:
    """A compiled template."""

    def __init__(self, source: str | None, *, bos: str, eos: str) -> None:
        """Raises RequestError(template_failed) for a template that does not compile."""
        self._special = {"bos_token": bos, "eos_token": eos}
        try:
            with limited():  # constants are computed here already
                self._template: Template = Environment().from_string(source or CHATML)
        except Exception as error:  # it is a stranger's program: whatever it raises is its failure, not ours
            raise _failure(error) from None

    def render(self, messages: list[dict[str, Any]], arguments: dict[str, Any]) -> str:
        """Return the prompt. Raises RequestError: template_failed with the template's own words, invalid_value.

        Content that is a list of text parts becomes their concatenation, since most templates only know text; nothing
        is put between them. No content is empty text.
        """
        for name in sorted(RESERVED & set(arguments)):
            raise RequestError(
                Code.INVALID_VALUE,
                f"chat_template_kwargs: '{name}' is given by the request itself",
                param="chat_template_kwargs",
            )
        plain = [{**m, "content": _as_text(m.get("content"))} for m in messages]
        defaults = {"tools": None, "add_generation_prompt": True, **self._special}
        try:
            with limited():
                text = self._template.render({**defaults, **arguments, "messages": plain})
                text.encode()  # an escape in a template can make half a surrogate pair, which is no text
                return text
        except Exception as error:  # as above
            raise _failure(error) from None


def _as_text(content: Any) -> Any:
    if isinstance(content, list) and all(isinstance(p, dict) and p.get("type") == "text" for p in content):
        return "".join(str(p.get("text", "")) for p in content)
    return "" if content is None else content


def _failure(error: Exception) -> RequestError:
    kind = "is not allowed to do that" if isinstance(error, SecurityError) else "failed"
    words = f"it needs more than {MEMORY_MB} MiB" if isinstance(error, MemoryError) else str(error)
    text = f"the model's chat template {kind}: {words or type(error).__name__}"
    return RequestError(Code.TEMPLATE_FAILED, text, param="messages")
