"""Messages survive the bus; what is no message is an error that names the path."""

import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.codec import decode_from_neuron, decode_from_worker, decode_to_neuron, decode_to_worker, encode
from common.errors import Code, ProtocolError
from common.messages import (
    Abort,
    Chat,
    Failed,
    FailedItem,
    Job,
    JobKey,
    NodeState,
    Run,
    Sampling,
    StartedItem,
    Submit,
    Task,
    Text,
    TokenIds,
    TokenItem,
    Tokens,
)

ids = st.lists(st.integers(0, 2**31 - 1), max_size=20)
samplings = st.builds(
    Sampling,
    temperature=st.none() | st.floats(0, 2),
    seed=st.none() | st.integers(-(2**63), 2**63 - 1),
    logit_bias=st.dictionaries(st.integers(0, 2**31 - 1), st.floats(-100, 100), max_size=3),
    stop=st.lists(st.text(min_size=1), max_size=3),
)
inputs = (
    st.builds(Text, text=st.text())
    | st.builds(TokenIds, ids=ids)
    | st.builds(Chat, messages=st.lists(st.fixed_dictionaries({"role": st.text(), "content": st.none() | st.text()})))
)


@given(inputs, samplings, ids)
def test_a_job_arrives_as_it_was_sent(prompt: Chat | Text | TokenIds, sampling: Sampling, resume: list[int]) -> None:
    job = Job(id="j", attempt=2, model="m", request_id="r", input=prompt, sampling=sampling, resume_tokens=resume)
    assert decode_to_neuron(encode(Submit(jobs=[job]))) == Submit(jobs=[job])


@given(st.lists(st.tuples(st.text(), ids), max_size=5))
def test_a_batch_of_tokens_arrives_as_it_was_sent(parts: list[tuple[str, list[int]]]) -> None:
    message = Tokens(items=[TokenItem("j", 1, i, text, token_ids) for i, (text, token_ids) in enumerate(parts)])
    assert decode_from_neuron(encode(message)) == message
    assert decode_from_worker(encode(message)) == message


def test_every_code_travels() -> None:
    for code in Code:
        message = Failed(items=[FailedItem(job="j", attempt=1, code=code, message="m")])
        assert decode_from_neuron(encode(message)) == message


def test_a_task_arrives_as_it_was_sent() -> None:
    started = StartedItem(job="j", attempt=1, prompt_tokens=2, max_tokens=5)
    task = Task(job="j", attempt=1, gateway="g", model="m", request_id="r", tokens=[1], max_tokens=5, started=started)
    assert decode_to_worker(encode(Run(tasks=[task]))) == Run(tasks=[task])


def test_a_field_of_a_newer_version_is_ignored_and_a_missing_one_takes_its_default() -> None:
    state = {"kind": "node-state", "incarnation": "i", "seq": 1, "full": True, "name": "n", "version": "9", "new": 1}
    decoded = decode_from_neuron(msgspec.msgpack.encode(state))
    assert isinstance(decoded, NodeState)
    assert decoded.devices == []


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "truncated"),
        (b"\xc1", "malformed"),
        (b"{}", "Expected `object`"),
        (msgspec.msgpack.encode({"kind": "from-the-future"}), "from-the-future"),
        (msgspec.msgpack.encode({"kind": "abort", "jobs": [["a", "one"]]}), r"jobs\[0\]\[1\]"),
        (msgspec.msgpack.encode({"kind": "abort", "jobs": [[b"\xff", 1]]}), r"jobs\[0\]\[0\]"),
        (b"\x91" * 10000, "."),
    ],
)
def test_what_is_no_message_is_refused_with_the_failing_path(data: bytes, expected: str) -> None:
    with pytest.raises(ProtocolError, match=expected):
        decode_to_neuron(data)


@given(st.binary(max_size=300))
def test_no_bytes_whatsoever_raise_anything_else(data: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        decode_to_neuron(data)


def test_defaults_take_no_room_on_the_wire() -> None:
    assert len(encode(Abort(jobs=[JobKey("j", 1)]))) < 30
