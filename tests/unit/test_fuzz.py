"""Mutations of a fixed seed for everything that reads what others wrote. `make fuzz` does the same for longer."""

import pytest

from tests.fuzz.mutate import Mutator
from tests.fuzz.targets import TARGETS

ROUNDS = {"codec": 3000, "parsers": 150, "sse": 300, "gguf": 1000, "bodies": 1000}


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_whatever_comes_is_read_or_refused(name: str) -> None:
    target = TARGETS[name]
    for example in target.examples:
        target.run(example)
    mutator = Mutator(target.examples, seed=20261125)
    for _ in range(ROUNDS[name]):
        data = mutator.next()
        try:
            target.run(data)
        except Exception as error:
            raise AssertionError(f"{name}: {data!r}") from error


@pytest.mark.parametrize(
    "chunk",
    [
        b'{"choices": [{"delta": {"tool_calls": [{"index": 1000000000}]}}]}',
        b'{"choices": [{"delta": {"tool_calls": [{"index": "a"}]}}]}',
        b'{"choices": [{"delta": {"content": 7}}]}',
        b'{"choices": {"a": 1}}',
        b'{"choices": [[]]}',
        b'{"usage": 5}',
        b'{"choices": [{"delta": {"tool_calls": [{"index": 0, "id": {"a": 1}}]}}]}',
        b'{"choices": ' + b"[" * 100_000,
    ],
)
def test_an_endpoint_that_answers_in_another_shape_is_an_error_for_the_user(chunk: bytes) -> None:
    end = b'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'
    TARGETS["sse"].run(b"data: " + chunk + b"\n\n" + end)
