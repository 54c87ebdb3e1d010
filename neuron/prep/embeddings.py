"""Texts for vectors and pairs for scores become tokens. Pure."""

from common.errors import Code, RequestError
from common.messages import Embed, Job, ModelFacts, Prepared, Rerank, TokenIds
from neuron.prep.tokenising import CHARACTERS_A_TOKEN
from neuron.prep.vocabulary import Vocabulary

TEXTS = 2048
"""Of one request, as OpenAI has it."""


def check_kind(job: Job, facts: ModelFacts) -> None:
    """Refuse a job that the model is not made for. Raises RequestError."""
    can = facts.capabilities
    match job.input:
        case Embed():
            wanted, remedy = "embeddings", "gives no vectors"
        case Rerank():
            wanted, remedy = "rerank", "gives no scores"
        case _:
            if job.answer == "prompt" or {"embeddings", "rerank"}.isdisjoint(can):
                return
            raise _refusal("model", f"'{job.model}' gives no text; its kind is {', '.join(can)}")
    if wanted not in can:
        raise _refusal("model", f"'{job.model}' {remedy}; its kind is {', '.join(can)}")


def prepare_texts(job: Job, given: Embed | Rerank, vocabulary: Vocabulary, context: int) -> Prepared:
    """Return each text as tokens. Raises RequestError naming the one that is empty or too long."""
    field = "input" if isinstance(given, Embed) else "documents"
    count = len(given.inputs if isinstance(given, Embed) else given.documents)
    if not 1 <= count <= TEXTS:
        raise _refusal(field, f"must have 1 to {TEXTS} texts, not {count}")
    texts: list[list[int]] = []
    for number in range(count):
        at = f"{field}[{number}]"
        tokens = _tokens(given, number, at, vocabulary, context)
        if not tokens:
            raise _refusal(at, "is empty; it needs at least one token")
        if len(tokens) > context:
            raise _too_long(at, f"{len(tokens)}", context)
        texts.append(tokens)
    return Prepared(
        job=job.id,
        attempt=job.attempt,
        tokens=[],
        texts=texts,
        max_tokens=1,
        vocab_fingerprint=vocabulary.facts.vocab_fingerprint,
    )


def _tokens(given: Embed | Rerank, number: int, at: str, vocabulary: Vocabulary, context: int) -> list[int]:
    most = context * CHARACTERS_A_TOKEN
    if isinstance(given, Rerank):
        if len(given.query) + len(given.documents[number]) > most:
            raise _too_long(at, "far more", context)
        return vocabulary.pair(given.query, given.documents[number])
    text = given.inputs[number]
    if isinstance(text, TokenIds):
        wrong = next((i for i in text.ids if not 0 <= i < vocabulary.size), None)
        if wrong is not None:
            raise _refusal(at, f"token id {wrong} is not in the vocabulary (0 to {vocabulary.size - 1})")
        return text.ids
    if not text.text:
        return []
    if len(text.text) > most:
        raise _too_long(at, "far more", context)
    return vocabulary.tokenise(text.text, add_special=True, parse_special=False)


def _too_long(at: str, count: str, context: int) -> RequestError:
    text = f"{at}: This model's maximum context length is {context} tokens. However, this text has {count} tokens."
    return RequestError(Code.CONTEXT_LENGTH_EXCEEDED, text, param=at)


def _refusal(field: str, text: str) -> RequestError:
    return RequestError(Code.INVALID_VALUE, f"{field}: {text}", param=field)
