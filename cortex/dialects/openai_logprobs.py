"""Log-probabilities in the shapes OpenAI documents: of chat, of Responses, and of text completions."""

from collections.abc import Sequence
from typing import Any

from common.messages import Likelihood, TokenLogprob


def chat_logprobs(entries: Sequence[TokenLogprob]) -> dict[str, Any]:
    """Return a chat choice's `logprobs`."""
    return {"content": output_logprobs(entries), "refusal": None}


def output_logprobs(entries: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    """Return a Responses text's `logprobs`."""
    return [{**_token(e.chosen), "top_logprobs": [_token(t) for t in e.top]} for e in entries]


def _token(likelihood: Likelihood) -> dict[str, Any]:
    text = likelihood.text
    return {"token": text.decode(errors="replace"), "logprob": likelihood.logprob, "bytes": list(text)}


def completion_logprobs(entries: Sequence[TokenLogprob], offset: int) -> dict[str, Any]:
    """Return a completion choice's `logprobs`; the first token's text begins at character `offset`."""
    tokens = [e.chosen.text.decode(errors="replace") for e in entries]
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token)
    return {
        "tokens": tokens,
        "token_logprobs": [e.chosen.logprob for e in entries],
        "top_logprobs": [{t.text.decode(errors="replace"): t.logprob for t in e.top} for e in entries],
        "text_offset": offsets,
    }
