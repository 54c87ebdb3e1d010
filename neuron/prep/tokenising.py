"""Texts become tokens, within bounds: a text far beyond the context would keep everybody's requests waiting. Pure."""

from common.errors import overflow
from neuron.prep.vocabulary import Vocabulary

LONG_TOKEN = 16
"""Characters. Ordinary text has about four a token."""
CHARACTERS_A_TOKEN = 64
"""A text beyond so many for each token of the context is not even counted."""
MERGES = 64
"""Tokens by which the last ones of a cut text may differ from those of the whole."""


def tokenise_within(
    vocabulary: Vocabulary, text: str, context: int, field: str, *, add_special: bool, parse_special: bool
) -> list[int]:
    """Return the tokens of a text that may fit the context. Raises RequestError for one that surely does not."""
    head = text[: context * LONG_TOKEN]
    if len(head) < len(text):
        # A second for each megabyte is not spent on an exact count.
        count = len(vocabulary.tokenise(head, add_special=add_special, parse_special=parse_special)) - MERGES
        if count >= context:
            raise overflow(f"more than {count}", context, param=field)
        if len(text) > context * CHARACTERS_A_TOKEN:
            raise overflow(f"more than {context}", context, param=field)
    return vocabulary.tokenise(text, add_special=add_special, parse_special=parse_special)
