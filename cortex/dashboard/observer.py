"""Makes a row of activity from a request that has ended."""

import time

from cortex.api.exchange import Exchange
from cortex.dashboard.activity import Activity, Ended


def observe(activity: Activity, exchange: Exchange, now: float) -> None:
    """Tell of a request; those to endpoints that run no jobs are left out. `now`: the event loop's clock."""
    if exchange.dialect is None:
        return
    row = Ended(
        at=time.time(),
        request_id=exchange.request_id,
        principal=exchange.identity.name,
        dialect=exchange.dialect,
        model=exchange.known_model or exchange.model,
        status=exchange.status,
        outcome=exchange.verdict,
        seconds=round(now - exchange.began_at, 4),
    )
    call = exchange.call
    if call is not None:
        record, timings = call.record, call.record.timings
        row.node, row.tokens = record.node, call.tokens
        row.prompt_tokens, row.cached_tokens = record.prompt_tokens, record.cached_tokens
        row.cold, row.recoveries = record.is_cold, record.recoveries
        if call.first_text_at is not None:
            row.ttft_s = round(call.first_text_at - exchange.began_at, 4)
        if timings is not None:
            row.queue_s = round(timings.queue_ms / 1000, 4)
            if timings.predicted_ms > 0:
                row.tokens_per_s = round(timings.predicted_n * 1000 / timings.predicted_ms, 1)
    activity.add(row)
