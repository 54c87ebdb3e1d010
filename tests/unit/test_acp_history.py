"""What the model is told: pairing kept, the oldest shortened first; configuration read as documented."""

from pathlib import Path
from typing import Any

import pytest

from common.errors import ConfigError
from cortex.acp.configuration import read
from cortex.acp.history import project, reply_entry, result_entry, unpaired, user_entry
from cortex.acp.message import parse_link
from cortex.acp.store import Record


def conversation(rounds: int, size: int) -> list[dict[str, Any]]:
    history = [
        user_entry("old question " * 50, []),
        reply_entry("old answer " * 50, "", []),
        user_entry("question", []),
    ]
    for n in range(rounds):
        history.append(reply_entry("", "", [{"id": f"c{n}", "name": "read_file", "arguments": "{}"}]))
        history.append(result_entry(f"c{n}", "read_file", "x" * size, is_error=False))
    return history


def test_the_oldest_results_go_first_then_old_prose_and_every_call_keeps_its_result() -> None:
    history = conversation(10, 3000)
    sent = project("system", history, budget_tokens=4000)
    results = [m["content"] for m in sent if m["role"] == "tool"]
    kept = [len(r) == 3000 for r in results]
    assert kept == sorted(kept), "a newer result went before an older one"
    assert 0 < sum(kept) < 10
    assert len(sent[1]["content"]) > 400, "prose went before results"
    assert [c["id"] for m in sent for c in m.get("tool_calls", ())] == [f"c{n}" for n in range(10)]
    tight = project("system", history, budget_tokens=300)
    assert len(tight[1]["content"]) < 300
    assert tight[3]["content"] == "question"
    assert unpaired(history) == set()
    assert all(len(e["content"]) == 3000 for e in history if e["role"] == "tool"), "the history itself was shortened"


def test_adjacent_messages_of_the_user_are_joined_and_commands_left_out() -> None:
    local = {"local": True}
    history = [user_entry("a", []), {**user_entry("/status", []), **local}, {**reply_entry("ok", "", []), **local}]
    sent = project("system", [*history, user_entry([{"type": "text", "text": "b"}], [])])
    assert [m["role"] for m in sent] == ["system", "user"]
    assert [p["text"] for p in sent[1]["content"]] == ["a", "b"]


def test_arguments_that_are_no_object_are_sent_as_one() -> None:
    sent = project("", [reply_entry("", "", [{"id": "c", "name": "x", "arguments": "{torn"}])])
    assert sent[1]["tool_calls"][0]["function"]["arguments"] == "{}"


def test_what_a_newer_version_wrote_is_kept() -> None:
    record = Record.decode(
        b'{"version": 1, "id": "s", "cwd": "/", "colour": "red", "history": [{"role": "user", "content": "x", "n": 1}]}'
    )
    again = Record.decode(record.encode())
    assert again == record
    assert again.unknown == {"colour": "red"}
    assert again.history[0]["n"] == 1


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"{}", b'{"version": 2}', b'{"version": 1, "id": "s", "cwd": "/", "history": [1]}']
)
def test_what_is_no_session_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 # the kinds of damage differ
        Record.decode(text)


@pytest.mark.parametrize(
    ("fragment", "lines"),
    [("", (1, None)), ("#L3", (3, 3)), ("#L3:9", (3, 9)), ("#L3-9", (3, 9)), ("#L3-L9", (3, 9)), ("#x", (1, None))],
)
def test_a_link_names_its_lines(fragment: str, lines: tuple[int, int | None]) -> None:
    assert parse_link(f"file:///a%20b.py{fragment}") == ("/a b.py", *lines)


def test_endpoints_come_from_the_file_and_the_environment_wins(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("""
        default = "home"
        [endpoints.work]
        base_url = "https://work/v1/"
        api_key_env = "KEY"
        tools = false
        idle_timeout_s = 7
        [endpoints.home]
        base_url = "http://home/v1"
        model = "m"
        context_window = 1000
    """)
    found = read(file, {"KEY": "k", "HELEXA_ACP_MODEL": "n", "HELEXA_ACP_TOOLS": "off"})
    home, work = found.endpoints
    assert (home.name, home.model, home.context_window, home.tools) == ("home", "n", 1000, False)
    assert (work.base_url, work.api_key, work.tools, work.idle_timeout_s) == ("https://work/v1", "k", False, 7)
    assert found.find("work/big/model") == (work, "big/model")
    assert found.find("big/model") == (home, "big/model")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("colour = 1", "colour: unknown"),
        ('default = "x"\n[endpoints.a]\nbase_url = "http://a"', "default: 'x'"),
        ("[endpoints.a]", "endpoints.a.base_url: missing"),
        ('[endpoints.a]\nbase_url = "a"', "endpoints.a.base_url"),
        ('[endpoints.a]\nbase_url = "http://a"\nmax_tokens = 0', "max_tokens: must be a positive number"),
        ('[endpoints.a]\nbase_url = "http://a"\ntools = 1', "tools: must be true or false"),
        ('[endpoints.a]\nbase_url = "http://a"\napi_key_env = "NO"', "has no NO"),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path: Path, text: str, named: str) -> None:
    file = tmp_path / "config.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        read(file, {})
    assert named in str(error.value)
    assert str(file) in str(error.value)
