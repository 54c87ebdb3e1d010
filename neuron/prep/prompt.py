"""A job becomes tokens: rendered, tokenised, counted, clamped, and refused by name where it cannot be served. Pure."""

from collections.abc import Iterable

from msgspec import structs

from common.engine_options import SamplingDefaults, merged
from common.errors import Code, RequestError, overflow
from common.formats.family import Family
from common.formats.reasoning import is_opened_by
from common.messages import (
    Chat,
    Embed,
    Infill,
    Job,
    Prepared,
    Rendered,
    RenderedItem,
    Rerank,
    Sampling,
    Text,
    TokenIds,
)
from neuron.prep.calls import chat_grammar
from neuron.prep.constraint import resolve
from neuron.prep.embeddings import check_kind, prepare_texts
from neuron.prep.infill import fill_in
from neuron.prep.shape import check_shape
from neuron.prep.template import ChatTemplate
from neuron.prep.tokenising import tokenise_within
from neuron.prep.vocabulary import Vocabulary

NO_DEFAULTS = SamplingDefaults()
STOPS = 16
STOP_CHARACTERS = 256
COUNTED_CHARACTERS = 1 << 22
"""Of a prompt that is only counted; a few seconds' work."""


def prepare(
    job: Job,
    vocabulary: Vocabulary,
    template: ChatTemplate | RequestError,
    context: int,
    defaults: SamplingDefaults = NO_DEFAULTS,
) -> Prepared | Rendered:
    """Return the job's prompt as tokens, or the prompt itself where that is the answer.

    `context` is what one request may use, answer and resume tokens included. `defaults`: the profile's sampling.
    A template that does not compile is the reason why; it fails chats only. Raises RequestError.
    """
    _check_sampling(job, vocabulary)
    check_kind(job, vocabulary.facts)
    if isinstance(job.input, Embed | Rerank):
        return prepare_texts(job, job.input, vocabulary, context)
    if job.answer == "prompt":
        return _render_only(job, vocabulary, template)
    field = "messages" if isinstance(job.input, Chat) else "prompt"
    is_text = not isinstance(job.input, TokenIds | Infill)
    text, add_special = _text(job, template, vocabulary) if is_text else ("", False)
    if isinstance(job.input, Infill):
        tokens = fill_in(job.input, vocabulary, context, job.max_tokens)
    else:
        tokens = _tokens(job, vocabulary, text, context, field, add_special=add_special)
    if not tokens:
        raise RequestError(Code.INVALID_VALUE, "the prompt is empty; it needs at least one token", param=field)
    if len(tokens) >= context:
        raise overflow(f"{len(tokens)}", context, param=field)
    room = context - len(tokens)
    prepared = Prepared(
        job=job.id,
        attempt=job.attempt,
        tokens=tokens,
        resume_tokens=_resume_tokens(job, vocabulary),
        max_tokens=room if job.max_tokens is None else min(job.max_tokens, room),
        vocab_fingerprint=vocabulary.facts.vocab_fingerprint,
        sampling=_filled(job.sampling, merged(vocabulary.facts.sampling, defaults)),
    )
    if isinstance(job.input, Chat) and isinstance(template, ChatTemplate):
        return _with_format(prepared, job, job.input, vocabulary, template.family, text)
    return structs.replace(prepared, constraint=resolve(job, vocabulary))


def _filled(sampling: Sampling, defaults: SamplingDefaults) -> Sampling:
    """Take from the defaults what the request leaves open."""
    given = structs.asdict(defaults)
    return structs.replace(
        sampling, **{n: v for n, v in given.items() if v is not None and getattr(sampling, n) is None}
    )


def _with_format(
    prepared: Prepared, job: Job, chat: Chat, vocabulary: Vocabulary, family: Family, prompt: str
) -> Prepared:
    """Say how the answer is to be read, and what it is held to."""
    if not chat.tools and family.parser(None, is_open=False) is None:
        return structs.replace(prepared, constraint=resolve(job, vocabulary))
    alone = [vocabulary.tokenise(m, add_special=False, parse_special=True) for m in family.markers()]
    thinking_open = family.reasoning is not None and is_opened_by(prompt, family.reasoning)
    return structs.replace(
        prepared,
        constraint=chat_grammar(job, chat, family, vocabulary, thinking_open=thinking_open),
        format=family.name,
        thinking_open=thinking_open,
        shown=sorted({ids[0] for ids in alone if len(ids) == 1}),
    )


def _resume_tokens(job: Job, vocabulary: Vocabulary) -> list[int]:
    """Return what earlier attempts delivered; other ids for the same text where a neuron with another file goes on."""
    if job.resume_vocabulary != vocabulary.facts.vocab_fingerprint:
        return vocabulary.tokenise(job.resume_text, add_special=False, parse_special=True) if job.resume_text else []
    _check_ids(job.resume_tokens, vocabulary, "resume_tokens")
    return job.resume_tokens


def _render_only(job: Job, vocabulary: Vocabulary, template: ChatTemplate | RequestError) -> Rendered:
    if isinstance(job.input, TokenIds):
        _check_ids(job.input.ids, vocabulary, "tokens")
        tokens, text = job.input.ids, vocabulary.text(job.input.ids).decode(errors="replace")
    else:
        text, add_special = _text(job, template, vocabulary)
        if len(text) > COUNTED_CHARACTERS:
            raise RequestError(
                Code.CONTEXT_LENGTH_EXCEEDED, f"a text of more than {COUNTED_CHARACTERS} characters is not counted"
            )
        parse_special = not isinstance(job.input, Text) or job.input.parse_special
        tokens = vocabulary.tokenise(text, add_special=add_special, parse_special=parse_special)
    item = RenderedItem(
        job=job.id,
        attempt=job.attempt,
        text=text,
        tokens=tokens,
        template="" if isinstance(template, RequestError) else template.source,
        bos=vocabulary.bos_text,
        eos=vocabulary.eos_text,
    )
    return Rendered(items=[item])


def _text(job: Job, template: ChatTemplate | RequestError, vocabulary: Vocabulary) -> tuple[str, bool]:
    """Return the prompt as text, and whether the tokenizer is to add BOS. Not for token ids."""
    match job.input:
        case Chat(messages=messages, template_kwargs=arguments, tools=tools):
            check_shape(job.input)
            if isinstance(template, RequestError):
                raise template
            text = template.render(messages, arguments, tools)
            # A template that writes BOS itself would get a second one from the tokenizer.
            return text, not (vocabulary.bos_text and text.startswith(vocabulary.bos_text))
        case Text(text=text, add_special=add_special):
            return text, add_special
        case _:
            raise AssertionError("token ids and gaps have no text")


def _tokens(job: Job, vocabulary: Vocabulary, text: str, context: int, field: str, *, add_special: bool) -> list[int]:
    if isinstance(job.input, TokenIds):
        _check_ids(job.input.ids, vocabulary, "prompt")
        return job.input.ids
    return tokenise_within(vocabulary, text, context, field, add_special=add_special, parse_special=True)


def _check_sampling(job: Job, vocabulary: Vocabulary) -> None:
    sampling = job.sampling
    _check_ids(sampling.logit_bias, vocabulary, "logit_bias")
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
