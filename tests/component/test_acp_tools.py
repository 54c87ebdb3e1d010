"""The agent's tools, permissions, commands and errors, as an editor and an endpoint that follow scripts see them."""

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from cortex.acp.history import unpaired
from tests.support.scripted_editor import Params, RpcError, ScriptedEditor
from tests.support.scripted_upstream import Round, ScriptedUpstream

Scenario = Callable[[ScriptedEditor, ScriptedUpstream, str], Awaitable[None]]


def play(folder: Path, scenario: Scenario, *rounds: Round, **more: Any) -> None:
    """Run a scenario with a fresh agent and session."""

    async def run(upstream: ScriptedUpstream) -> None:
        async with ScriptedEditor(folder, upstream.url, **more) as editor:
            await scenario(editor, upstream, await editor.new())

    with ScriptedUpstream(*rounds) as upstream:
        asyncio.run(run(upstream))


def call(name: str, **arguments: Any) -> Round:
    return Round(calls=[("c", name, arguments)])


def result(upstream: ScriptedUpstream) -> str:
    """Return the newest tool result that the model was told."""
    return str([m for m in upstream.requests[-1]["messages"] if m["role"] == "tool"][-1]["content"])


def finished(editor: ScriptedEditor) -> Params:
    return [u for u in editor.updates if u["sessionUpdate"] == "tool_call_update" and u.get("status")][-1]


def answering(option: str) -> Callable[[Params], Awaitable[Any]]:
    async def answer(_: Params) -> Any:
        return {"outcome": {"outcome": "selected", "optionId": option}}

    return answer


def test_an_edit_is_asked_for_with_its_diff_and_place_and_then_done_through_the_editor(tmp_path: Path) -> None:
    async def scenario(editor: ScriptedEditor, upstream: ScriptedUpstream, session: str) -> None:
        file = editor.workspace / "a.py"
        file.write_text("one\ntwo\nthree\n")
        assert await editor.stop_reason(session, "change it") == "end_turn"
        assert file.read_text() == "one\n2\nthree\n"
        methods = [m for m, _ in editor.asked]
        assert methods.index("session/request_permission") < methods.index("fs/write_text_file")
        asked = dict(editor.asked)["session/request_permission"]["toolCall"]
        diff = {"type": "diff", "path": str(file), "oldText": "one\ntwo\nthree\n", "newText": "one\n2\nthree\n"}
        assert asked["content"] == [diff]
        assert asked["locations"] == [{"path": str(file), "line": 2}]
        assert finished(editor)["status"] == "completed"
        assert finished(editor)["content"] == [diff]

    play(tmp_path, scenario, call("edit_file", path="a.py", old_text="two", new_text="2"))


def test_a_rejected_write_leaves_the_file_and_the_model_is_told(tmp_path: Path) -> None:
    async def scenario(editor: ScriptedEditor, upstream: ScriptedUpstream, session: str) -> None:
        editor.on["session/request_permission"] = answering("reject_once")
        assert await editor.stop_reason(session, "write") == "end_turn"
        assert not (editor.workspace / "new").exists()
        assert "did not allow" in result(upstream)
        assert finished(editor)["status"] == "failed"

    play(tmp_path, scenario, call("write_file", path="new", content="x"))


def test_allow_always_asks_once_and_not_for_another_kind_of_access(tmp_path: Path) -> None:
    async def scenario(editor: ScriptedEditor, upstream: ScriptedUpstream, session: str) -> None:
        editor.on["session/request_permission"] = answering("allow_always")
        await editor.stop_reason(session, "write")
        assert sum(m == "session/request_permission" for m, _ in editor.asked) == 2
        assert (editor.workspace / "b").read_text() == "2"

    play(
        tmp_path, scenario, call("write_file", path="a", content="1"), call("write_file", path="b", content="2"),
        call("bash", command="true"),
    )  # fmt: skip


def test_bash_runs_in_the_editors_terminal_and_shows_it(tmp_path: Path) -> None:
    async def scenario(editor: ScriptedEditor, upstream: ScriptedUpstream, session: str) -> None:
        await editor.stop_reason(session, "run")
        assert result(upstream) == f"{editor.workspace}\n\n[exit status 0]"
        assert {"type": "terminal", "terminalId": "term0"} in finished(editor)["content"]
        await editor.wait_asked("terminal/release")

    play(tmp_path, scenario, call("bash", command="pwd -P"))


def test_long_output_is_cut_in_its_middle_and_says_by_how_much(tmp_path: Path) -> None:
    async def scenario(editor: ScriptedEditor, upstream: ScriptedUpstream, session: str) -> None:
        await editor.stop_reason(session, "run")
        text = result(upstream)
        cut = int(text.split("[… ")[1].split(" characters")[0])
        assert len(text) < 31_000
        assert cut == len("".join(f"{n}\n" for n in range(1, 20001))) - 29_800
        assert text.startswith("1\n2\n")
        assert text.endswith("20000\n\n[exit status 0]")

    play(tmp_path, scenario, call("bash", command="seq 1 20000"))


def test_a_command_that_takes_too_long_is_killed_and_says_so(tmp_path: Path) -> None:
    async def scenario(editor: ScriptedEditor, upstream: ScriptedUpstream, session: str) -> None:
        await editor.stop_reason(session, "run")
        assert "killed after 1 s" in result(upstream)
        assert finished(editor)["status"] == "failed"

    play(tmp_path, scenario, call("bash", command="exec sleep 60", timeout_s=1))


def test_plan_mode_writes_nothing_outside_its_folder(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    plans = tmp_path / "work" / ".helexa" / "plans"
    plans.mkdir(parents=True)
    (plans / "link").symlink_to(tmp_path / "outside")
    paths = ["../out.md", str(tmp_path / "out.md"), ".helexa/plans/../../out.md", ".helexa/plans/link/out.md"]

    async def scenario(editor: ScriptedEditor, upstream: ScriptedUpstream, session: str) -> None:
        await editor.ask("session/set_mode", sessionId=session, modeId="plan")
        await editor.stop_reason(session, "write")
        told = [m["content"] for m in upstream.requests[-1]["messages"] if m["role"] == "tool"]
        assert len(told) == len(paths)
        assert all("plan mode only reads" in text for text in told)
        assert not [m for m, _ in editor.asked if m.startswith(("fs/write", "session/request"))]

    play(tmp_path, scenario, *(call("write_file", path=path, content="x") for path in paths))
    assert list(tmp_path.rglob("*.md")) == []


def test_plan_mode_writes_plans_and_runs_nothing(tmp_path: Path) -> None:
    async def scenario(editor: ScriptedEditor, upstream: ScriptedUpstream, session: str) -> None:
        await editor.ask("session/set_mode", sessionId=session, modeId="plan")
        await editor.stop_reason(session, "write")
        assert (editor.workspace / ".helexa" / "plans" / "p.md").read_text() == "plan"
        assert "plan mode only reads" in result(upstream)
        assert not editor.terminals

    play(
        tmp_path, scenario, call("write_file", path=".helexa/plans/p.md", content="plan"),
        call("bash", command="touch x"),
    )  # fmt: skip


def test_a_plan_folder_that_is_a_link_is_none(tmp_path: Path) -> None:
    async def scenario(editor: ScriptedEditor, upstream: ScriptedUpstream, session: str) -> None:
        (tmp_path / "outside").mkdir()
        (editor.workspace / ".helexa").mkdir()
        (editor.workspace / ".helexa" / "plans").symlink_to(tmp_path / "outside")
        await editor.ask("session/set_mode", sessionId=session, modeId="plan")
        await editor.stop_reason(session, "write")
        assert "plan mode only reads" in result(upstream)
        assert not list((tmp_path / "outside").iterdir())

    play(tmp_path, scenario, call("write_file", path=".helexa/plans/p.md", content="plan"))


def test_reading_outside_the_workspace_is_asked_for(tmp_path: Path) -> None:
    async def scenario(editor: ScriptedEditor, upstream: ScriptedUpstream, session: str) -> None:
        (tmp_path / "secret").write_text("s3cret")
        (editor.workspace / "link").symlink_to(tmp_path / "secret")
        editor.on["session/request_permission"] = answering("reject_once")
        await editor.stop_reason(session, "read")
        assert "did not allow" in result(upstream)
        assert "s3cret" not in json.dumps(upstream.requests)

    play(tmp_path, scenario, call("read_file", path="link"), call("search", text="s3"), call("read_file", path="link"))


def test_a_call_is_answered_whatever_it_asks(tmp_path: Path) -> None:
    cases: list[tuple[str, Any, str]] = [
        ("nothing", {}, "there is no tool 'nothing'"),
        ("read_file", {}, "path: missing"),
        ("read_file", "{broken", "not JSON"),
        ("read_file", {"path": "absent"}, "no such file"),
        ("edit_file", {"path": "a", "old_text": "x", "new_text": "y"}, "2 times"),
        ("edit_file", {"path": "a", "old_text": "z", "new_text": "y"}, "not in"),
        ("list_dir", {}, "a\nsub/"),
        ("search", {"text": "x x"}, "a:1: x x"),
    ]

    async def scenario(editor: ScriptedEditor, upstream: ScriptedUpstream, session: str) -> None:
        (editor.workspace / "a").write_text("x x")
        (editor.workspace / "sub").mkdir()
        assert await editor.stop_reason(session, "go") == "end_turn"
        told = [m["content"] for m in upstream.requests[-1]["messages"] if m["role"] == "tool"]
        for (name, _, wanted), text in zip(cases, told, strict=True):
            assert wanted in text, name
        assert unpaired(editor.history(session)) == set()

    play(tmp_path, scenario, *(Round(calls=[("c", name, arguments)]) for name, arguments, _ in cases))


def test_links_embedded_files_images_and_instructions_reach_the_model(tmp_path: Path) -> None:
    async def scenario(editor: ScriptedEditor, upstream: ScriptedUpstream, session: str) -> None:
        (editor.workspace / "AGENTS.md").write_text("Always be brief.")
        file = editor.workspace / "a b.txt"
        file.write_text("l1\nl2\nl3\nl4\n")
        image = base64.b64encode(b"png").decode()
        blocks: list[Params] = [
            {"type": "text", "text": "look"},
            {"type": "resource_link", "name": "a", "uri": f"{file.as_uri()}#L2:3"},
            {"type": "resource", "resource": {"uri": "file:///e.txt", "text": "embedded text"}},
            {"type": "resource", "resource": {"uri": "file:///e.bin", "blob": image, "mimeType": "x/y"}},
            {"type": "image", "data": image, "mimeType": "image/png"},
        ]
        await editor.ask("session/prompt", sessionId=session, prompt=blocks)
        system, user = upstream.requests[0]["messages"]
        assert "Always be brief." in system["content"]
        text, picture = user["content"]
        assert "\nl2\nl3\n" in text["text"]
        assert "l1" not in text["text"]
        assert "l4" not in text["text"]
        assert "embedded text" in text["text"]
        assert "file:///e.bin" in text["text"]
        assert picture["image_url"]["url"] == f"data:image/png;base64,{image}"
        assert "Not sent to the model: file:///e.bin" in editor.said()
        stored = editor.history(session)[0]
        assert [b["type"] for b in stored["blocks"]] == [b["type"] for b in blocks]

    play(tmp_path, scenario)


def test_slash_commands_are_answered_here_and_compact_shortens_what_is_sent(tmp_path: Path) -> None:
    async def scenario(editor: ScriptedEditor, upstream: ScriptedUpstream, session: str) -> None:
        names = [u for u in editor.updates if u["sessionUpdate"] == "available_commands_update"]
        assert [c["name"] for c in names[0]["availableCommands"]] == ["compact", "model", "status"]
        await editor.stop_reason(session, "x" * 5000)
        for command in ("/status", "/model b", "/compact", "/model absent"):
            assert await editor.stop_reason(session, command) == "end_turn"
        assert len(upstream.requests) == 1
        assert str(editor.session_file(session)) in editor.said()
        assert "no model 'absent'" in editor.said()
        await editor.stop_reason(session, "next")
        sent = upstream.requests[1]
        assert sent["model"] == "b"
        assert "/status" not in json.dumps(sent)
        assert len(json.dumps(sent["messages"])) < 2000
        assert editor.history(session)[0]["content"] == "x" * 5000

    play(tmp_path, scenario)


def test_plan_and_usage_are_shown(tmp_path: Path) -> None:
    async def scenario(editor: ScriptedEditor, upstream: ScriptedUpstream, session: str) -> None:
        await editor.stop_reason(session, "plan")
        kinds = {u["sessionUpdate"]: u for u in editor.updates}
        assert kinds["plan"]["entries"] == [{"content": "read", "priority": "medium", "status": "completed"}]
        assert (kinds["usage_update"]["used"], kinds["usage_update"]["size"]) == (110, 4096)

    rounds = call("update_plan", entries=[{"content": "read", "status": "completed"}])
    play(tmp_path, scenario, rounds, HELEXA_ACP_CONTEXT_WINDOW="4096")


def test_a_model_that_never_stops_calling_is_stopped(tmp_path: Path) -> None:
    async def scenario(editor: ScriptedEditor, upstream: ScriptedUpstream, session: str) -> None:
        assert await editor.stop_reason(session, "loop") == "max_turn_requests"
        assert len(upstream.requests) == 25
        assert unpaired(editor.history(session)) == set()

    play(tmp_path, scenario, *[call("list_dir")] * 30)


def test_a_stream_that_breaks_is_an_error_and_its_text_is_kept(tmp_path: Path) -> None:
    async def scenario(editor: ScriptedEditor, upstream: ScriptedUpstream, session: str) -> None:
        with pytest.raises(RpcError, match="in the middle"):
            await editor.prompt(session, "go")
        assert editor.history(session)[-1]["partial"] is True
        assert await editor.stop_reason(session, "again") == "end_turn"

    play(tmp_path, scenario, Round("some words that are cut off", cut=300))


def test_a_busy_endpoint_is_tried_again_and_a_refusal_is_told(tmp_path: Path) -> None:
    async def scenario(editor: ScriptedEditor, upstream: ScriptedUpstream, session: str) -> None:
        assert await editor.stop_reason(session, "go") == "end_turn"
        assert len(upstream.requests) == 3
        upstream.rounds.append(Round(status=400))
        with pytest.raises(RpcError, match="answered 400: scripted refusal"):
            await editor.prompt(session, "go")

    busy = {"Retry-After": "0"}
    play(tmp_path, scenario, Round(status=429, headers=busy), Round(status=503, headers=busy))


def test_the_stop_reason_says_why_the_model_stopped(tmp_path: Path) -> None:
    async def scenario(editor: ScriptedEditor, upstream: ScriptedUpstream, session: str) -> None:
        assert await editor.stop_reason(session, "go") == "max_tokens"
        assert await editor.stop_reason(session, "go") == "refusal"

    play(tmp_path, scenario, Round("x", finish="length"), Round("x", finish="content_filter"))


def test_garbage_lines_get_errors_and_the_next_line_works(tmp_path: Path) -> None:
    async def scenario(editor: ScriptedEditor, upstream: ScriptedUpstream, session: str) -> None:
        for line in (b"garbage", b"[1]", b"5", b"\xff\xfe", b'{"jsonrpc":"2.0","id":[],"method":"x"}', b"[" * 100_000):
            editor.responses.clear()
            editor.send_line(line)
            await editor.wait_until(lambda: None in editor.responses, f"an answer to {line[:20]!r}")
            assert editor.responses[None]["error"]["code"] in (-32700, -32600)
        with pytest.raises(RpcError) as refused:
            await editor.ask("session/prompt", sessionId=5)
        assert refused.value.code == -32602
        with pytest.raises(RpcError, match="not open"):
            await editor.ask("session/prompt", sessionId="sess_x", prompt=[{"type": "text", "text": "x"}])
        assert await editor.stop_reason(session, "go") == "end_turn"

    play(tmp_path, scenario)


def test_sessions_are_listed_loaded_and_a_damaged_file_is_named_and_left_alone(tmp_path: Path) -> None:
    async def scenario(editor: ScriptedEditor, upstream: ScriptedUpstream, session: str) -> None:
        await editor.stop_reason(session, "a title\nand more")
        damaged = editor.session_file("sess_damaged")
        damaged.write_text("{torn")
        rows = (await editor.ask("session/list"))["sessions"]
        assert [(r["sessionId"], r["title"]) for r in rows] == [(session, "a title")]
        here = {"cwd": str(editor.workspace), "mcpServers": []}
        with pytest.raises(RpcError, match=r"sess_damaged\.json cannot be read"):
            await editor.ask("session/load", sessionId="sess_damaged", **here)
        assert damaged.read_text() == "{torn"
        for absent in ("sess_absent", "../../etc/passwd"):
            with pytest.raises(RpcError) as refused:
                await editor.ask("session/load", sessionId=absent, **here)
            assert refused.value.code == -32002
        assert editor.session_file(session).stat().st_mode & 0o777 == 0o600

    play(tmp_path, scenario)


def test_models_are_chosen_by_config_option_and_by_the_older_method(tmp_path: Path) -> None:
    async def scenario(editor: ScriptedEditor, upstream: ScriptedUpstream, session: str) -> None:
        chosen = await editor.ask("session/set_config_option", sessionId=session, configId="model", value="b")
        assert {o["id"]: o["currentValue"] for o in chosen["configOptions"]} == {"mode": "default", "model": "b"}
        await editor.ask("session/set_model", sessionId=session, modelId="scripted")
        await editor.stop_reason(session, "go")
        assert upstream.requests[0]["model"] == "scripted"
        with pytest.raises(RpcError):
            await editor.ask("session/set_model", sessionId=session, modelId="absent")

    play(tmp_path, scenario)
