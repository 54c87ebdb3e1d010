"""The one internal request that every dialect becomes, and the jobs it stands for."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec
from msgspec import structs

from common.catalogue import Alias
from common.errors import Code
from common.messages import Chat, Embed, Grammar, Infill, Job, JsonObject, JsonSchema, Rerank, Sampling, Text, TokenIds
from cortex.dialects.effort import effort_arguments

Input = TypeVar("Input", bound=Chat | Text | TokenIds | Embed | Rerank | Infill)
ORDINARY_PRIORITY = 100
"""Of a job of somebody with a key, where no alias says otherwise."""
LAST_PRIORITY = 999
"""The last one that an alias can give to somebody with a key."""
ANONYMOUS_PRIORITY = LAST_PRIORITY + 1 + ORDINARY_PRIORITY
"""Of a job that nobody answers for; no alias lets it come before one of somebody with a key."""


class Generation(msgspec.Struct, frozen=True, kw_only=True):
    """What a request wants generated, in nobody's dialect."""

    model: str
    """As the client named it."""
    inputs: Sequence[Chat | Text | TokenIds | Infill | Embed | Rerank]
    n: int = 1
    """Answers to each input."""
    sampling: Sampling = Sampling()
    constraint: Grammar | JsonSchema | JsonObject | None = None
    constraint_field: str = "response_format"
    """Where in the request it stands."""
    logprobs: int | None = None
    """Log-probabilities of each token and of so many likeliest ones; None: none."""
    max_tokens: int | None = None
    is_stream: bool = False
    told_in_stream: frozenset[Code] = frozenset()
    """Failures that a stream tells of after a 200, also where they come before anything was sent."""

    @property
    def size(self) -> int:
        """Number of jobs, which is also the number of choices in the reply."""
        return len(self.inputs) * self.n


def fill(generation: Generation, alias: Alias | None) -> Generation:
    """Return the request with what its alias says where it says nothing itself."""
    if alias is None:
        return generation
    given = structs.asdict(alias.sampling)
    sampling = {n: v for n, v in given.items() if v is not None and getattr(generation.sampling, n) is None}
    return structs.replace(
        generation,
        inputs=[fill_input(i, alias) for i in generation.inputs],
        sampling=structs.replace(generation.sampling, **sampling),
    )


def fill_input(given: Input, alias: Alias | None) -> Input:
    """Return a prompt with the arguments that its alias has for the chat template."""
    if alias is None or not isinstance(given, Chat):
        return given
    arguments = {**effort_arguments(alias.reasoning_effort), **alias.chat_template_kwargs, **given.template_kwargs}
    return structs.replace(given, template_kwargs=arguments)


def rank(priority: int, alias: Alias | None) -> int:
    """Return the priority of a request: its client's, moved by its alias's distance from the ordinary one."""
    if alias is None or alias.priority is None:
        return priority
    moved = priority + alias.priority - ORDINARY_PRIORITY
    return moved if priority == ANONYMOUS_PRIORITY else min(moved, LAST_PRIORITY)


def make_jobs(
    generation: Generation,
    *,
    model: str,
    request_id: str,
    principal: str,
    priority: int,
    budget_ms: int,
    new_id: Callable[[], str],
) -> list[Job]:
    """Return the jobs in the order of the reply's choices: all answers to the first input, then to the second, ….

    `model` is the resolved id. With a seed, the answers to one input have the seeds seed … seed + n - 1.
    """
    group = new_id() if generation.size > 1 else None
    return [
        Job(
            id=new_id(),
            attempt=0,
            model=model,
            request_id=request_id,
            input=given,
            sampling=_reseed(generation.sampling, number),
            constraint=generation.constraint,
            constraint_field=generation.constraint_field,
            logprobs=generation.logprobs,
            max_tokens=generation.max_tokens,
            budget_ms=budget_ms,
            principal=principal,
            priority=priority,
            group=group,
        )
        for given in generation.inputs
        for number in range(generation.n)
    ]


def _reseed(sampling: Sampling, number: int) -> Sampling:
    if sampling.seed is None or number == 0:
        return sampling
    return structs.replace(sampling, seed=sampling.seed + number)
