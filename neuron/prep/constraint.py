"""What a job's output is held to becomes one checked grammar. Pure."""

from common.errors import Code, RequestError
from common.messages import Grammar, Job, JsonObject, JsonSchema
from neuron.prep.grammar import BadGrammar, lint
from neuron.prep.schema import object_grammar, schema_grammar
from neuron.prep.vocabulary import Vocabulary

TRIGGERS = 16
TRIGGER_CHARACTERS = 256


def check_request(job: Job) -> None:
    """Refuse what cannot stand beside a constraint. Raises RequestError naming the field."""
    constraint, field = job.constraint, job.constraint_field
    if constraint is None:
        return
    if job.sampling.ignore_eos:
        text = f"ignore_eos: an answer held to {field} must be able to end; leave one of the two out"
        raise RequestError(Code.INVALID_VALUE, text, param="ignore_eos")
    triggers = constraint.triggers
    if len(triggers) > TRIGGERS or not all(1 <= len(t) <= TRIGGER_CHARACTERS for t in triggers):
        raise _refusal(field, f"takes at most {TRIGGERS} triggers of 1 to {TRIGGER_CHARACTERS} characters")


def resolve(job: Job, vocabulary: Vocabulary) -> Grammar | None:
    """Return the job's constraint as a grammar that the engine can read. Raises RequestError naming the field."""
    check_request(job)
    constraint, field = job.constraint, job.constraint_field
    match constraint:
        case None:
            return None
        case Grammar(gbnf=gbnf):
            kind = "the grammar"
        case JsonSchema(schema=schema):
            gbnf, kind = schema_grammar(schema, field), "the grammar that the schema becomes"
        case JsonObject():
            gbnf, kind = object_grammar(), "the grammar"
    check(gbnf, field, kind, vocabulary)
    return Grammar(gbnf=gbnf, triggers=constraint.triggers)


def check(gbnf: str, field: str, kind: str, vocabulary: Vocabulary) -> None:
    """Refuse a grammar that the engine should not get; `kind` says what it is. Raises RequestError."""
    try:
        lint(gbnf)
    except BadGrammar as error:
        raise _refusal(field, f"{kind} cannot be used: {error}") from None
    if not vocabulary.can_parse(gbnf):
        raise _refusal(field, f"llama.cpp cannot read {kind}")


def _refusal(field: str, text: str) -> RequestError:
    return RequestError(Code.INVALID_VALUE, f"{field}: {text}", param=field)
