"""All neurons behind this gateway process: opens the links, keeps them ticking, answers what the HTTP side asks."""

import asyncio
import logging
import time
from typing import Any

import msgspec
import zmq
from msgspec import structs

from common.catalogue import Alias, Catalogue
from common.ids import new_incarnation
from common.messages import Job
from cortex.bus_keys import BusKeys
from cortex.fleet import errands, listing, prefix
from cortex.fleet.calls import JobCall
from cortex.fleet.contract import Health, Order, Verb
from cortex.fleet.errands import NeuronErrand
from cortex.fleet.history import Happened, History
from cortex.fleet.jobs import JobClient
from cortex.fleet.link import Link
from cortex.fleet.view import Node
from cortex.settings import CortexSettings

log = logging.getLogger(__name__)

TICK_S = 0.25
FAST_TICK_S = 0.02
"""While links are being opened at the start."""
SETTLE_S = 1.0
"""How long a start waits for the neurons' first states, so that the first request finds them."""


class BusFleet:
    """Implements contract.Fleet over the bus. To be made and used on one running event loop, after any fork."""

    def __init__(
        self, settings: CortexSettings, catalogue: Catalogue, *, created: int, keys: BusKeys | None = None
    ) -> None:
        """`created`: what /v1/models gives as the models' time, seconds since 1970."""
        self._catalogue = catalogue
        self._created = created
        self._links: dict[str, Link] = {}
        self.history = History(time.time)
        loop = asyncio.get_running_loop()
        self.jobs = JobClient(
            self._links,
            catalogue,
            loop.time,
            recovery_s=settings.gateway.recovery_s,
            node_grace_s=settings.gateway.node_grace_s,
        )
        incarnation = new_incarnation()
        for name, endpoint in settings.neuron_endpoints().items():
            self._links[name] = Link(
                name,
                endpoint,
                incarnation=incarnation,
                eviction=settings.eviction_message(),
                jobs=self.jobs,
                clock=loop.time,
                history=self.history,
                credentials=keys.credentials(name) if keys is not None else (),
            )
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._ticker: asyncio.Task[None] | None = None

    def adopt(self, catalogue: Catalogue) -> None:
        """Take another catalogue; jobs that are on their way keep what they were sent with."""
        self._catalogue = catalogue
        self.jobs.placer.adopt(catalogue)

    def adopt_keys(self, keys: BusKeys) -> None:
        """Take other keys of neurons; a connection whose keys are still accepted goes on."""
        for name, link in self._links.items():
            link.adopt_keys(keys.credentials(name))

    async def open(self) -> None:
        """Connect to every neuron, and wait a moment for those that answer."""
        self._context = zmq.Context()
        for link in self._links.values():
            link.open(self._context)
        loop = asyncio.get_running_loop()
        settled_at = loop.time() + SETTLE_S
        while loop.time() < settled_at and not all(n.is_known or n.error for n in self.view()):
            self._tick()
            await asyncio.sleep(FAST_TICK_S)
        self._ticker = asyncio.create_task(self._keep_ticking(), name="fleet-ticker")

    async def close(self) -> None:
        """Disconnect from every neuron; jobs that still run are aborted."""
        if self._ticker is not None:
            self._ticker.cancel()
            await asyncio.gather(self._ticker, return_exceptions=True)
        for link in self._links.values():
            link.close()
        if self._context is not None:
            self._context.term()

    async def _keep_ticking(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            try:
                self._tick()
            except Exception:
                # Without its beat this process would lose every job it has.
                log.exception("looking after the links failed")

    def _tick(self) -> None:
        for link in self._links.values():
            link.tick()
        self.jobs.sweep()

    def view(self) -> list[Node]:
        """Return all neurons as this process sees them."""
        return [link.node for link in self._links.values()]

    def resolve(self, model: str) -> tuple[str, Alias | None]:
        """Return the id behind a model's name or alias, and the alias if it says more. Raises RequestError."""
        return listing.resolve(model, self.view(), self._catalogue)

    def submit(self, jobs: list[Job]) -> JobCall:
        """Send the jobs of one request; see contract.Fleet."""
        chains = {id(job.input): prefix.chain(job.input) for job in jobs}
        return self.jobs.submit([structs.replace(job, prefix_chain=chains[id(job.input)]) for job in jobs])

    async def carry_out(self, verb: Verb, order: Order) -> NeuronErrand:
        """Ask the neurons that an admin's order concerns; see contract.Fleet."""
        if order.model is not None:
            order = structs.replace(order, model=self.resolve(order.model)[0])
        nodes = {name: link.node for name, link in self._links.items()}
        profile = self.jobs.placer.profile(order.model) if order.model is not None else None
        asks = errands.plan(verb, order, nodes, profile)
        if verb == "load" and not asks:
            assert order.model is not None
            order = structs.replace(order, node=await self.jobs.placer.agree(order.model))
            asks = errands.plan(verb, order, nodes, profile)
        return NeuronErrand(self._links, asks)

    def models(self) -> list[dict[str, Any]]:
        """Return the entries of /v1/models."""
        return listing.list_models(self.view(), self._catalogue, self._created)

    def nodes(self) -> list[dict[str, Any]]:
        """Return every neuron with its link and its state as plain data."""
        return [
            {
                "name": node.name,
                "endpoint": node.endpoint,
                "link": node.link.value,
                "error": node.error,
                "state": msgspec.to_builtins(node.snapshot()),
            }
            for node in self.view()
        ]

    def happened(self, since: int) -> list[Happened]:
        """Return the remembered events after number `since`; see contract.Fleet."""
        return self.history.since(since)

    def health(self) -> Health:
        """Return whether the fleet serves, and if not, why."""
        return listing.judge_health(self.view())
