"""What a format of reasoning or tool calls offers. Pure; the neuron's prep and the gateway's dialects both use it.

    the model's text ──push──► Reasoning | Content | Call …      however it is cut, the same comes out
                     ──finish─► what was held back

Text that is no call, or never becomes one, stays Content: nothing is swallowed but markers and the space around them.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Protocol

Schema = dict[str, Any]
Tools = Mapping[str, Schema]
"""The functions a request offers: name → JSON schema of the arguments."""


class Reasoning(NamedTuple):
    """Thoughts before the answer."""

    text: str


class Content(NamedTuple):
    """The answer."""

    text: str


class Call(NamedTuple):
    """A complete call of a function."""

    name: str
    arguments: str
    """A JSON object as text."""


Delta = Reasoning | Content | Call


class Parser(Protocol):
    """Reads one answer."""

    @property
    def is_thinking(self) -> bool:
        """Whether what was read so far ends within reasoning."""

    def push(self, text: str) -> list[Delta]:
        """Take the next text; return what is certain by now."""

    def finish(self) -> list[Delta]:
        """Return the rest: no more text comes."""


class Rules(Protocol):
    """A grammar in the making (GBNF)."""

    def add(self, name: str, body: str) -> str:
        """Add a rule and return the name it got."""

    def schema(self, name: str, schema: Any, *, root: Schema | None = None) -> str:
        """Add a rule for the JSON values that fit a schema and return its name.

        `root`: what the schema's references point into; None: the schema itself.
        """

    def bare(self, name: str, schema: Any, marker: str, *, root: Schema | None = None) -> str:
        """Add a rule for the values that fit a schema, as they stand before `marker`, and return its name.

        Texts are written as they are, everything else as JSON; common/formats/values.py reads both.
        """


class Block(NamedTuple):
    """Calls that were read from the beginning of a text, and where they end."""

    calls: list[Call]
    end: int


class Verdict:
    """Why there is no block at the beginning of a text."""

    __slots__ = ()


MORE = Verdict()
"""It may yet become one."""
BROKEN = Verdict()
"""It can never become one, whatever follows."""


class Syntax:
    """One way to write calls. A subclass is stateless."""

    name: ClassVar[str]
    openers: ClassVar[tuple[str, ...]]
    """Texts that begin a block of calls."""
    closers: ClassVar[tuple[str, ...]]
    """A block cannot be complete before one of these has appeared."""
    fillers: ClassVar[tuple[str, ...]] = ()
    """Markers around plain text; they are dropped."""
    inner: ClassVar[tuple[str, ...]] = ()
    """Other markers, which a vocabulary may hold as control tokens."""
    is_first: ClassVar[bool] = False
    """Whether a block can only begin an answer, or follow another one."""
    writes_members: ClassVar[bool] = False
    """Whether arguments are written one by one, not as one JSON object."""
    trigger: ClassVar[str | None] = None
    """Text that shows that a call has begun; None where nothing distinguishes it from an answer."""

    def read(self, text: str, tools: Tools, *, is_final: bool) -> Block | Verdict:
        """Return the block at the beginning of `text`, which begins with an opener.

        `is_final`: no more text comes, so that a missing closer is forgiven.
        """
        raise NotImplementedError

    def render(self, calls: list[Call]) -> str:
        """Return calls as the model would write them."""
        raise NotImplementedError

    def grammar(self, rules: Rules, tools: Tools, *, is_parallel: bool) -> str:
        """Return the body of a rule for one call of any of the tools, or for several."""
        raise NotImplementedError

    def answer(self, body: str) -> str:
        """Return the body of a rule for an answer whose text is held to `body`."""
        return body

    @classmethod
    def markers(cls) -> tuple[str, ...]:
        """Return all fixed texts of the format."""
        return (*cls.openers, *cls.closers, *cls.fillers, *cls.inner)
