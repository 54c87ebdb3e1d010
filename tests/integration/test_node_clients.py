"""The official JavaScript clients against the running stack and the demo model."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.harness import DEMO_SOURCE, Gateway, Neuron

CLIENTS = ("openai@^7", "@anthropic-ai/sdk@^1")
MODEL = "smollm2"
PROFILE = {"id": MODEL, "source": DEMO_SOURCE, "context": 2048, "kv_tokens": 8192, "parallel": 4}

OPENAI = """
import OpenAI from "openai";
const client = new OpenAI({ baseURL: process.argv[2] + "/v1", apiKey: "none", maxRetries: 0 });
const model = "smollm2", said = {};
const messages = [{ role: "user", content: "What time is it?" }];
const parameters = { type: "object", properties: { zone: { enum: ["UTC", "CET"] } }, required: ["zone"],
                     additionalProperties: false };
const extra = { temperature: 0, seed: 1, stop: ["."] };

said.chat = await client.chat.completions.create({ model, messages, max_tokens: 40, ...extra });
const chat = client.chat.completions.stream({ model, messages, max_tokens: 40, ...extra,
                                              stream_options: { include_usage: true } });
said.chat_stream = await chat.finalChatCompletion();

const tools = [{ type: "function", function: { name: "clock", description: "Tells the time.", parameters } }];
const forced = await client.chat.completions.create({ model, messages, tools, tool_choice: "required", max_tokens: 200,
                                                      parallel_tool_calls: false });
const call = forced.choices[0].message;
said.call = call.tool_calls[0].function;
const result = { role: "tool", tool_call_id: call.tool_calls[0].id, content: "half past nine" };
const rounds = [...messages, call, result];
said.second = await client.chat.completions.create({ model, tools, max_tokens: 5, messages: rounds });

const format = { type: "json_schema", name: "zone", strict: true, schema: parameters };
said.parsed = (await client.chat.completions.parse({ model, messages, max_tokens: 60,
               response_format: { type: "json_schema", json_schema: format } })).choices[0].message.content;
said.completion = await client.completions.create({ model, prompt: "Once upon a time", max_tokens: 8 });

const input = "Say hello.", request = { model, input, max_output_tokens: 60, ...extra };
said.response = await client.responses.create(request);
const events = client.responses.stream(request);
const kinds = [];
for await (const event of events) kinds.push(event.type);
said.response_stream = await events.finalResponse();
said.kinds = kinds;
const parsed = await client.responses.parse({ model, input, text: { format }, max_output_tokens: 60 });
said.response_parsed = parsed.output_text;
said.counted = await client.responses.inputTokens.count({ model, input });

const listed = [];
for await (const entry of client.models.list()) listed.push(entry.id);
said.models = listed;
try { await client.chat.completions.create({ model: "nope", messages }); }
catch (e) { said.error = { status: e.status, code: e.code }; }
console.log(JSON.stringify(said));
"""

ANTHROPIC = """
import Anthropic from "@anthropic-ai/sdk";
const client = new Anthropic({ baseURL: process.argv[2], apiKey: "none", maxRetries: 0 });
const model = "smollm2", said = {};
const messages = [{ role: "user", content: "What time is it?" }];
const schema = { type: "object", properties: { zone: { enum: ["UTC", "CET"] } }, required: ["zone"],
                 additionalProperties: false };
const tools = [{ name: "clock", description: "Tells the time.", input_schema: schema }];

said.message = await client.messages.create({ model, messages, max_tokens: 12, thinking: { type: "adaptive" } });
said.stream = await client.messages.stream({ model, messages, max_tokens: 12, system: "Be brief." }).finalMessage();
said.counted = await client.messages.countTokens({ model, messages, system: "Be brief." });

const tool_choice = { type: "any", disable_parallel_tool_use: true };  // else a small model calls on and on
const first = await client.messages.create({ model, messages, tools, tool_choice, max_tokens: 200 });
said.first = first;
const use = first.content.find((block) => block.type === "tool_use");
const result = { type: "tool_result", tool_use_id: use.id, content: "half past nine" };
const rounds = [...messages, { role: "assistant", content: [use] }, { role: "user", content: [result] }];
said.second = await client.messages.stream({ model, messages: rounds, tools, max_tokens: 5 }).finalMessage();

const listed = [];
for await (const entry of client.models.list()) listed.push(entry.id);
said.models = listed;
try { await client.messages.create({ model: "nope", messages, max_tokens: 5 }); }
catch (e) { said.error = { status: e.status, type: e.error?.error?.type }; }
console.log(JSON.stringify(said));
"""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    base = tmp_path_factory.mktemp("node")
    with Neuron(base / "n", models=[PROFILE]) as neuron, Gateway(base / "g", neurons=[neuron]) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which both clients are installed."""
    folder = tmp_path_factory.mktemp("modules")
    environment = {**os.environ, "npm_config_update_notifier": "false", "npm_config_fund": "false"}
    command = ["npm", "install", "--silent", "--no-audit", *CLIENTS]
    subprocess.run(command, cwd=folder, check=True, timeout=240, env=environment)
    return folder


def run(folder: Path, name: str, script: str, gateway: Gateway) -> dict[str, Any]:
    """Return what a script says; a warning is a failure."""
    (folder / name).write_text(script)
    done = subprocess.run(
        ["node", "--throw-deprecation", name, gateway.url],
        cwd=folder, capture_output=True, text=True, timeout=150, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    said: dict[str, Any] = json.loads(done.stdout)
    return said


@pytest.mark.needs_node
@pytest.mark.timeout(420)
def test_the_openai_client_reads_everything(modules: Path, gateway: Gateway) -> None:
    said = run(modules, "openai.mjs", OPENAI, gateway)
    whole, streamed = said["chat"], said["chat_stream"]
    assert streamed["choices"][0]["message"]["content"] == whole["choices"][0]["message"]["content"]
    for usage in (whole["usage"], streamed["usage"]):
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] > 0
    assert json.loads(said["call"]["arguments"])["zone"] in ("UTC", "CET")
    assert said["second"]["usage"]["completion_tokens"] > 0
    for parsed in (said["parsed"], said["response_parsed"]):
        assert json.loads(parsed)["zone"] in ("UTC", "CET")
    assert said["completion"]["usage"]["completion_tokens"] == 8
    assert said["response_stream"]["output_text"] == said["response"]["output_text"] != ""
    assert (said["kinds"][0], said["kinds"][-1]) == ("response.created", "response.completed")
    assert said["counted"]["input_tokens"] == said["response"]["usage"]["input_tokens"]
    assert said["models"] == [MODEL]
    assert said["error"] == {"status": 404, "code": "model_not_found"}


@pytest.mark.needs_node
@pytest.mark.timeout(420)
def test_the_anthropic_client_reads_everything(modules: Path, gateway: Gateway) -> None:
    said = run(modules, "anthropic.mjs", ANTHROPIC, gateway)
    assert said["message"]["content"][0]["text"]
    assert said["message"]["usage"]["output_tokens"] <= 12
    usage = said["stream"]["usage"]
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == said["counted"]["input_tokens"]
    assert said["first"]["stop_reason"] == "tool_use"
    call = next(b for b in said["first"]["content"] if b["type"] == "tool_use")
    assert call["input"]["zone"] in ("UTC", "CET")
    assert said["second"]["usage"]["output_tokens"] > 0
    assert said["models"] == [MODEL]
    assert said["error"] == {"status": 404, "type": "not_found_error"}
