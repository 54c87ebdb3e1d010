"""The fleet's administration over HTTP: what models and devices are to do. Only with an admin key."""

from collections.abc import AsyncIterator
from typing import get_args

import falcon
import falcon.asgi
import msgspec

from common.errors import Code, RequestError
from cortex.api.front import exchange_of
from cortex.fleet.contract import Errand, Fleet, Order, Step, Verb

MAX_BODY = 65536
PING_S = 2.0
"""An empty line after this much silence, for clients that wait with a limit."""
VERBS: tuple[Verb, ...] = get_args(Verb)
_order = msgspec.json.Decoder(Order)
_line = msgspec.json.Encoder()


class Orders:
    """POST /fleet/{verb}: carry an order out.

    The reply is a line of JSON for each thing a neuron says, as it comes; empty lines mean nothing. What is refused
    before anything was done, by the only neuron that was asked, is an error with a status of its own.
    """

    def __init__(self, verb: Verb, fleet: Fleet) -> None:
        self._verb: Verb = verb
        self._fleet = fleet

    async def on_post(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        """Ask the neurons, and pass on what they say."""
        order = read_order(await req.stream.read(MAX_BODY + 1))
        exchange_of(req).model = order.model
        errand = await self._fleet.carry_out(self._verb, order)
        first = None if errand.is_over else await errand.next(PING_S)
        if first is not None and first.state == "refused" and errand.is_over and first.code is not None:
            raise RequestError(first.code, f"{first.node}: {first.text}")
        resp.content_type = "application/x-ndjson"
        resp.stream = _relay(errand, first)


def read_order(body: bytes) -> Order:
    """Return the order in a request's body. Raises RequestError."""
    if len(body) > MAX_BODY:
        raise RequestError(Code.REQUEST_TOO_LARGE, f"the body is larger than {MAX_BODY} bytes")
    try:
        return _order.decode(body or b"{}")
    except msgspec.ValidationError as error:
        raise RequestError(Code.INVALID_VALUE, f"{error}; allowed: model, node, device, replace, for_s") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RequestError(Code.INVALID_JSON, f"the body is not valid JSON: {error}") from None


async def _relay(errand: Errand, step: Step | None) -> AsyncIterator[bytes]:
    try:
        while True:
            yield b"\n" if step is None else _line.encode(step) + b"\n"
            if errand.is_over:
                return
            step = await errand.next(PING_S)
    finally:
        errand.close()
