"""The gateway over TLS, and behind the proxies of deploy/proxy."""

import contextlib
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import pytest

from common.messages import Abort
from tests.support.certificates import make_certificate
from tests.support.fake_neuron import MODEL, FakeNeuron, ended, started, token
from tests.support.harness import ROOT, Gateway, free_port

CHAT = {"model": MODEL, "stream": True, "messages": [{"role": "user", "content": "hi"}]}
PATIENCE_S = 10.0


@pytest.fixture
def neuron() -> Iterator[FakeNeuron]:
    with FakeNeuron() as fake:
        yield fake


class SecureGateway(Gateway):
    """Asked over TLS, also whether it is up."""

    def __enter__(self) -> "SecureGateway":
        self._wait(lambda: served_name(self.port) is not None, "gateway")
        return self


def served_name(port: int) -> str | None:
    """Return whose certificate is shown; None if nobody speaks TLS there."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=2) as plain,
            context.wrap_socket(plain) as secured,
        ):
            shown = secured.getpeercert(binary_form=True) or b""
    except OSError:
        return None
    found = re.search(rb"([a-z]+\.example)", shown)
    assert found is not None
    return found[1].decode()


def test_streams_over_tls_outlive_a_change_of_the_certificate(tmp_path: Path, neuron: FakeNeuron) -> None:
    chain, key = make_certificate(tmp_path / "one", "one.example")
    neuron.on_job = neuron.ignore
    with SecureGateway(
        tmp_path / "g",
        endpoints={"beast": neuron.endpoint},
        tls_certificate=str(chain),
        tls_key=str(key),
        max_body_mb=1,
    ) as gateway:
        url = f"https://127.0.0.1:{gateway.port}"
        trusts = ssl.create_default_context(cafile=str(chain))
        with (
            httpx.Client(verify=trusts, timeout=PATIENCE_S) as client,
            client.stream("POST", f"{url}/v1/chat/completions", json=CHAT) as reply,
        ):
            lines = (line for line in reply.iter_lines() if line.startswith("data"))
            job = neuron.jobs()[-1]
            neuron.send(started(job))
            neuron.send(token(job, 0, "one "))
            assert "assistant" in next(lines)
            new_chain, new_key = make_certificate(tmp_path / "two", "two.example")
            os.replace(new_chain, chain)
            os.replace(new_key, key)
            ends_at = time.monotonic() + PATIENCE_S
            while served_name(gateway.port) != "two.example":
                assert time.monotonic() < ends_at, gateway.log
                time.sleep(0.05)
            neuron.send(token(job, 1, "two"))
            neuron.send(ended(job, 2))
            assert list(lines)[-1] == "data: [DONE]"
        command = [sys.executable, "-m", "cortex", "models", "--config", str(gateway.folder / "cortex.yaml")]
        shown = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, cwd=ROOT)
        assert MODEL in shown.stdout, shown.stderr
        with pytest.raises(httpx.HTTPError):  # plain HTTP is not answered
            httpx.get(f"http://127.0.0.1:{gateway.port}/livez", timeout=PATIENCE_S)
        refused = httpx.post(f"{url}/v1/messages", content=b"x" * (2**20 + 1), verify=False, timeout=PATIENCE_S)
        assert refused.status_code == 413


@contextlib.contextmanager
def nginx(folder: Path, gateway: Gateway, port: int) -> Iterator[None]:
    """Run nginx with the example that is installed, but for addresses and files."""
    chain, key = make_certificate(folder, "one.example")
    example = (ROOT / "deploy" / "proxy" / "nginx.conf").read_text()
    for pattern, value in (
        (r"listen 443 ssl", f"listen 127.0.0.1:{port} ssl"),
        (r"127\.0\.0\.1:31313;", f"127.0.0.1:{gateway.port};"),
        (r"/etc/\S+/fullchain\.pem", str(chain)),
        (r"/etc/\S+/privkey\.pem", str(key)),
    ):
        example, count = re.subn(pattern, value, example)
        assert count == 1, pattern
    config = folder / "nginx.conf"
    temporary = "".join(f"{n}_temp_path {folder}/{n};" for n in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    config.write_text(f"""
        daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;
        events {{}}
        http {{ access_log off; {temporary} {example} }}
    """)
    program = shutil.which("nginx")
    assert program is not None
    with subprocess.Popen([program, "-c", str(config), "-p", str(folder)], stderr=subprocess.DEVNULL) as proxy:
        try:
            ends_at = time.monotonic() + PATIENCE_S
            while served_name(port) is None:
                assert time.monotonic() < ends_at, (folder / "error.log").read_text()
                time.sleep(0.05)
            yield
        finally:
            proxy.terminate()


@contextlib.contextmanager
def caddy(folder: Path, gateway: Gateway, port: int) -> Iterator[None]:
    """Run Caddy with the example that is installed, but for addresses and the certificate, which it would ask for."""
    chain, key = make_certificate(folder, "one.example")
    example = (ROOT / "deploy" / "proxy" / "Caddyfile").read_text()
    for pattern, value in (
        (r"models\.example\.org \{", f"https://127.0.0.1:{port} {{\n\ttls {chain} {key}"),
        (r"reverse_proxy 127\.0\.0\.1:31313", f"reverse_proxy 127.0.0.1:{gateway.port}"),
    ):
        example, count = re.subn(pattern, value, example)
        assert count == 1, pattern
    config, log = folder / "Caddyfile", folder / "log"
    config.write_text(f"{{\n\tadmin off\n\tauto_https disable_redirects\n}}\n{example}")
    program = shutil.which("caddy")
    assert program is not None
    command = [program, "run", "--config", str(config), "--adapter", "caddyfile"]
    environment = {**os.environ, "HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
    with log.open("wb") as told, subprocess.Popen(command, stdout=told, stderr=told, env=environment) as proxy:
        try:
            ends_at = time.monotonic() + PATIENCE_S
            while served_name(port) is None:
                assert time.monotonic() < ends_at, log.read_text()
                time.sleep(0.05)
            yield
        finally:
            proxy.terminate()


@pytest.mark.parametrize(
    "proxy",
    [pytest.param(nginx, marks=pytest.mark.needs_nginx), pytest.param(caddy, marks=pytest.mark.needs_caddy)],
)
def test_through_the_example_of_a_proxy_tokens_come_as_they_are_made(
    tmp_path: Path, neuron: FakeNeuron, proxy: Callable[[Path, Gateway, int], AbstractContextManager[None]]
) -> None:
    port = free_port()
    neuron.on_job = neuron.ignore
    with (
        Gateway(tmp_path / "g", endpoints={"beast": neuron.endpoint}) as gateway,
        proxy(tmp_path / "proxy", gateway, port),
        httpx.Client(verify=False, timeout=PATIENCE_S, base_url=f"https://127.0.0.1:{port}") as client,
    ):
        with client.stream("POST", "/v1/chat/completions", json=CHAT) as reply:
            lines = (line for line in reply.iter_lines() if line.startswith("data"))
            job = neuron.jobs()[-1]
            neuron.send(started(job))
            assert "assistant" in next(lines)
            for at in range(3):  # each is only sent when the one before has arrived
                neuron.send(token(job, at, f"word{at} "))
                assert f"word{at}" in json.loads(next(lines).removeprefix("data: "))["choices"][0]["delta"]["content"]
        neuron.wait_for(Abort, lambda m: job.id in {k.job for k in m.jobs})  # the client went away
        assert client.get("/fleet/status").status_code == 404
        body = {"model": MODEL, "messages": [{"role": "user", "content": "x" * 2**21}], "stop": 7}
        assert client.post("/v1/chat/completions", json=body).status_code == 400  # large, and read to its end


def test_the_examples_name_the_gateways_own_address() -> None:
    for name in ("nginx.conf", "Caddyfile"):
        assert "127.0.0.1:31313" in (ROOT / "deploy" / "proxy" / name).read_text()
