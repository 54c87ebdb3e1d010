"""Conversations whose beginning changes are told of once, with the place."""

from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from common.messages import Chat
from cortex.api import drift
from cortex.api.drift import DriftWatch

SYSTEM = "x-header: cch={}; " + "You are helpful. " * 400


def turn(number: int, system: str = SYSTEM, **fields: Any) -> Chat:
    """Return the conversation at its `number`-th turn."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": system.format(number)}]
    for index in range(number + 1):
        messages += [{"role": "user", "content": f"question {index}"}, {"role": "assistant", "content": "yes"}]
    return Chat(messages=messages[:-1], **fields)


def look(*chats: Chat, caplog: pytest.LogCaptureFixture) -> list[str]:
    watch = DriftWatch()
    for chat in chats:
        watch.look(chat, principal="p", model="m", request_id="r")
    return [r.getMessage() for r in caplog.records]


def test_a_beginning_that_changes_is_told_of_once_with_its_place(caplog: pytest.LogCaptureFixture) -> None:
    (line,) = look(*(turn(n) for n in range(5)), caplog=caplog)
    assert "(messages[0], system, about character 15)" in line
    assert "helpful" not in line


def test_a_beginning_that_changes_late_in_a_long_conversation_is_told_of_too(caplog: pytest.LogCaptureFixture) -> None:
    steady = SYSTEM.replace("{}", "0")
    (line,) = look(*(turn(n, steady) for n in range(21)), turn(21, SYSTEM), turn(22, SYSTEM), caplog=caplog)
    assert "(messages[0], system, about character 15)" in line


def test_a_long_conversation_is_read_as_a_whole_only_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    written = 0

    def dumps(value: object) -> bytes:
        nonlocal written
        made = orjson.dumps(value)
        written += len(made)
        return made

    monkeypatch.setattr(drift, "orjson", SimpleNamespace(dumps=dumps))
    watch, chats = DriftWatch(), [turn(n, SYSTEM.replace("{}", "0")) for n in range(256)]
    for chat in chats:
        watch.look(chat, principal="p", model="m", request_id="r")
    assert written < 256 * 3000, "each turn costs about what it began with"
    assert written < sum(len(orjson.dumps(c.messages)) for c in chats) / 5


def test_what_goes_on_as_it_began_is_not(caplog: pytest.LogCaptureFixture) -> None:
    assert look(*(turn(n, SYSTEM.replace("{}", "0")) for n in range(5)), caplog=caplog) == []


def test_a_change_beyond_the_first_twentieth_is_not(caplog: pytest.LogCaptureFixture) -> None:
    assert look(*(turn(n, "You are helpful. " * 400 + "{}") for n in range(5)), caplog=caplog) == []


def test_tools_that_change_are_named(caplog: pytest.LogCaptureFixture) -> None:
    tools = [[{"type": "function", "function": {"name": f"f{n}"}}] for n in range(2)]
    long = [{"role": "user", "content": "question " * 900}]
    answer = [{"role": "assistant", "content": "yes"}, {"role": "user", "content": "and?"}]
    first, second = Chat(messages=long, tools=tools[0]), Chat(messages=[*long, *answer], tools=tools[1])
    (line,) = look(first, second, caplog=caplog)
    assert "(tools[0], about character " in line


def test_other_conversations_principals_and_the_same_turn_again_are_no_later_turns(
    caplog: pytest.LogCaptureFixture,
) -> None:
    watch = DriftWatch()
    other = Chat(messages=[{"role": "system", "content": SYSTEM}, {"role": "user", "content": "else"}])
    for principal, chat in (("a", turn(1)), ("b", turn(2)), ("a", turn(1, SYSTEM.replace("c", "d"))), ("a", other)):
        watch.look(chat, principal=principal, model="m", request_id="r")
    assert not caplog.records


def test_short_prompts_are_of_no_interest(caplog: pytest.LogCaptureFixture) -> None:
    assert look(*(turn(n, "cch={}") for n in range(5)), caplog=caplog) == []
