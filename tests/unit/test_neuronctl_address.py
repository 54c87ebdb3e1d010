"""Where neuronctl goes: where it is told, else to this host, without a key where the socket file lets it in."""

import os
from pathlib import Path

import pytest

from neuron.ctl.__main__ import DEFAULT_ENDPOINT, build_parser, choose_endpoint


def test_on_its_own_host_the_socket_file_is_taken_where_nothing_else_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NEURON_ENDPOINT", raising=False)
    monkeypatch.delenv("NEURON_KEY", raising=False)
    path = tmp_path / "neuron.sock"

    def chosen(*arguments: str) -> str:
        return choose_endpoint(build_parser().parse_args([*arguments, "status"]), str(path)).zmq

    assert chosen() == DEFAULT_ENDPOINT
    path.touch()
    assert chosen() == f"ipc://{path}"
    assert chosen("--key", "k") == DEFAULT_ENDPOINT
    assert chosen("--endpoint", "beast:13131") == "tcp://beast:13131"
    assert chosen("--endpoint", "ipc:///elsewhere/neuron.sock") == "ipc:///elsewhere/neuron.sock"
    monkeypatch.setattr(os, "access", lambda *_: False)  # somebody whom it does not let in
    assert chosen() == DEFAULT_ENDPOINT
    monkeypatch.setenv("NEURON_ENDPOINT", "beast:13131")
    assert chosen() == "tcp://beast:13131"
