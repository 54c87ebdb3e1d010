"""What an admin asks of the fleet: which neurons are told what, and how their answers come together."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Literal

from common.catalogue import Profile
from common.errors import Code, RequestError
from common.ids import new_job_id
from common.messages import (
    Done,
    Drain,
    Load,
    Pause,
    Pin,
    Progress,
    Refused,
    RestartWorker,
    Resume,
    ToNeuron,
    Undrain,
    Unload,
    Unpin,
)
from cortex.fleet.contract import Order, Step, Verb
from cortex.fleet.link import Answer, Link
from cortex.fleet.routing import is_coming
from cortex.fleet.view import LinkState, Node

Make = Callable[[str], ToNeuron]
"""Makes the message for a request id."""


def plan(verb: Verb, order: Order, nodes: Mapping[str, Node], profile: Profile | None) -> dict[str, Make]:
    """Return what each neuron is asked, by name; of a load without a neuron: those that have it. Pure.

    `profile`: the catalogue's, of the order's model. Raises RequestError naming the field that is missing or wrong.
    """
    if order.node is not None and order.node not in nodes:
        known = ", ".join(nodes) or "none"
        raise RequestError(Code.NOT_FOUND, f"no neuron '{order.node}'; there are: {known}", param="node")
    if order.device is not None and order.node is None:
        raise RequestError(Code.MISSING_FIELD, "node: a device is named together with its neuron", param="node")
    if verb in ("drain", "undrain"):
        return _plan_drain(verb, order, nodes)
    if verb in ("pause", "resume", "restart"):
        return _plan_device(verb, order)
    model = order.model
    if model is None:
        raise RequestError(Code.MISSING_FIELD, f"model: {verb} needs one", param="model")
    match verb:
        case "load":
            holders = [n for n, node in nodes.items() if model in node.models and is_coming(node.models[model])]
            return {n: _load(order, model, profile) for n in _chosen(order, holders)}
        case "unload":
            holders = [n for n in _knowing(nodes, model) if nodes[n].models[model].replicas]
            return {n: _unload(order, model) for n in _chosen(order, holders)}
        case "pin" | "unpin":
            names = [n for n in _knowing(nodes, model) if nodes[n].models[model].replicas or verb == "unpin"]
            if not _chosen(order, names):
                text = f"'{model}' is loaded nowhere: load it first, or name the neuron in `node`"
                raise RequestError(Code.NOT_FOUND, text, param="node")
            return {n: _pin(verb, model) for n in _chosen(order, names)}
    raise AssertionError(verb)


def _chosen(order: Order, names: list[str]) -> list[str]:
    return [order.node] if order.node is not None else names


def _knowing(nodes: Mapping[str, Node], model: str) -> list[str]:
    return [n for n, node in nodes.items() if model in node.models and node.link is LinkState.UP]


def _load(order: Order, model: str, profile: Profile | None) -> Make:
    return lambda request: Load(
        request=request, model=model, profile=profile, device=order.device, replace=order.replace
    )


def _unload(order: Order, model: str) -> Make:
    return lambda request: Unload(request=request, model=model, device=order.device)


def _pin(verb: Verb, model: str) -> Make:
    return lambda request: (Pin if verb == "pin" else Unpin)(request=request, model=model)


def _plan_drain(verb: Verb, order: Order, nodes: Mapping[str, Node]) -> dict[str, Make]:
    kind = Drain if verb == "drain" else Undrain
    if order.model is not None:
        if order.device is not None:
            raise RequestError(Code.INVALID_VALUE, "device: give a model or a device, not both", param="device")
        model = order.model
        names = _chosen(order, _knowing(nodes, model))
        return {n: lambda request: kind(request=request, scope="model", target=model) for n in names}
    if order.node is None:
        raise RequestError(Code.MISSING_FIELD, f"node: {verb} needs a neuron or a model", param="node")
    scope: Literal["node", "device"] = "node" if order.device is None else "device"
    return {order.node: lambda request: kind(request=request, scope=scope, target=order.device)}


def _plan_device(verb: Verb, order: Order) -> dict[str, Make]:
    node, device = order.node, order.device
    if node is None or device is None:
        raise RequestError(Code.MISSING_FIELD, f"device: {verb} needs a device and its neuron", param="device")
    match verb:
        case "pause":
            return {node: lambda request: Pause(request=request, device=device, for_s=order.for_s)}
        case "resume":
            return {node: lambda request: Resume(request=request, device=device)}
    return {node: lambda request: RestartWorker(request=request, device=device)}


class NeuronErrand:
    """An order under way at one or several neurons. Implements contract.Errand."""

    def __init__(self, links: Mapping[str, Link], asks: Mapping[str, Make]) -> None:
        """Ask at once; a neuron that cannot be asked counts as having refused."""
        self._links = links
        self._steps: asyncio.Queue[Step] = asyncio.Queue()
        self._open: dict[str, str] = {}
        """Request ids that are not answered, by neuron."""
        self._left = len(asks)
        for node, make in asks.items():
            request = self._open[node] = new_job_id()
            if not links[node].ask(make(request), request, self._listener(node)):
                self._take(node, Refused(code=Code.NEURON_LOST, message=f"neuron {node} is not connected"))

    def _listener(self, node: str) -> Callable[[Answer], None]:
        return lambda answer: self._take(node, answer)

    def _take(self, node: str, answer: Answer) -> None:
        match answer:
            case Progress():
                step = Step(node=node, state="progress", text=answer.text, fraction=answer.fraction)
            case Done():
                step = Step(node=node, state="done", text=answer.text)
            case Refused():
                step = Step(node=node, state="refused", text=answer.message, code=answer.code)
        if step.state != "progress":
            self._open.pop(node, None)
        self._steps.put_nowait(step)

    @property
    def is_over(self) -> bool:
        """Whether every neuron's last word has been handed out."""
        return self._left == 0

    async def next(self, timeout_s: float) -> Step | None:
        """Return what is said next; None after `timeout_s` of silence."""
        try:
            step = await asyncio.wait_for(self._steps.get(), timeout_s)
        except TimeoutError:
            return None
        if step.state != "progress":
            self._left -= 1
        return step

    def close(self) -> None:
        """Listen no more. The neurons go on with what they were asked."""
        for node, request in self._open.items():
            self._links[node].forget(request)
