"""A gap between two texts as the tokens that a model fills it in after. Pure."""

from common.errors import Code, RequestError, overflow
from common.messages import Infill
from neuron.prep.tokenising import CHARACTERS_A_TOKEN, tokenise_within
from neuron.prep.vocabulary import Vocabulary

LEAST_ROOM = 64
"""Tokens that are kept free for the answer where it has no limit of its own."""


def fill_in(given: Infill, vocabulary: Vocabulary, context: int, max_tokens: int | None) -> list[int]:
    """Return the tokens: other files, before the gap, after it, and the mark of its middle, as llama-server has them.

    No name is made up for a file that has none. Raises RequestError where the model has no such tokens, and where
    what stands around the gap does not fit.
    """
    gap = vocabulary.gap
    if gap is None:
        raise RequestError(
            Code.UNSUPPORTED_PARAMETER,
            f"{given.field}: the model was not made to fill in; its file names no tokens for prefix, suffix and middle",
            param=given.field,
        )

    def tokens(text: str) -> list[int]:
        return vocabulary.tokenise(text, add_special=False, parse_special=False)

    def around_gap(text: str) -> list[int]:
        return tokenise_within(vocabulary, text, context, given.field, add_special=False, parse_special=False)

    begin = [vocabulary.bos] if vocabulary.adds_bos and vocabulary.bos >= 0 else []
    before, after = around_gap(given.prefix) + around_gap(given.prompt), around_gap(given.suffix)
    around = [gap.prefix, *before, gap.suffix, *after, gap.middle]
    if len(begin) + len(around) >= context:
        raise overflow(f"{len(begin) + len(around)}", context, param=given.field)
    room = context - len(begin) - len(around) - (LEAST_ROOM if max_tokens is None else max_tokens)
    extra = [] if gap.file is None or not given.extra else [gap.file]
    for snippet in reversed(given.extra):
        if len(extra) >= room:
            break  # only the end of what there is fits, so nothing before it is read
        head = "\n\n--- snippet ---\n\n" if gap.file is None else f"{snippet.filename}\n"
        part = tokens((head + snippet.text)[-room * CHARACTERS_A_TOKEN :])
        extra[:0] = part if gap.file is None else [gap.file, *part]
    return [*begin, *(extra[-room:] if room > 0 else []), *around]
