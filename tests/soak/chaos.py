"""Breaks something every now and then: workers, neurons, links. What it has done is told at the end."""

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import psutil

from neuron.ctl.client import NoAnswer
from tests.support.harness import Gateway, Neuron, wait_gone
from tests.support.proxy import Proxy

PAUSE_S = (0.5, 4.0)
"""Between two faults."""


class Chaos:
    """One fault after the other, each healed before the next."""

    def __init__(
        self,
        neurons: list[Neuron],
        proxies: list[Proxy],
        gateway: Gateway,
        start: Callable[[Neuron], Neuron],
        seed: int,
    ) -> None:
        """`start` gives a neuron that has ended another life at the same address; `neurons` is kept up to date.

        The last of them is never ended, so that its memory can be watched.
        """
        self._neurons = neurons
        self._proxies = proxies
        self._gateway = gateway
        self._start = start
        self._chance = random.Random(seed)
        self.done: Counter[str] = Counter()

    def run(self, seconds: float) -> None:
        """Break things for so long, from the thread that stays: a neuron ends with the thread that started it."""
        workers = [self._kill_worker, self._kill_worker, self._crash_worker, self._stop_worker]
        ends = [self._kill_neuron, self._end_neuron]
        faults = [*workers, *ends, self._suspend_neuron, self._cut, self._cut, self._lose_one_way, self._reload]
        ends_at = time.monotonic() + seconds
        while time.monotonic() < ends_at:
            time.sleep(self._chance.uniform(*PAUSE_S))
            fault = self._chance.choice(faults)
            index = self._chance.randrange(len(self._neurons) - (fault in ends))
            print(f"{time.strftime('%X')} {fault.__name__.strip('_')} {self._neurons[index].name}", flush=True)
            fault(index)
            self.done[fault.__name__.strip("_")] += 1

    def _signal_worker(self, index: int, number: signal.Signals) -> None:
        try:
            state: dict[str, Any] = self._neurons[index].status(2.0)["state"]
        except NoAnswer:
            return
        pids = [d["worker_pid"] for d in state["devices"] if d.get("worker_pid")]
        if pids:
            try:
                os.kill(self._chance.choice(pids), number)
            except ProcessLookupError:
                return  # it has died by itself meanwhile

    def _kill_worker(self, index: int) -> None:
        self._signal_worker(index, signal.SIGKILL)

    def _crash_worker(self, index: int) -> None:
        self._signal_worker(index, signal.SIGTERM)

    def _stop_worker(self, index: int) -> None:
        self._signal_worker(index, signal.SIGSTOP)

    def _kill_neuron(self, index: int) -> None:
        neuron = self._neurons[index]
        family = psutil.Process(neuron.pid).children(recursive=True)
        neuron.kill(signal.SIGKILL)
        neuron.process.wait(10)
        left = wait_gone(family, 2.0)
        assert left == [], f"orphans: {left}"
        time.sleep(self._chance.uniform(0.0, 3.0))
        self._neurons[index] = self._start(neuron)

    def _end_neuron(self, index: int) -> None:
        neuron = self._neurons[index]
        assert neuron.stop(30) == 0
        self._neurons[index] = self._start(neuron)

    def _suspend_neuron(self, index: int) -> None:
        process = psutil.Process(self._neurons[index].pid)
        process.suspend()
        time.sleep(self._chance.choice((0.5, 2.0, 5.0, 8.0)))
        process.resume()

    def _cut(self, index: int) -> None:
        self._proxies[index].cut()
        time.sleep(self._chance.choice((0.1, 1.0, 4.0, 8.0)))
        self._proxies[index].heal()

    def _lose_one_way(self, index: int) -> None:
        self._proxies[index].swallow(self._chance.choice(("to-neuron", "to-gateway", "both")))
        time.sleep(self._chance.choice((0.5, 2.0, 4.0)))
        self._proxies[index].heal()

    def _reload(self, _: int) -> None:
        self._gateway.process.send_signal(signal.SIGHUP)
