"""What prep needs of a model: its header's facts, its template, its tokens. No weights, no device."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from common.engine_options import EngineOptions
from common.errors import HelexaError
from common.messages import ModelFacts


class Gap(NamedTuple):
    """The tokens that stand around a gap to be filled in."""

    prefix: int
    suffix: int
    middle: int
    file: int | None
    """Begins another file."""


class UnusableFile(HelexaError):
    """The file cannot be served; the text says why."""


class Vocabulary(Protocol):
    """A model opened for its vocabulary only.

    A module with an engine offers `open_vocabulary(path: str, options: EngineOptions) -> Vocabulary`, which raises
    UnusableFile.
    """

    facts: ModelFacts
    chat_template: str | None
    bos_text: str
    """Text of the token that begins a sequence; "" if there is none."""
    eos_text: str
    gap: Gap | None
    """None: the model was not made to fill in."""
    adds_bos: bool
    """Whether a sequence begins with BOS."""
    bos: int
    """Its id; negative if there is none."""
    size: int
    """Number of tokens; ids are below it."""

    def measure(self, options: EngineOptions) -> ModelFacts:
        """Return the facts with the sizes that the engine's options decide. Raises UnusableFile if it cannot serve."""

    def tokenise(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Return token ids. `add_special` adds BOS as the model wants it; `parse_special` reads control tokens."""

    def text(self, tokens: Sequence[int]) -> bytes:
        """Return the text of tokens, control tokens included."""

    def pair(self, query: str, document: str) -> list[int]:
        """Return a query and a document as a model that scores them wants them."""

    def can_parse(self, gbnf: str) -> bool:
        """Say whether the engine can read a grammar, which has been linted."""

    def close(self) -> None:
        """Free it."""
