"""A neuron's key is exchanged while it serves: streams go on, the old key is good for nothing afterwards."""

from pathlib import Path

import httpx
import pytest

from common.endpoint import Endpoint
from common.keys import Credentials, fingerprint, read_pair
from common.messages import Version, VersionReply
from neuron.ctl.client import NeuronClient, NoAnswer
from tests.support.bus_keys import config, key_of, printed, run, wait_until
from tests.support.fake_engine import write_model
from tests.support.harness import Gateway, Neuron
from tests.support.streams import Stream, chat


def pasted(text: str, program: str) -> list[str]:
    """Return the arguments of the line that is to be pasted on another host."""
    line = next(line for line in text.splitlines() if f": {program} " in line)
    return line.split(f": {program} ")[1].split()


def test_a_key_is_rotated_without_a_dropped_stream(tmp_path: Path) -> None:
    models = [{"id": "m", "source": f"file:{write_model(tmp_path / 'm.json', token_s=0.01)}", "vram_mb": 200}]
    neuron = Neuron(tmp_path / "n", models=models, engine="tests.support.fake_engine", security="curve", preload=["m"])
    with neuron:
        old = neuron.credentials
        assert old is not None
        gateway = Gateway(tmp_path / "g", endpoints={"beast": neuron.endpoint})
        here, there = ("--config", config(neuron)), ("--config", config(gateway, "cortex"))
        # Set up under a gateway that runs already: it needs no restart for a key.
        trusted = printed("cortex", "trust", "beast", key_of(neuron).hex(), *there)
        own = trusted.split("neuronctl authorize gateway ")[1].split()[0]
        assert neuron.ctl("authorize", "gateway", own, *here).returncode == 0
        url = f"{gateway.url}/v1/chat/completions"
        with gateway:
            body = chat("m", "long", max_tokens=800)
            wait_until(lambda: httpx.post(url, json=chat("m", "x", max_tokens=1), timeout=30).is_success, gateway)
            stream = Stream(url, body)
            assert stream.started.wait(20)

            accept = pasted(printed("neuron", "rotate", *here), "cortex")
            assert accept[-1] == "--also"
            reads = gateway.log.count("known_neurons was read")
            printed("cortex", *accept, *there)
            wait_until(lambda: gateway.log.count("known_neurons was read") > reads, gateway)
            assert not stream.reading.done
            replace = pasted(printed("neuron", "rotate", "--finish", *here), "cortex")
            wait_until(lambda: "has taken its next key" in gateway.log, gateway)
            tokens_then = len(stream.reading.token_times())

            reading = stream.finish(60)
            assert (reading.done, reading.finish_reason, reading.error) == (True, "length", None)
            assert len(reading.token_times()) > tokens_then, "the stream had ended before the key was exchanged"
            undisturbed = httpx.post(url, json=body, timeout=60).raise_for_status().json()
            assert reading.text == undisturbed["choices"][0]["message"]["content"]

            new = read_pair(neuron.folder / "keys" / "neuron.key")
            assert new != old.pair
            neuron.credentials = Credentials(new, new.public)
            assert neuron.status()["state"]["state"] == "serving"
            for stale in (old, Credentials(old.pair, new.public)):  # neither its name nor its rights are left
                with NeuronClient(Endpoint("127.0.0.1", neuron.port), 0.5, stale) as asking, pytest.raises(NoAnswer):
                    asking.ask(lambda r: Version(request=r), VersionReply)

            printed("cortex", *replace, *there)
            assert printed("cortex", "trust", "beast", *there).split()[:4] == [
                "neuron", "beast", "is", f"{fingerprint(new.public)},",
            ]  # fmt: skip
            assert httpx.post(url, json=chat("m", "x", max_tokens=1), timeout=30).is_success
        assert gateway.log.count("is suspect") == 1, "the connection that carried the stream was not cut"


def test_a_key_is_not_exchanged_before_there_is_a_next_one(tmp_path: Path) -> None:
    path = tmp_path / "neuron.yaml"
    path.write_text("devices: [{kind: cpu, memory_mb: 500}]\n")
    for arguments, remedy in ((["rotate"], "neuron keygen"), (["rotate", "--finish"], "neuron rotate")):
        done = run("neuron", *arguments, "--config", str(path))
        assert done.returncode == 1
        assert remedy in done.stderr
