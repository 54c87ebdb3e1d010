"""Thousands of mixed requests on one worker: its resident memory, and what it still holds at the end."""

import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import psutil

from common.endpoint import Endpoint
from common.messages import ClearCache, Done, Memory, MemoryReply
from neuron.ctl.client import NeuronClient
from tests.bench.agents import demo_chain

REQUESTS, WARM_UP, EVERY = 2000, 200, 100
CLIENTS = 6
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def measure(requests: int = REQUESTS) -> dict[str, Any]:
    """Send everything, and return the worker's memory after the warm-up, at its highest, and at the end."""
    with demo_chain(4) as (neuron, url):
        pid = neuron.status()["state"]["devices"][0]["worker_pid"]
        resident_mb: list[int] = []
        outcomes: dict[str, int] = {}
        with ThreadPoolExecutor(CLIENTS) as pool:
            for start in range(0, requests, EVERY):
                for outcome in pool.map(lambda number: _request(url, number), range(start, start + EVERY)):
                    outcomes[outcome] = outcomes.get(outcome, 0) + 1
                resident_mb.append(psutil.Process(pid).memory_info().rss >> 20)
        with NeuronClient(Endpoint("127.0.0.1", neuron.port), 60.0) as client:
            client.ask(lambda r: ClearCache(request=r), Done)
            (worker,) = client.ask(lambda r: Memory(request=r), MemoryReply).workers
        (model,) = worker.models
        same = neuron.status()["state"]["devices"][0]["worker_pid"] == pid
    after = resident_mb[min(WARM_UP // EVERY, len(resident_mb)) - 1]
    return {
        "requests": requests,
        "outcomes": outcomes,
        "resident_mb": {"after warm-up": after, "highest": max(resident_mb), "at the end": resident_mb[-1]},
        "held": {"sequences": model.sequences, "idle": model.idle, "cells": model.kv_used, "host MiB": model.host_mb},
        "same worker": same,
    }


def _request(url: str, number: int) -> str:
    """Send one request of a kind that `number` chooses, and return how it ended."""
    choice = random.Random(number)
    words = " ".join(choice.choices(("red", "stone", "river", "seven", "music"), k=choice.choice((5, 40, 400))))
    body: dict[str, Any] = {
        "model": "demo",
        "messages": [{"role": "user", "content": words}],
        "max_tokens": choice.choice((1, 8, 40)),
        "seed": number,
    }
    kind = choice.choice(("plain", "plain", "abort", "bad", "schema", "same", "many"))
    if kind == "bad":
        body |= choice.choice(
            ({"temperature": "hot"}, {"max_tokens": -1}, {"logit_bias": {"99999999": 1}}, {"messages": []})
        )
    elif kind == "schema":
        schema = {"name": "person", "schema": SCHEMA, "strict": True}
        body |= {"response_format": {"type": "json_schema", "json_schema": schema}, "max_tokens": 60}
    elif kind == "same":
        body |= {"messages": [{"role": "user", "content": "Name three colours."}], "temperature": 0}
    elif kind == "many":
        body["n"] = 3
    with httpx.Client(timeout=600) as client:
        if kind != "abort":
            return f"{kind} {client.post(f'{url}/v1/chat/completions', json=body).status_code}"
        body |= {"stream": True, "max_tokens": 200}
        with client.stream("POST", f"{url}/v1/chat/completions", json=body) as response:
            for _ in zip(response.iter_lines(), range(choice.randint(1, 12)), strict=False):
                pass
            return f"{kind} {response.status_code}"
