"""POST /v1/rerank: a query and documents to a job, its scores to the body, in the shape Jina and llama-server share."""

from typing import Annotated, Any

import msgspec
import orjson
from msgspec import Meta

from common.messages import EndedItem, Rerank
from cortex.dialects.canonical import Generation
from cortex.dialects.contract import Heading
from cortex.dialects.decoding import BodyDecoder, invalid_value
from cortex.dialects.single import SingleBody, WholeRequest


class RerankFields(msgspec.Struct, frozen=True, kw_only=True):
    """The request's body."""

    model: Annotated[str, Meta(min_length=1, max_length=256)]
    query: Annotated[str, Meta(min_length=1)]
    documents: Annotated[list[str | dict[str, Any]], Meta(min_length=1, max_length=2048)]
    top_n: Annotated[int, Meta(ge=1)] | None = None
    return_documents: bool | None = None


_decode = BodyDecoder(RerankFields)


class RerankRequest(WholeRequest):
    """A request that has been read."""

    def __init__(self, fields: RerankFields) -> None:
        self._documents = [_read_document(d, i) for i, d in enumerate(fields.documents)]
        self.generation = Generation(model=fields.model, inputs=[Rerank(query=fields.query, documents=self._documents)])
        self._top = fields.top_n
        self._is_returned = bool(fields.return_documents)

    def body(self, heading: Heading) -> "RerankBody":
        """Return the empty body of the reply."""
        return RerankBody(heading, self._documents if self._is_returned else None, self._top)


class Reranking:
    """Implements contract.Dialect."""

    name = "rerank"

    def read(self, body: bytes) -> RerankRequest:
        """Return the request in an HTTP body. Raises RequestError naming the field."""
        return RerankRequest(_decode(body))


def _read_document(document: str | dict[str, Any], index: int) -> str:
    text = document.get("text") if isinstance(document, dict) else document
    if not isinstance(text, str) or not text:
        raise invalid_value(f"documents[{index}]", 'non-empty text, or {"text": "…"}')
    return text


class RerankBody(SingleBody):
    """The reply: the documents' numbers and scores, the most relevant first."""

    def __init__(self, heading: Heading, documents: list[str] | None, top: int | None) -> None:
        super().__init__(heading)
        self._documents = documents
        self._top = top

    def write(self, heading: Heading, item: EndedItem) -> bytes:
        """Return the JSON."""
        order = sorted(range(len(item.scores)), key=lambda i: (-item.scores[i], i))[: self._top]
        results: list[dict[str, Any]] = [{"index": i, "relevance_score": item.scores[i]} for i in order]
        if self._documents is not None:
            for result in results:
                result["document"] = {"text": self._documents[result["index"]]}
        usage = {"prompt_tokens": item.prompt_tokens, "total_tokens": item.prompt_tokens}
        return orjson.dumps({"object": "list", "model": heading.model, "usage": usage, "results": results})
