"""Mutated frames and requests of a fixed seed against the real daemons; `make fuzz` sends a thousand times as many."""

from pathlib import Path
from typing import Any

import pytest

from tests.fuzz.wire import feed_bus, feed_http, fuzzed_neuron
from tests.support.fake_neuron import FakeNeuron
from tests.support.harness import Gateway

SEED = 20261125
FRAMES, REQUESTS = 2000, 400


@pytest.mark.parametrize("security", [{}, {"security": "curve"}])
def test_a_neuron_minds_no_frame(tmp_path: Path, security: dict[str, Any]) -> None:
    with fuzzed_neuron(tmp_path, **security) as neuron:
        feed_bus(neuron, SEED, FRAMES, is_short=True)


def test_a_gateway_minds_no_request(tmp_path: Path) -> None:
    with FakeNeuron() as neuron, Gateway(tmp_path, endpoints={"beast": neuron.endpoint}) as gateway:
        feed_http(gateway, SEED, REQUESTS, is_short=True)
