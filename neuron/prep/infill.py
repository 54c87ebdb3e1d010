"""A gap between two texts as the tokens that a model fills it in after. Pure."""

from common.errors import Code, RequestError, overflow
from common.messages import Infill
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

    begin = [vocabulary.bos] if vocabulary.adds_bos and vocabulary.bos >= 0 else []
    before, after = tokens(given.prefix) + tokens(given.prompt), tokens(given.suffix)
    around = [gap.prefix, *before, gap.suffix, *after, gap.middle]
    if len(begin) + len(around) >= context:
        raise overflow(f"{len(begin) + len(around)}", context, param=given.field)
    extra: list[int] = []
    for snippet in given.extra:
        if gap.file is None:
            extra += tokens(f"\n\n--- snippet ---\n\n{snippet.text}")
        else:
            extra += [gap.file, *tokens(f"{snippet.filename}\n{snippet.text}")]
    if extra and gap.file is not None:
        extra.append(gap.file)
    room = context - len(begin) - len(around) - (LEAST_ROOM if max_tokens is None else max_tokens)
    return [*begin, *(extra[-room:] if room > 0 else []), *around]
