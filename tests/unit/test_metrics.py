"""What is counted of a request, and what is told of neurons."""

from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from common import gauges
from common.errors import Code
from common.gauges import Seen
from common.messages import (
    DeviceState,
    DiskState,
    EndedItem,
    Job,
    ModelState,
    NodeState,
    ReplicaState,
    StartedItem,
    Text,
    Timings,
)
from cortex.access.access import Identity
from cortex.fleet.record import GAP_BOUNDS_S, Record
from cortex.metrics.requests import RequestMetrics, Tallied

WHERE = {"model": "m", "node": "beast", "dialect": "openai-chat"}


class Exchange:
    """What RequestMetrics reads of an exchange."""

    def __init__(self, verdict: str = "ok", call: Any = None, known_model: str | None = "m") -> None:
        self.dialect: str | None = "openai-chat"
        self.verdict = verdict
        self.call = call
        self.known_model = known_model
        self.reasoning_tokens = 0
        self.began_at = 100.0
        self.identity = Identity("10.0.0.1", "use", is_anonymous=True)


class Call:
    """What RequestMetrics reads of a call."""

    def __init__(self, record: Record, tokens: int = 0, first_text_at: float | None = None) -> None:
        self.record = record
        self.tokens = tokens
        self.first_text_at = first_text_at


def job(id: str, group: str | None = None) -> Job:
    return Job(id=id, attempt=0, model="m", request_id="r", input=Text(text="hi"), group=group)


def started(id: str, prompt: int = 7, cached: int = 3, max_tokens: int = 10) -> StartedItem:
    return StartedItem(job=id, attempt=0, prompt_tokens=prompt, cached_tokens=cached, max_tokens=max_tokens)


def ended(id: str, total: int) -> EndedItem:
    timings = Timings(queue_ms=50.0, prompt_n=4, prompt_ms=20.0, predicted_n=total, predicted_ms=100.0)
    return EndedItem(job=id, attempt=0, total=total, reason="stop", prompt_tokens=7, timings=timings)


def measured(exchange: Exchange) -> CollectorRegistry:
    registry = CollectorRegistry()
    RequestMetrics(registry).observe(exchange, 102.0)  # type: ignore[arg-type]
    return registry


def test_a_request_counts_once_with_its_tokens_and_times() -> None:
    record = Record(100.0)
    record.node = "beast"
    record.begin(job("a"), started("a"), 100.2)
    for at in (100.5, 100.54, 100.56):
        record.add("a", 1, at)
    record.end("a", ended("a", 3))
    exchange = Exchange(call=Call(record, 3, 100.5))
    exchange.reasoning_tokens = 2
    registry = measured(exchange)
    assert registry.get_sample_value("helexa_requests_total", {**WHERE, "outcome": "ok"}) == 1
    assert registry.get_sample_value("helexa_prompt_tokens_total", WHERE) == 7
    assert registry.get_sample_value("helexa_cached_tokens_total", WHERE) == 3
    assert registry.get_sample_value("helexa_completion_tokens_total", WHERE) == 3
    assert registry.get_sample_value("helexa_reasoning_tokens_total", WHERE) == 2
    assert registry.get_sample_value("helexa_key_requests_total", {"key": "anonymous"}) == 1
    assert registry.get_sample_value("helexa_key_tokens_total", {"key": "anonymous", "kind": "completion"}) == 3
    assert registry.get_sample_value("helexa_time_to_first_token_seconds_sum", WHERE) == pytest.approx(0.5)
    assert registry.get_sample_value("helexa_request_duration_seconds_sum", WHERE) == pytest.approx(2.0)
    assert registry.get_sample_value("helexa_queue_wait_seconds_sum", WHERE) == pytest.approx(0.05)
    assert registry.get_sample_value("helexa_prefill_tokens_per_second_sum", WHERE) == pytest.approx(200.0)
    assert registry.get_sample_value("helexa_decode_tokens_per_second_sum", WHERE) == pytest.approx(30.0)
    assert registry.get_sample_value("helexa_inter_token_latency_seconds_count", WHERE) == 2
    assert registry.get_sample_value("helexa_inter_token_latency_seconds_sum", WHERE) == pytest.approx(0.06)
    assert registry.get_sample_value("helexa_cold_starts_total", WHERE) is None


def test_a_prompt_with_several_answers_counts_once_and_another_prompt_by_itself() -> None:
    record = Record()
    for id, group in (("a", "g"), ("b", "g"), ("c", None)):
        record.begin(job(id, group), started(id), 1.0)
    assert (record.prompt_tokens, record.cached_tokens) == (14, 6)


def test_tokens_that_come_together_share_the_time_since_those_before() -> None:
    record = Record()
    record.add("a", 1, 1.0)
    record.add("a", 4, 1.2)  # 50 ms each
    assert record.gaps[GAP_BOUNDS_S.index(0.05)] + record.gaps[GAP_BOUNDS_S.index(0.075)] == 4
    assert sum(record.gaps) == 4
    assert record.gaps_s == pytest.approx(0.2)


def test_a_client_that_goes_away_leaves_the_tokens_it_saved() -> None:
    record = Record(100.0, is_cold=True)
    record.node = "beast"
    record.begin(job("a"), started("a", max_tokens=10), 101.5)
    record.add("a", 4, 101.6)
    registry = measured(Exchange("client gone", Call(record, 4, 101.6)))
    assert registry.get_sample_value("helexa_requests_total", {**WHERE, "outcome": "client_gone"}) == 1
    assert registry.get_sample_value("helexa_cancelled_requests_total", WHERE) == 1
    assert registry.get_sample_value("helexa_cancelled_tokens_total", WHERE) == 6
    assert registry.get_sample_value("helexa_cold_starts_total", WHERE) == 1
    assert registry.get_sample_value("helexa_cold_start_seconds_sum", WHERE) == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("verdict", "lost_as"), [("ok", None), ("worker_died", "failed"), ("client gone", "client_gone")]
)
def test_recoveries_are_counted_by_what_came_of_them(verdict: str, lost_as: str | None) -> None:
    record = Record()
    record.node = "beast"
    record.begin(job("a"), started("a"), 1.0)
    record.note_fault("a")
    record.note_fault("a")
    record.note_resumed("a")
    if lost_as is not None:
        record.note_fault("a")
    registry = measured(Exchange(verdict, Call(record)))
    told = {
        outcome: registry.get_sample_value("helexa_recoveries_total", {**WHERE, "outcome": outcome})
        for outcome in ("resumed", "failed", "client_gone")
    }
    assert told == {"resumed": 2, "failed": None, "client_gone": None} | ({lost_as: 1} if lost_as else {})


def test_a_model_that_nobody_knows_never_becomes_a_label() -> None:
    registry = measured(Exchange(Code.MODEL_NOT_FOUND.value, known_model=None))
    labels = {"model": "unknown", "reason": "model_not_found"}
    assert registry.get_sample_value("helexa_rejections_total", labels) == 1
    models = {s.labels["model"] for m in registry.collect() for s in m.samples if "model" in s.labels}
    assert models == {"unknown"}


def test_a_request_that_fails_after_its_beginning_is_no_rejection() -> None:
    record = Record()
    record.begin(job("a"), started("a"), 1.0)
    registry = measured(Exchange("worker_died", Call(record)))
    assert registry.get_sample_value("helexa_rejections_total", {"model": "m", "reason": "worker_died"}) is None


def test_requests_that_run_no_jobs_are_left_out() -> None:
    exchange = Exchange()
    exchange.dialect = None
    assert not [s for m in measured(exchange).collect() for s in m.samples]


def test_counts_in_buckets_say_the_same_as_single_observations() -> None:
    registry = CollectorRegistry()
    one, many = (Tallied(name, "", buckets=(1, 2, 3), registry=registry) for name in ("one", "many"))
    for value in (0.5, 1, 1.5, 2.5, 9):
        one.observe(value)
    many.add([2, 1, 1, 1], 14.5)
    for name in ("one", "many"):
        buckets = [registry.get_sample_value(f"{name}_bucket", {"le": le}) for le in ("1.0", "2.0", "3.0", "+Inf")]
        assert buckets == [2, 3, 4, 5]
        assert registry.get_sample_value(f"{name}_count") == 5
        assert registry.get_sample_value(f"{name}_sum") == 14.5


def told(nodes: list[Seen]) -> dict[tuple[str, tuple[str, ...]], float]:
    return {(s.name, tuple(s.labels.values())): s.value for m in gauges.collect(nodes) for s in m.samples}


def test_a_device_tells_bytes_and_what_is_unknown_is_left_out() -> None:
    device = DeviceState(
        uuid="u",
        name="GPU",
        kind="cuda",
        state="ready",
        memory_mb=100,
        reserved_mb=30,
        used_mb=40,
        restarts=2,
        hangs=1,
        tokens=500,
        prompt_tokens=90,
        cached_tokens=60,
        xids=4,
    )
    replicas = [
        ReplicaState(device="u", status="loaded", sequences=3, kv_used=100, cpu_layers=13),
        ReplicaState(device="v", status="loading"),
    ]
    model = ModelState(id="m", status="loaded", running=1, queued=2, replicas=replicas)
    away = ModelState(id="away", status="unloaded", load_s=4.5)
    disks = [DiskState(folder="/models", total_mb=1000, free_mb=10)]
    state = NodeState(incarnation="i", seq=1, full=True, name="x", version="1", devices=[device], models=[model, away],
                      evictions={"room": 3}, disks=disks)  # fmt: skip
    samples = told([Seen("beast", True, state)])
    labels = ("beast", "u", "GPU")
    assert samples["helexa_node_up", ("beast",)] == 1
    assert samples["helexa_device_memory_free_bytes", labels] == 60 * 2**20
    assert samples["helexa_worker_restarts_total", labels] == 2
    assert samples["helexa_device_state", (*labels, "ready")] == 1
    assert ("helexa_device_temperature_celsius", labels) not in samples
    assert samples["helexa_model_queued_jobs", ("beast", "m")] == 2
    assert samples["helexa_evictions_total", ("beast", "room")] == 3
    assert samples["helexa_worker_hangs_total", labels] == 1
    assert samples["helexa_engine_tokens_total", labels] == 500
    assert samples["helexa_device_xid_errors_total", labels] == 4
    assert samples["helexa_model_batch_sequences", ("beast", "m")] == 3
    assert samples["helexa_model_kv_used_tokens", ("beast", "m")] == 100
    assert samples["helexa_engine_prompt_tokens_total", labels] == 90
    assert samples["helexa_engine_cached_tokens_total", labels] == 60
    assert samples["helexa_model_cpu_layers", ("beast", "m")] == 13
    assert samples["helexa_disk_bytes", ("beast", "/models")] == 1000 * 2**20
    assert samples["helexa_disk_free_bytes", ("beast", "/models")] == 10 * 2**20
    swapped = {name: samples.get((f"helexa_model_{name}", ("beast", "away"))) for name in (
        "replicas", "running_jobs", "kv_used_tokens", "batch_sequences", "load_seconds", "cpu_layers")}  # fmt: skip
    assert swapped == {"replicas": 0, "running_jobs": 0, "kv_used_tokens": 0, "batch_sequences": 0,
                       "load_seconds": 4.5, "cpu_layers": None}  # fmt: skip


def test_a_neuron_that_is_away_tells_nothing_but_that() -> None:
    device = DeviceState(uuid="u", name="GPU", kind="cuda", state="ready", memory_mb=100)
    state = NodeState(incarnation="i", seq=1, full=True, name="x", version="1", devices=[device])
    assert told([Seen("beast", False, state), Seen("new", False, None)]) == {
        ("helexa_node_up", ("beast",)): 0,
        ("helexa_node_serving", ("beast",)): 0,
        ("helexa_node_up", ("new",)): 0,
        ("helexa_node_serving", ("new",)): 0,
    }
