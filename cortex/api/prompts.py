"""The endpoints that ask only for a prompt: how many tokens, which, what text. Nothing is loaded or evicted for it."""

import falcon
import falcon.asgi
import orjson

from common.ids import new_job_id
from common.messages import Job, RenderedItem
from cortex.api.exchange import Exchange
from cortex.api.front import exchange_of
from cortex.api.generate import read_body
from cortex.dialects import bounds
from cortex.dialects.canonical import fill_input, rank
from cortex.dialects.question import Asking, Question
from cortex.fleet.contract import Fleet
from cortex.settings import GatewaySettings


class Prompts:
    """One endpoint in one language."""

    def __init__(self, asking: Asking, fleet: Fleet, settings: GatewaySettings, most: bounds.Bounds) -> None:
        self._asking = asking
        self._bounds = most
        self._fleet = fleet
        self._max_body = settings.max_body_mb * 2**20
        self._budget_ms = int(settings.budget_s * 1000)

    async def on_post(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        """Answer with what the helper process of a neuron says that has the model's file."""
        exchange = exchange_of(req)
        exchange.dialect = self._asking.name
        question = self._asking.read(await read_body(req, self._max_body))
        bounds.check_input(question.input, self._bounds)
        item = await ask(self._fleet, exchange, question, self._budget_ms)
        resp.data = orjson.dumps(self._asking.write(item))


async def ask(fleet: Fleet, exchange: Exchange, question: Question, budget_ms: int) -> RenderedItem:
    """Return the prompt that was asked for. Raises RequestError."""
    exchange.model = question.model
    model, alias = fleet.resolve(question.model)
    exchange.model = exchange.known_model = model
    exchange.identity.require(model)
    job = Job(
        id=new_job_id(),
        attempt=0,
        model=model,
        request_id=exchange.request_id,
        input=fill_input(question.input, alias),
        answer="prompt",
        budget_ms=budget_ms,
        principal=exchange.identity.name,
        priority=rank(exchange.identity.priority, alias),
    )
    call = exchange.call = fleet.submit([job])  # whatever happens, the exchange's end closes it
    while True:
        for _, event in await call.next(None):
            if isinstance(event, RenderedItem):
                return event
