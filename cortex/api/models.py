"""The fleet's models, in OpenAI's list."""

import falcon
import falcon.asgi
import orjson

from common.errors import Code, RequestError
from cortex.api.front import exchange_of
from cortex.dialects.anthropic_models import anthropic_entry, anthropic_list
from cortex.fleet.contract import Fleet


class Models:
    """GET /v1/models: every model that any neuron could serve, loaded or not."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        """Answer with the list; in Anthropic's shape to a client of theirs."""
        identity = exchange_of(req).identity
        entries = [e for e in self._fleet.models() if identity.may_use(str(e["id"]))]
        if req.get_header("anthropic-version") is not None:
            resp.data = orjson.dumps(anthropic_list(entries))
            return
        resp.data = orjson.dumps({"object": "list", "data": entries})


class Model:
    """GET /v1/models/{id}: one of them; ids contain slashes."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response, model: str) -> None:
        """Answer with the entry."""
        entry = next((e for e in self._fleet.models() if e["id"] == model), None)
        if entry is None or not exchange_of(req).identity.may_use(model):
            raise RequestError(Code.MODEL_NOT_FOUND, f"the model '{model}' does not exist", param="model")
        is_anthropic = req.get_header("anthropic-version") is not None
        resp.data = orjson.dumps(anthropic_entry(entry) if is_anthropic else entry)
