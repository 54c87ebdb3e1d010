"""prep's loop: one message in, one answer out, in order."""

import importlib
import logging
import os
from collections import OrderedDict
from collections.abc import Callable

import zmq

from common.codec import decode_to_prep, encode
from common.errors import Code, ProtocolError, RequestError
from common.log import fields
from common.messages import (
    Failed,
    FailedItem,
    FromPrep,
    Inspect,
    Inspected,
    InspectFailed,
    Prepare,
    PrepHello,
    Stop,
    ToPrep,
)
from neuron.prep.prompt import prepare
from neuron.prep.template import ChatTemplate
from neuron.prep.vocabulary import UnusableFile, Vocabulary

log = logging.getLogger(__name__)

VOCABULARIES = 8
"""Kept open; opening one takes about 0.1 s."""


class Service:
    """Answers Inspect and Prepare."""

    def __init__(self, open_vocabulary: Callable[[str], Vocabulary]) -> None:
        self._open_vocabulary = open_vocabulary
        self._opened: OrderedDict[tuple[str, int, int], tuple[Vocabulary, ChatTemplate | RequestError]] = OrderedDict()

    def answer(self, message: ToPrep) -> FromPrep | None:
        """Return the answer, None for Stop. Whatever goes wrong is an answer too."""
        match message:
            case Inspect(model=model, path=path):
                try:
                    vocabulary, _ = self._open(path)
                    return Inspected(model=model, facts=vocabulary.facts)
                except (UnusableFile, OSError) as error:
                    return InspectFailed(model=model, message=_words(error))
            case Prepare(job=job, path=path, context=context):
                try:
                    vocabulary, template = self._open(path)
                    if isinstance(template, RequestError):
                        raise template
                    return prepare(job, vocabulary, template, context)
                except RequestError as error:
                    item = FailedItem(
                        job=job.id, attempt=job.attempt, code=error.code, message=error.message, param=error.param
                    )
                except (UnusableFile, OSError) as error:
                    text = f"model '{job.model}': {_words(error)}"
                    item = FailedItem(job=job.id, attempt=job.attempt, code=Code.MODEL_LOADING_FAILED, message=text)
                log.info("job refused: %s", item.message, extra=fields(request_id=job.request_id, job=job.id))
                return Failed(items=[item])
            case Stop():
                return None

    def _open(self, path: str) -> tuple[Vocabulary, ChatTemplate | RequestError]:
        """Open a file, or take it from those that are open; one that has changed is opened anew."""
        state = os.stat(path)
        key = (path, state.st_mtime_ns, state.st_size)
        opened = self._opened.get(key)
        if opened is None:
            vocabulary = self._open_vocabulary(path)
            try:
                template: ChatTemplate | RequestError = ChatTemplate(
                    vocabulary.chat_template, bos=vocabulary.bos_text, eos=vocabulary.eos_text
                )
            except RequestError as error:
                template = error  # the model still completes plain text
            opened = self._opened[key] = (vocabulary, template)
            if len(self._opened) > VOCABULARIES:
                _, (oldest, _) = self._opened.popitem(last=False)
                oldest.close()
        self._opened.move_to_end(key)
        return opened


def _words(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


def serve(socket: "zmq.Socket[bytes]", incarnation: str, engine: str) -> None:
    """Answer messages until Stop."""
    module = importlib.import_module("neuron.prep.llama_vocabulary" if engine == "llama" else engine)
    service = Service(module.open_vocabulary)
    build = module.build() if hasattr(module, "build") else engine
    socket.send(encode(PrepHello(pid=os.getpid(), incarnation=incarnation, build=build)))
    while True:
        try:
            message = decode_to_prep(socket.recv())
        except ProtocolError as error:
            log.warning("undecodable frame from the supervisor: %s", error)
            continue
        answer = service.answer(message)
        if answer is None:
            return
        socket.send(encode(answer))
