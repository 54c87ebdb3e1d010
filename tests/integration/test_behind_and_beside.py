"""Programs users put around the gateway: a reverse proxy before it, the official Node client beside it."""

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fake_engine import text_of, write_model
from tests.support.harness import Gateway, Neuron, free_port
from tests.support.streams import Stream, chat

NODE_CLIENT = "openai@4.104.0"  # the last line that also runs on Debian's node


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    models = [{"id": "m", "source": f"file:{write_model(tmp_path / 'm.json', token_s=0.02)}", "vram_mb": 100}]
    with (
        Neuron(tmp_path / "n", models=models, engine="tests.support.fake_engine", preload=["m"]) as neuron,
        Gateway(tmp_path / "g", neurons=[neuron]) as started,
    ):
        yield started


@pytest.mark.needs_nginx
def test_a_stream_passes_nginx_as_it_comes_without_any_setting_there(gateway: Gateway, tmp_path: Path) -> None:
    port = free_port()
    config = tmp_path / "nginx.conf"
    config.write_text(f"""
        daemon off; master_process off; pid {tmp_path}/pid; error_log {tmp_path}/error.log;
        events {{}}
        http {{
            access_log off;
            client_body_temp_path {tmp_path}/body; proxy_temp_path {tmp_path}/proxy;
            fastcgi_temp_path {tmp_path}/f; uwsgi_temp_path {tmp_path}/u; scgi_temp_path {tmp_path}/s;
            server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass {gateway.url}; }} }}
        }}
    """)
    nginx = shutil.which("nginx")
    assert nginx is not None
    with subprocess.Popen([nginx, "-c", str(config), "-p", str(tmp_path)], stderr=subprocess.DEVNULL) as proxy:
        try:
            _wait_for_port(port)
            reading = Stream(f"http://127.0.0.1:{port}/v1/chat/completions", chat("m", "x", max_tokens=50)).finish()
        finally:
            proxy.terminate()
    assert reading.done
    times = reading.token_times()
    # Fifty tokens, 20 ms apart: had nginx kept them, all would have come at once.
    assert times[-1] - times[0] > 0.5


def _wait_for_port(port: int) -> None:
    deadline = time.monotonic() + 10
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert time.monotonic() < deadline, "nginx does not listen"
        time.sleep(0.02)


@pytest.mark.needs_node
@pytest.mark.timeout(300)
def test_the_official_node_client_streams_an_answer(gateway: Gateway, tmp_path: Path) -> None:
    environment = {**os.environ, "npm_config_update_notifier": "false", "npm_config_fund": "false"}
    subprocess.run(
        ["npm", "install", "--silent", "--no-audit", NODE_CLIENT],
        cwd=tmp_path,
        check=True,
        timeout=240,
        env=environment,
    )
    script = tmp_path / "stream.mjs"
    script.write_text("""
        import OpenAI from "openai";
        const client = new OpenAI({ baseURL: process.argv[2], apiKey: "none", maxRetries: 0 });
        const messages = [{ role: "user", content: "hello" }];
        const stream = await client.chat.completions.create({ model: "m", stream: true, max_tokens: 10, messages });
        let text = "", finish = null;
        for await (const chunk of stream) {
            text += chunk.choices[0]?.delta?.content ?? "";
            finish = chunk.choices[0]?.finish_reason ?? finish;
        }
        let error = null;
        try { await client.chat.completions.create({ model: "nope", messages }); }
        catch (e) { error = { status: e.status, code: e.code }; }
        console.log(JSON.stringify({ text, finish, error }));
    """)
    done = subprocess.run(
        ["node", str(script), f"{gateway.url}/v1"], capture_output=True, text=True, timeout=60, check=True, cwd=tmp_path
    )
    said = json.loads(done.stdout)
    assert said["finish"] == "length"
    assert said["error"] == {"status": 404, "code": "model_not_found"}
    ids = [int(word) for word in said["text"].split()]
    assert text_of(ids) == said["text"]
    assert len(ids) == 10
    assert len(set(ids)) == 10
