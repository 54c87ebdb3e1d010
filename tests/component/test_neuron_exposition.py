"""What a neuron serves to Prometheus."""

import socket

import httpx
import pytest

from common.endpoint import Endpoint
from common.errors import ConfigError
from common.messages import DeviceState, NodeState
from neuron.exposition import serving
from tests.support.harness import free_port


def test_a_neuron_serves_its_last_state_under_its_own_name_and_stops_with_it() -> None:
    endpoint = Endpoint("127.0.0.1", free_port())
    url = f"http://{endpoint}/metrics"
    states: list[NodeState | None] = [None]
    with serving(endpoint, "beast", lambda: states[0]):
        assert "helexa_device_memory_bytes{" not in httpx.get(url).text
        device = DeviceState(uuid="cpu-0", name="CPU", kind="cpu", state="ready", memory_mb=3)
        states[0] = NodeState(incarnation="i", seq=1, full=True, name="beast", version="1", devices=[device])
        served = httpx.get(url).text
    assert 'helexa_device_memory_bytes{device="cpu-0",name="CPU",node="beast"} 3.145728e+06' in served
    with pytest.raises(httpx.TransportError):
        httpx.get(url)


def test_an_address_in_use_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(ConfigError, match=f"metrics_listen: 127.0.0.1:{port}: .*in use"),
            serving(Endpoint("127.0.0.1", port), "beast", lambda: None),
        ):
            raise AssertionError("it began")
