"""A job becomes tokens: rendered, tokenised, counted, clamped, and refused by name where it cannot be served. Pure."""

from collections.abc import Iterable

from common.errors import Code, RequestError
from common.messages import Chat, Job, Prepared, Text, TokenIds
from neuron.prep.template import ChatTemplate
from neuron.prep.vocabulary import Vocabulary

STOPS = 16
STOP_CHARACTERS = 256
LONG_TOKEN = 16
"""Characters. Ordinary text has about four a token."""
MERGES = 64
"""Tokens by which the last ones of a cut text may differ from those of the whole."""


def prepare(job: Job, vocabulary: Vocabulary, template: ChatTemplate | RequestError, context: int) -> Prepared:
    """Return the job's prompt as tokens; `context` is what one request may use, answer and resume tokens included.

    A template that does not compile is the reason why; it fails chats only. Raises RequestError.
    """
    _check_sampling(job, vocabulary)
    field = "messages" if isinstance(job.input, Chat) else "prompt"
    tokens = _tokens(job, vocabulary, template, context)
    if not tokens:
        raise RequestError(Code.INVALID_VALUE, "the prompt is empty; it needs at least one token", param=field)
    if len(tokens) >= context:
        raise _too_long(f"{len(tokens)}", context, field)
    room = context - len(tokens)
    return Prepared(
        job=job.id,
        attempt=job.attempt,
        tokens=tokens,
        max_tokens=room if job.max_tokens is None else min(job.max_tokens, room),
        vocab_fingerprint=vocabulary.facts.vocab_fingerprint,
        format=vocabulary.facts.format,
    )


def _tokens(job: Job, vocabulary: Vocabulary, template: ChatTemplate | RequestError, context: int) -> list[int]:
    match job.input:
        case Chat(messages=messages, template_kwargs=arguments):
            if isinstance(template, RequestError):
                raise template
            text, field = template.render(messages, arguments), "messages"
            # A template that writes BOS itself would get a second one from the tokenizer.
            add_special = not (vocabulary.bos_text and text.startswith(vocabulary.bos_text))
        case Text(text=text):
            field, add_special = "prompt", True
        case TokenIds(ids=ids):
            _check_ids(ids, vocabulary, "prompt")
            return ids
    head = text[: context * LONG_TOKEN]
    if len(head) < len(text):
        # A text far beyond the context would keep everybody waiting (a second for each megabyte) for its exact count.
        count = len(vocabulary.tokenise(head, add_special=add_special, parse_special=True)) - MERGES
        if count >= context:
            raise _too_long(f"more than {count}", context, field)
    return vocabulary.tokenise(text, add_special=add_special, parse_special=True)


def _too_long(count: str, context: int, field: str) -> RequestError:
    return RequestError(
        Code.CONTEXT_LENGTH_EXCEEDED,
        f"This model's maximum context length is {context} tokens. However, your prompt has {count} tokens. "
        "Shorten it, leaving room for the answer.",
        param=field,
    )


def _check_sampling(job: Job, vocabulary: Vocabulary) -> None:
    sampling = job.sampling
    _check_ids(sampling.logit_bias, vocabulary, "logit_bias")
    _check_ids(job.resume_tokens, vocabulary, "resume_tokens")
    if len(sampling.stop) > STOPS:
        raise _refusal(f"{len(sampling.stop)} stop strings are more than {STOPS}", "stop")
    if any(not 1 <= len(stop) <= STOP_CHARACTERS for stop in sampling.stop):
        raise _refusal(f"a stop string must have 1 to {STOP_CHARACTERS} characters", "stop")


def _check_ids(ids: Iterable[int], vocabulary: Vocabulary, field: str) -> None:
    wrong = next((i for i in ids if not 0 <= i < vocabulary.size), None)
    if wrong is not None:
        raise _refusal(f"token id {wrong} is not in the vocabulary (0 to {vocabulary.size - 1})", field)


def _refusal(text: str, param: str) -> RequestError:
    return RequestError(Code.INVALID_VALUE, f"{param}: {text}", param=param)
