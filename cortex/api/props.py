"""GET /props: what llama-server says about itself, or, with ?model=, about one model. Nothing is loaded for it."""

import falcon
import falcon.asgi
import orjson

from common import __version__
from common.messages import Text
from cortex.api.front import exchange_of
from cortex.api.prompts import ask
from cortex.dialects.llama_server import model_props, router_props
from cortex.dialects.question import Question
from cortex.fleet.contract import Fleet
from cortex.settings import GatewaySettings


class Props:
    """Template and special tokens come from the helper process of a neuron that has the model's file."""

    def __init__(self, fleet: Fleet, settings: GatewaySettings) -> None:
        self._fleet = fleet
        self._budget_ms = int(settings.budget_s * 1000)

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        """Answer for the model in the query, or for the fleet."""
        exchange = exchange_of(req)
        exchange.dialect = "props"
        name = req.get_param("model")
        if not name:
            resp.data = orjson.dumps(router_props(__version__))
            return
        item = await ask(self._fleet, exchange, Question(name, Text(text="")), self._budget_ms)
        entry = next(entry for entry in self._fleet.models() if entry["id"] == exchange.model)
        resp.data = orjson.dumps(model_props(entry, item, __version__))
