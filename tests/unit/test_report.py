"""The host as the service manager and the bus are told of it."""

import pytest
from msgspec import structs

from common.messages import LoadModel
from cortex.fleet.view import LinkState, Node
from cortex.readiness import describe
from neuron.settings import NeuronSettings
from neuron.supervisor import report
from tests.support.drive import Drive, cpu, job, profile
from tests.support.fake_neuron import model_state, node_state


@pytest.mark.parametrize(
    ("listen", "security", "is_exposed"),
    [
        ("tcp://127.0.0.1:13131", None, False),
        ("tcp://0.0.0.0:13131", "plaintext", True),
        ("tcp://0.0.0.0:13131", "curve", False),
    ],
)
def test_a_bus_that_others_reach_in_plain_text_is_warned_of_in_every_status(
    listen: str, security: str | None, is_exposed: bool
) -> None:
    settings = NeuronSettings(listen=listen, security=security)  # type: ignore[arg-type]
    host = Drive(devices=[cpu("CPU-0", 500)], settings=settings).start().machine.host
    line = report.status_line(host)
    assert line.startswith("1 of 1 devices serve; 0 models loaded")
    assert ("plain text" in line) is is_exposed
    whole = report.node_state(host, 1)
    part = report.change(structs.replace(whole, aliases={"a": "b"}), whole)
    assert part is not None
    assert (whole.exposed, part.exposed) == (is_exposed, is_exposed)


def test_the_status_line_names_what_is_loading_and_what_keeps_a_device_from_serving() -> None:
    drive = Drive(devices=[cpu("CPU-0", 500), cpu("CPU-1", 500)], models=[profile("m")]).start()
    drive.holding_back.add(LoadModel)
    drive.connect()
    drive.submit(job("1", "m"))
    host = drive.machine.host
    assert report.status_line(host) == "2 of 2 devices serve; 0 models loaded; loading m"
    for _ in range(5):
        drive.die("CPU-1", "signal SIGSEGV")
        drive.pass_time(10.0)
    assert "; loading m; " in report.status_line(host)
    assert report.status_line(host).startswith("1 of 2 devices serve; 0 models loaded")
    assert "5 deaths in a row, the last: died: signal SIGSEGV" in report.status_line(host)


def test_the_gateways_status_line_names_who_answers_and_what_loads_where_it_is_heard() -> None:
    here, away = Node("beast"), Node("benjy")
    here.link = LinkState.UP
    here.apply(node_state(model_state("m", status="loading"), model_state("n")))
    assert describe([here, away]) == "1 of 2 neurons answer; loading m"
