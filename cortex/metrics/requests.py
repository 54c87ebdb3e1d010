"""Counters and histograms of requests, shared by all gateway processes through files."""

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.metrics import MetricWrapperBase

from cortex.api.exchange import Exchange
from cortex.fleet.record import GAP_BOUNDS_S, Record

UNKNOWN = "unknown"
"""Label of what a request never had: a model that exists, a neuron."""
_WHERE = ("model", "node", "dialect")
_WAITS_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128, 300, 600)
_WHOLE_S = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640)
_LOADS_S = (0.25, 0.5, 1, 2, 5, 10, 20, 40, 80, 160, 320, 640)
_PREFILL_RATES = (10, 50, 100, 250, 500, 1000, 2000, 4000, 8000, 16000, 32000)
_DECODE_RATES = (1, 2, 5, 10, 15, 20, 30, 40, 60, 80, 120, 160, 240, 320, 500, 1000)


class Tallied(Histogram):
    """A histogram that also takes observations that were sorted into its buckets before."""

    def add(self, counts: Sequence[int], total: float) -> None:
        """Add `counts`, one a bucket in order, whose values sum up to `total`."""
        self._sum.inc(total)
        for bucket, count in zip(self._buckets, counts, strict=True):
            if count:
                bucket.inc(count)


class RequestMetrics:
    """All metrics of requests, and the one place that feeds them."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        """`registry`: for tests in one process; in the gateway the files are read instead."""

        def counter(name: str, help: str, *labels: str) -> Counter:
            return Counter(f"helexa_{name}", help, labels, registry=registry)

        def histogram(name: str, help: str, buckets: Sequence[float]) -> Tallied:
            return Tallied(f"helexa_{name}", help, _WHERE, buckets=buckets, registry=registry)

        self.requests = counter("requests", "Requests that have ended, by how.", *_WHERE, "outcome")
        self.rejections = counter("rejections", "Requests that ended before any job began, by why.", "model", "reason")
        self.cancelled = counter("cancelled_requests", "Requests whose client went away.", *_WHERE)
        self.saved = counter("cancelled_tokens", "Tokens that such requests were still allowed.", *_WHERE)
        self.recoveries = counter(
            "recoveries", "Times that a job was sent again after a fault, by what came of it.", *_WHERE, "outcome"
        )
        self.cold = counter("cold_starts", "Requests for a model that nobody had loaded.", *_WHERE)
        self.prompt = counter("prompt_tokens", "Prompt tokens, cached ones included.", *_WHERE)
        self.cached = counter("cached_tokens", "Prompt tokens whose KV was there already.", *_WHERE)
        self.completion = counter("completion_tokens", "Tokens generated and received.", *_WHERE)
        self.reasoning = counter("reasoning_tokens", "Those of them that were thoughts.", *_WHERE)
        self.key_requests = counter("key_requests", "Requests that have ended, by the id of their key.", "key")
        self.key_tokens = counter("key_tokens", "Tokens of prompts and answers, by the id of the key.", "key", "kind")
        self.duration = histogram("request_duration_seconds", "Arrival to last byte.", _WHOLE_S)
        self.ttft = histogram("time_to_first_token_seconds", "Arrival to first text.", _WAITS_S)
        self.gaps = histogram("inter_token_latency_seconds", "Time between two tokens of an answer.", GAP_BOUNDS_S)
        self.queue = histogram("queue_wait_seconds", "Time on the neuron until a slot was free.", _WAITS_S)
        self.load = histogram("cold_start_seconds", "From a cold request to its beginning.", _LOADS_S)
        self.prefill = histogram("prefill_tokens_per_second", "Speed of a prompt's uncached part.", _PREFILL_RATES)
        self.decode = histogram("decode_tokens_per_second", "Speed of an answer, one request's.", _DECODE_RATES)

    def all(self) -> list[MetricWrapperBase]:
        """Return every metric."""
        return [m for m in vars(self).values() if isinstance(m, MetricWrapperBase)]

    def observe(self, exchange: Exchange, now: float) -> None:
        """Count a request that has ended; those to endpoints that run no jobs are left out."""
        if exchange.dialect is None:
            return
        call = exchange.call
        record = None if call is None else call.record
        model = exchange.known_model or UNKNOWN
        where = (model, (record and record.node) or UNKNOWN, exchange.dialect)
        outcome = exchange.verdict.replace(" ", "_")
        self.requests.labels(*where, outcome).inc()
        self.duration.labels(*where).observe(now - exchange.began_at)
        key = exchange.identity.label
        self.key_requests.labels(key).inc()
        if call is not None and record is not None:
            self.key_tokens.labels(key, "prompt").inc(record.prompt_tokens)
            self.key_tokens.labels(key, "completion").inc(call.tokens)
        if outcome == "client_gone":
            self.cancelled.labels(*where).inc()
        elif outcome != "ok" and (record is None or record.begun_at is None):
            self.rejections.labels(model, outcome).inc()
        if call is None or record is None:
            return
        if call.first_text_at is not None:
            self.ttft.labels(*where).observe(call.first_text_at - exchange.began_at)
        if call.tokens:
            self.completion.labels(*where).inc(call.tokens)
            if exchange.reasoning_tokens:
                self.reasoning.labels(*where).inc(exchange.reasoning_tokens)
            self.gaps.labels(*where).add(record.gaps, record.gaps_s)
        self._observe_record(record, where, is_cancelled=outcome == "client_gone")

    def _observe_record(self, record: Record, where: tuple[str, str, str], *, is_cancelled: bool) -> None:
        if record.prompt_tokens:
            self.prompt.labels(*where).inc(record.prompt_tokens)
            self.cached.labels(*where).inc(record.cached_tokens)
        if record.resumed:
            self.recoveries.labels(*where, "resumed").inc(record.resumed)
        if record.recoveries > record.resumed:
            what = "client_gone" if is_cancelled else "failed"
            self.recoveries.labels(*where, what).inc(record.recoveries - record.resumed)
        if is_cancelled:
            self.saved.labels(*where).inc(max(0, record.tokens_left))
        if record.is_cold:
            self.cold.labels(*where).inc()
            if record.begun_at is not None:
                self.load.labels(*where).observe(record.begun_at - record.accepted_at)
        timings = record.timings
        if timings is None:
            return
        self.queue.labels(*where).observe(timings.queue_ms / 1000)
        if timings.prompt_n and timings.prompt_ms > 0:
            self.prefill.labels(*where).observe(timings.prompt_n * 1000 / timings.prompt_ms)
        if timings.predicted_n and timings.predicted_ms > 0:
            self.decode.labels(*where).observe(timings.predicted_n * 1000 / timings.predicted_ms)
