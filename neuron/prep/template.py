"""The model's own chat template, rendered as its authors meant it: Jinja in a sandbox, nothing added or changed."""

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import Template, TemplateError
from jinja2.exceptions import SecurityError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from common.errors import Code, RequestError

RENDER_S = 5.0
"""A template that computes for longer is refused: a loop in a hostile file must not stop everybody's requests."""

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""Used where the file has no template, as llama.cpp does."""


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox of the Hugging Face libraries, which templates are written for."""

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        self.filters["tojson"] = _to_json
        self.globals["raise_exception"] = _raise
        self.globals["strftime_now"] = lambda form: datetime.now().strftime(form)  # the host's local day


class ChatTemplate:
    """A compiled template."""

    def __init__(self, source: str | None, *, bos: str, eos: str) -> None:
        """Raises RequestError(template_failed) for a template that does not compile."""
        self._special = {"bos_token": bos, "eos_token": eos}
        try:
            self._template: Template = _Environment().from_string(source or CHATML)
        except TemplateError as error:
            raise _failure(error) from None

    def render(self, messages: list[dict[str, Any]], arguments: dict[str, Any]) -> str:
        """Return the prompt. Raises RequestError(template_failed) with the template's own words.

        Content that is a list of text parts becomes their concatenation, since most templates only know text; nothing
        is put between them.
        """
        plain = [{**m, "content": _as_text(m.get("content"))} for m in messages]
        try:
            with _limited(RENDER_S):
                return self._template.render(
                    messages=plain, add_generation_prompt=True, **{"tools": None, **self._special, **arguments}
                )
        except (TemplateError, TypeError, ValueError, KeyError, ArithmeticError, RecursionError, TimeoutError) as error:
            raise _failure(error) from None


def _as_text(content: Any) -> Any:
    if isinstance(content, list) and all(isinstance(p, dict) and p.get("type") == "text" for p in content):
        return "".join(str(p.get("text", "")) for p in content)
    return "" if content is None else content


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in this, the main, thread after so many seconds."""

    def expire(number: int, frame: object) -> NoReturn:
        raise TimeoutError(f"it took longer than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **_: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def _failure(error: Exception) -> RequestError:
    kind = "is not allowed to do that" if isinstance(error, SecurityError) else "failed"
    text = f"the model's chat template {kind}: {error}"
    return RequestError(Code.TEMPLATE_FAILED, text, param="messages")
