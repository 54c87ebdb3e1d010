"""The model's own chat template, rendered as its authors meant it: nothing added, merged, trimmed or reordered."""

import json
from datetime import datetime
from typing import Any

from jinja2 import Template
from jinja2.exceptions import SecurityError
from jinja2.meta import find_undeclared_variables

from common.errors import Code, RequestError
from common.formats.family import SYNTAXES, Family, detect
from neuron.prep import sandbox
from neuron.prep.conversation import Abilities, Message, shape
from neuron.prep.sandbox import MEMORY_MB, Environment, Given, limited

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""Used where the file has no template, as llama.cpp does."""
RESERVED = frozenset({"messages", "tools"})
"""What the request has fields for."""

_NEEDLE = "needle_in_the_prompt"
_ASKING_S = 1.0
"""Processor time for one question; after the first that takes longer no more are asked."""
_VALUE = "needle_in_the_arguments"
_TOOL = {
    "type": "function",
    "function": {
        "name": _NEEDLE,
        "description": "A question to the template.",
        "parameters": {"type": "object", "properties": {"a": {"type": "string", "description": "a"}}, "required": []},
    },
}
_QUESTION: Message = {"role": "user", "content": "?"}


class ChatTemplate:
    """A compiled template."""

    def __init__(self, source: str | None, *, bos: str, eos: str) -> None:
        """Raises RequestError(template_failed) for a template that does not compile."""
        self.source = source or CHATML
        self._special = {"bos_token": bos, "eos_token": eos}
        try:
            with limited():  # constants are computed here already
                jinja = Environment()
                self._template: Template = jinja.from_string(self.source)
                names = find_undeclared_variables(jinja.parse(self.source))
        except Exception as error:  # it is a stranger's program: whatever it raises is its failure, not ours
            raise _failure(error, "messages") from None
        self._takes_functions = "functions" in names and "tools" not in names
        """Whether it is given the tools as text, under the name they had before there were tools."""
        self._is_endless = False
        self._no_tools: list[dict[str, Any]] | None = None
        """What the template is given as `tools` where there are none."""
        family = detect(self.source)
        if self._try([_QUESTION], None) is None and self._try([_QUESTION], []) is not None:
            self._no_tools = []  # it goes through them without asking whether there are any
        self.abilities = self._ask_abilities()
        self.family = family if self.abilities.tools else Family(family.reasoning, SYNTAXES["hermes"])
        """How answers are written; calls in the form that tools are announced in, where the template has none."""

    def render(self, messages: list[Message], arguments: dict[str, Any], tools: list[dict[str, Any]]) -> str:
        """Return the prompt. Raises RequestError: template_failed with the template's own words, invalid_value."""
        for name in sorted(RESERVED & set(arguments)):
            raise RequestError(
                Code.INVALID_VALUE,
                f"chat_template_kwargs: '{name}' is given by the request itself",
                param="chat_template_kwargs",
            )
        shaped = shape(messages, tools, self.abilities, self.family.syntax)
        given = (tools or self._no_tools) if self.abilities.tools else self._no_tools
        try:
            return self._render(shaped, given, arguments)
        except Exception as error:  # as above
            raise _failure(error, "tools" if tools else "messages") from None

    def _render(
        self,
        messages: list[Message],
        tools: list[dict[str, Any]] | None,
        arguments: dict[str, Any],
        cpu_s: float | None = None,
    ) -> str:
        defaults = {"add_generation_prompt": True, **self._special}
        if self._takes_functions:
            defaults["functions"] = json.dumps(tools, ensure_ascii=False, indent=2) if tools else ""
            defaults["datetime"] = datetime.now().strftime("%b %d %Y %H:%M:%S")
        with limited(cpu_s):
            text = self._template.render(
                {
                    **defaults,
                    **arguments,
                    "messages": Given(messages),
                    "tools": tools if tools is None else Given(tools),
                }
            )
            if len(text) > sandbox.OUTPUT_CHARACTERS:
                raise ValueError(f"it wrote more than {sandbox.OUTPUT_CHARACTERS} characters")
            text.encode()  # an escape in a template can make half a surrogate pair, which is no text
            return text

    def _ask_abilities(self) -> Abilities:
        """Find out what the template shows, by rendering conversations that contain something to look for."""
        tools = self._try([_QUESTION], [_TOOL])
        as_object = self._try(_called({"key": _VALUE}), [_TOOL])
        as_text = self._try(_called(f'{{"key": "{_VALUE}"}}'), [_TOOL])
        # Put into text as it is, an object would look like Python.
        is_shown = as_object is not None and _VALUE in as_object and f"'{_VALUE}'" not in as_object
        system = self._try([_system(_NEEDLE), _QUESTION], self._no_tools)
        alone = self._try([_QUESTION], self._no_tools)
        return Abilities(
            tools="tools" in self.source if tools is None else _NEEDLE in tools,
            object_arguments=is_shown or as_text is None or _VALUE not in as_text,
            calls=as_object is as_text is None or _VALUE in f"{as_object}{as_text}",
            parallel=as_object is None or self._shows_both_of_two_calls(),
            system=system is not None and _NEEDLE in system,
            # One that refuses them (Gemma 2) gets them as llama-server gives them to it: from the user.
            loses_system=alone is not None and (system is None or _NEEDLE not in system),
            later_systems=self._shows_later_systems(),
            systems_before_results=as_object is None
            or "first_needle" in (self._try([_system("first_needle"), *_called({"key": _VALUE})], [_TOOL]) or ""),
            neighbours=alone is None or self._try([_QUESTION, _QUESTION], self._no_tools) is not None,
            thinking="reasoning_content" not in self.source
            and any(t in self.source for t in (".thinking", "['thinking']", '["thinking"]')),
        )

    def _shows_both_of_two_calls(self) -> bool:
        """Find out whether two calls of one message are both shown, where one is."""
        text = self._try(_called({"key": _VALUE}, 2), [_TOOL])
        return text is not None and (_VALUE not in text or f"{_VALUE}1" in text)

    def _shows_later_systems(self) -> bool:
        """Find out whether system messages are shown that are not the first message."""
        first = _system("first_needle")
        answer = {"role": "assistant", "content": "!"}
        together = self._try([first, _system(_NEEDLE), _QUESTION], self._no_tools) or ""
        later = self._try([first, _QUESTION, answer, _system(_NEEDLE), _QUESTION], self._no_tools) or ""
        return all(_NEEDLE in text and "first_needle" in text for text in (together, later))

    def _try(self, messages: list[Message], tools: list[dict[str, Any]] | None) -> str | None:
        if self._is_endless:
            return None
        try:
            return self._render(messages, tools, {}, cpu_s=_ASKING_S)
        except (TimeoutError, MemoryError):
            self._is_endless = True
            return None
        except Exception:  # the template's answer is no
            return None


def _system(text: str) -> Message:
    return {"role": "system", "content": text}


def _called(arguments: Any, times: int = 1) -> list[Message]:
    ids = [f"abcdefgh{n}" for n in range(times)]
    functions = [{"name": _NEEDLE, "arguments": arguments}]
    functions += [{"name": _NEEDLE, "arguments": {"key": f"{_VALUE}{n}"}} for n in range(1, times)]
    return [
        _QUESTION,
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": i, "type": "function", "function": f} for i, f in zip(ids, functions, strict=True)],
        },
        *({"role": "tool", "tool_call_id": i, "name": _NEEDLE, "content": "!"} for i in ids),
    ]


def _failure(error: Exception, param: str) -> RequestError:
    kind = "is not allowed to do that" if isinstance(error, SecurityError) else "failed"
    words = f"it needs more than {MEMORY_MB} MiB" if isinstance(error, MemoryError) else str(error)
    text = f"the model's chat template {kind}: {words or type(error).__name__}"
    return RequestError(Code.TEMPLATE_FAILED, text, param=param)
