"""Tasks and generations for the tests of the worker."""

from common.messages import Grammar, Sampling, StartedItem, Task
from neuron.worker.generation import Generation
from neuron.worker.lane import Lane
from neuron.worker.loop import AnyLane


def make_task(
    job: str,
    tokens: list[int],
    *,
    max_tokens: int = 100,
    attempt: int = 1,
    resume: list[int] | None = None,
    gateway: str = "gateway",
    model: str = "m",
    sampling: Sampling | None = None,
    constraint: Grammar | None = None,
    logprobs: int | None = None,
) -> Task:
    """Return a task as the supervisor sends it."""
    return Task(
        job=job,
        attempt=attempt,
        gateway=gateway,
        model=model,
        request_id=f"req_{job}",
        tokens=tokens,
        resume_tokens=resume or [],
        sampling=sampling or Sampling(),
        constraint=constraint,
        logprobs=logprobs,
        max_tokens=max_tokens,
        started=StartedItem(job=job, attempt=attempt, prompt_tokens=len(tokens), max_tokens=max_tokens),
    )


def text_lane(lanes: dict[str, AnyLane], name: str = "m") -> Lane:
    """Return the lane of a model that generates."""
    lane = lanes[name]
    assert isinstance(lane, Lane)
    return lane


def make_generation(
    serial: int, length: int, *, position: int = 0, is_seated: bool = True, max_tokens: int = 100
) -> Generation:
    """Return a generation with a prompt of `length` tokens, `position` of them in cells."""
    generation = Generation(make_task(str(serial), [7] * length, max_tokens=max_tokens), serial, 0.0)
    generation.position = position
    generation.sequence = serial if is_seated else None
    return generation
