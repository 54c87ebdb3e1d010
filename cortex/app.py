"""Wires the HTTP application."""

from collections.abc import Callable

import falcon
import falcon.asgi

from cortex.access.access import Access, Identity
from cortex.access.meter import Ticket
from cortex.api.admin import VERBS, Orders
from cortex.api.browsers import Browsers, own_names
from cortex.api.exchange import Exchange
from cortex.api.front import Front
from cortex.api.generate import Generate
from cortex.api.models import Model, Models
from cortex.api.openapi import OpenApi
from cortex.api.prompts import Prompts
from cortex.api.props import Props
from cortex.api.status import FleetStatus, Health, Lifecycle, Live, Ready, Version
from cortex.capture.store import Store
from cortex.capture.tap import Tap, tapped
from cortex.dashboard.activity import Activity
from cortex.dashboard.live import Live as FleetLive
from cortex.dashboard.page import Files, Root
from cortex.dialects.anthropic_count import AnthropicCount
from cortex.dialects.anthropic_messages import AnthropicMessages
from cortex.dialects.bounds import Bounds
from cortex.dialects.embeddings import Embeddings
from cortex.dialects.llama_infill import LlamaInfill
from cortex.dialects.llama_server import ApplyTemplate, Detokenize, Tokenize
from cortex.dialects.openai_chat import OpenAIChat
from cortex.dialects.openai_completions import OpenAICompletions
from cortex.dialects.openai_responses import OpenAIInputTokens, OpenAIResponses
from cortex.dialects.rerank import Reranking
from cortex.fleet.contract import Fleet
from cortex.settings import CortexSettings


def create_app(
    settings: CortexSettings,
    fleet: Fleet,
    access: Access,
    lifecycle: Lifecycle,
    observe: Callable[[Exchange], None] = lambda exchange: None,
    admit: Callable[[Identity], Ticket | None] = lambda identity: None,
    activity: Activity | None = None,
    capture: Store | None = None,
) -> Front:
    """Return the ASGI application. `access`: decides who may ask, `admit` how much of it.

    `observe`: is told of each request that has ended. `activity`: what the page shows of all gateway processes; without
    it there is no /fleet/live. `capture`: where whole requests are kept.
    """
    gateway, limits, bare = settings.gateway, settings.limits, fleet
    most = Bounds(
        messages=limits.messages,
        tools=limits.tools,
        nesting=limits.nesting,
        stop=limits.stop,
        schema_bytes=limits.schema_kb * 1024,
        grammar_bytes=limits.grammar_kb * 1024,
    )
    browsers = Browsers(settings.browsers.hosts, settings.browsers.origins, own_names())
    if capture is not None:
        fleet = tapped(bare)
    app = falcon.asgi.App(media_type=falcon.MEDIA_JSON)
    files = Files()
    app.add_route("/", Root(files))
    app.add_route("/dashboard/{name}", files)
    app.add_route("/livez", Live())
    app.add_route("/readyz", Ready(fleet, lifecycle))
    app.add_route("/health", Health(fleet))
    app.add_route("/version", Version())
    app.add_route("/v1/models", Models(fleet))
    app.add_route("/v1/models/{model:path}", Model(fleet))
    app.add_route("/v1/chat/completions", Generate(OpenAIChat(), fleet, gateway, most))
    app.add_route("/v1/completions", Generate(OpenAICompletions(), fleet, gateway, most))
    app.add_route("/v1/responses", Generate(OpenAIResponses(), fleet, gateway, most))
    app.add_route("/v1/responses/input_tokens", Prompts(OpenAIInputTokens(), fleet, gateway, most))
    app.add_route("/v1/embeddings", Generate(Embeddings(), fleet, gateway, most))
    app.add_route("/v1/rerank", Generate(Reranking(), fleet, gateway, most))
    anthropic = AnthropicMessages(normalizes_stamp=settings.messages.normalize_billing_stamp)
    app.add_route("/v1/messages", Generate(anthropic, fleet, gateway, most))
    app.add_route("/v1/messages/count_tokens", Prompts(AnthropicCount(anthropic), fleet, gateway, most))
    app.add_route("/tokenize", Prompts(Tokenize(), fleet, gateway, most))
    app.add_route("/detokenize", Prompts(Detokenize(), fleet, gateway, most))
    app.add_route("/apply-template", Prompts(ApplyTemplate(), fleet, gateway, most))
    app.add_route("/infill", Generate(LlamaInfill(), fleet, gateway, most))
    app.add_route("/openapi.json", OpenApi())
    app.add_route("/props", Props(fleet, gateway))
    app.add_route("/fleet/status", FleetStatus(fleet))
    if activity is not None:
        app.add_route("/fleet/live", FleetLive(fleet, activity, lifecycle, access.is_in_force))
    for verb in VERBS:
        app.add_route(f"/fleet/{verb}", Orders(verb, fleet))
    return Front(
        app,
        app if capture is None else Tap(app, bare, capture),
        max_body=gateway.max_body_mb * 2**20,
        access=access,
        browsers=browsers,
        admit=admit,
        observe=observe,
    )
