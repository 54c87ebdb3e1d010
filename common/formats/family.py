"""Which formats a chat template uses, and their parser. A family's name travels with the job: `reasoning+tools`."""

from collections.abc import Callable
from typing import NamedTuple

from common.formats import reasoning
from common.formats.blocks import BlockParser
from common.formats.contract import Parser, Syntax, Tools
from common.formats.functionary import Functionary, FunctionTag
from common.formats.gemma import Gemma
from common.formats.harmony import Harmony
from common.formats.hermes import Hermes
from common.formats.invoke import Dsml, DsmlTools, MiniMax
from common.formats.json_lists import CommandR, CommandRPlus, Functools, Granite, Nemotron, ToolCalls
from common.formats.llama import LlamaJson
from common.formats.mistral import Mistral, MistralArgs
from common.formats.pythonic import Lfm, Pythonic
from common.formats.reasoning import Markers, ReasoningParser
from common.formats.sections import DeepSeek, DeepSeekFenced, Kimi
from common.formats.tagged import Glm, QwenXml, SeedXml

SYNTAXES: dict[str, Syntax] = {
    s.name: s
    for s in (
        Hermes(), QwenXml(), SeedXml(), Glm(), MiniMax(), Dsml(), DsmlTools(), Gemma(), LlamaJson(), Pythonic(), Lfm(),
        Mistral(), MistralArgs(), DeepSeek(), DeepSeekFenced(), Kimi(), CommandR(), Granite(), Functools(), Harmony(),
        Functionary(), FunctionTag(), CommandRPlus(), Nemotron(), ToolCalls(),
    )
}  # fmt: skip
_MARKERS = {m.name: m for m in reasoning.FAMILIES}


def _has(*texts: str) -> Callable[[str], bool]:
    return lambda template: all(t in template for t in texts)


_DETECTORS: tuple[tuple[Callable[[str], bool], str], ...] = (
    (_has("<|channel|>", "<|message|>"), "harmony"),
    (_has(">>>all"), "functionary"),
    (_has("<|tool_calls_section_begin|>"), "kimi"),
    (_has("<｜tool▁calls▁begin｜>", "```json"), "deepseek-fenced"),
    (_has("<｜tool▁calls▁begin｜>"), "deepseek"),
    (_has("｜DSML｜", "function_calls"), "dsml"),
    (_has("｜DSML｜"), "dsml-tools"),
    (_has("<minimax:tool_call>"), "minimax"),
    (_has("<|tool_call>call:"), "gemma"),
    (_has("functools["), "functools"),
    (_has("<seed:tool_call>"), "seed-xml"),
    (_has("<|START_ACTION|>"), "command-r"),
    (_has("'Action:\\'", "tool_name"), "command-r-plus"),
    (_has("<TOOLCALL>"), "nemotron"),
    (_has("<tool_calls>"), "tool-calls"),
    (_has("[TOOL_CALLS]", "[ARGS]"), "mistral-args"),
    (_has("[TOOL_CALLS]"), "mistral"),
    (_has("<|tool_call_start|>"), "lfm"),
    (_has("<|tool_list_start|>"), "lfm"),
    (_has("<arg_key>"), "glm"),
    (_has("<function=", "<parameter="), "qwen-xml"),
    (_has("<tool_call>"), "hermes"),
    (_has("<|tool_call|>"), "granite"),
    (_has("<function=", "tools"), "function-tag"),
    (_has("<|python_start|>", "tools"), "pythonic"),
    (_has("func_name1(", "tools"), "pythonic"),
    (_has('"parameters"', "<|start_header_id|>", "tools"), "llama-json"),
)
"""What a template must contain, the most distinctive first."""


class Family(NamedTuple):
    """How one model's template has reasoning and calls written."""

    reasoning: Markers | None
    syntax: Syntax

    @property
    def name(self) -> str:
        """The name that travels with a job."""
        return f"{self.reasoning.name if self.reasoning else ''}+{self.syntax.name}"

    @property
    def has_reasoning(self) -> bool:
        """Whether answers may begin with reasoning."""
        return self.reasoning is not None or isinstance(self.syntax, Harmony)

    def markers(self) -> list[str]:
        """Return the texts that matter to parsers; a vocabulary may hold some as control tokens, which have none."""
        around = [self.reasoning.begin, self.reasoning.end] if self.reasoning else []
        return [*around, *(m for m in self.syntax.markers() if len(m) > 1)]

    def parser(self, tools: Tools | None, *, is_open: bool) -> Parser | None:
        """Return a parser for one answer; None where all of it is content.

        `tools` None: there are none to call. `is_open`: the prompt has begun the reasoning.
        """
        if isinstance(self.syntax, Harmony):
            return self.syntax.parser(tools or {})
        calls: Parser | None = None
        if isinstance(self.syntax, Functionary):
            calls = self.syntax.parser(tools or {})
        elif tools is not None or self.syntax.fillers:
            calls = BlockParser(self.syntax, tools or {})
        if self.reasoning is None:
            return calls
        return ReasoningParser(self.reasoning, is_open=is_open, rest=calls)


def detect(template: str) -> Family:
    """Return the family of a chat template, never by the model's name. Hermes where it says nothing of tools."""
    markers = reasoning.detect(template)
    name = next((name for matches, name in _DETECTORS if matches(template)), None)
    if name == "harmony":
        markers = None
    return Family(markers, SYNTAXES[name or "hermes"])


def find(name: str) -> Family | None:
    """Return the family of a name that came with a job; None for "", which is plain text, and for unknown ones."""
    markers, _, syntax = name.partition("+")
    if syntax not in SYNTAXES:
        return None
    return Family(_MARKERS.get(markers), SYNTAXES[syntax])
