"""A job becomes tokens: rendered, tokenised, counted, clamped, and refused by name where it cannot be served. Pure."""

from common.errors import Code, RequestError
from common.messages import Chat, Job, Prepared, Text, TokenIds
from neuron.prep.template import ChatTemplate
from neuron.prep.vocabulary import Vocabulary

STOPS = 16
STOP_CHARACTERS = 256


def prepare(job: Job, vocabulary: Vocabulary, template: ChatTemplate, context: int) -> Prepared:
    """Return the job's prompt as tokens; `context` is what one request may use. Raises RequestError."""
    _check_sampling(job, vocabulary)
    tokens = _tokens(job, vocabulary, template)
    field = "messages" if isinstance(job.input, Chat) else "prompt"
    if not tokens:
        raise RequestError(Code.INVALID_VALUE, "the prompt is empty; it needs at least one token", param=field)
    if len(tokens) >= context:
        raise RequestError(
            Code.CONTEXT_LENGTH_EXCEEDED,
            f"This model's maximum context length is {context} tokens. However, your prompt has {len(tokens)} tokens. "
            "Shorten it, leaving room for the answer.",
            param=field,
        )
    room = context - len(tokens)
    return Prepared(
        job=job.id,
        attempt=job.attempt,
        tokens=tokens,
        max_tokens=room if job.max_tokens is None else min(job.max_tokens, room),
        vocab_fingerprint=vocabulary.facts.vocab_fingerprint,
        format=vocabulary.facts.format,
    )


def _tokens(job: Job, vocabulary: Vocabulary, template: ChatTemplate) -> list[int]:
    match job.input:
        case Chat(messages=messages, template_kwargs=arguments):
            text = template.render(messages, arguments)
            # Templates that write BOS themselves would get a second one from the tokenizer.
            has_bos = bool(vocabulary.bos_text) and text.startswith(vocabulary.bos_text)
            return vocabulary.tokenise(text, add_special=not has_bos, parse_special=True)
        case Text(text=text):
            return vocabulary.tokenise(text, add_special=True, parse_special=True)
        case TokenIds(ids=ids):
            wrong = next((i for i in ids if not 0 <= i < vocabulary.size), None)
            if wrong is not None:
                raise _refusal(f"token id {wrong} is not in the vocabulary (0 to {vocabulary.size - 1})", "prompt")
            return ids


def _check_sampling(job: Job, vocabulary: Vocabulary) -> None:
    sampling = job.sampling
    wrong = next((i for i in sampling.logit_bias if not 0 <= i < vocabulary.size), None)
    if wrong is not None:
        raise _refusal(f"token id {wrong} is not in the vocabulary (0 to {vocabulary.size - 1})", "logit_bias")
    if len(sampling.stop) > STOPS:
        raise _refusal(f"{len(sampling.stop)} stop strings are more than {STOPS}", "stop")
    if any(not 1 <= len(stop) <= STOP_CHARACTERS for stop in sampling.stop):
        raise _refusal(f"a stop string must have 1 to {STOP_CHARACTERS} characters", "stop")


def _refusal(text: str, param: str) -> RequestError:
    return RequestError(Code.INVALID_VALUE, f"{param}: {text}", param=param)
