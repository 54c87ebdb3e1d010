"""prep's loop: one message in, one answer out, in order."""

import logging
import os
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msgspec import structs

from common.codec import decode_to_prep, encode
from common.engine_options import EngineOptions
from common.errors import Code, ProtocolError, RequestError
from common.frames import FrameSocket
from common.log import fields
from common.messages import (
    Failed,
    FailedItem,
    FromPrep,
    Inspect,
    Inspected,
    InspectFailed,
    ModelFacts,
    Prepare,
    PrepHello,
    ToPrep,
)
from neuron.prep.prompt import prepare
from neuron.prep.template import ChatTemplate
from neuron.prep.vocabulary import UnusableFile, Vocabulary

log = logging.getLogger(__name__)

_Key = tuple[tuple[str, int, int], tuple[str, ...], Any]
"""File, overrides and template file of what is open."""
VOCABULARIES = 8
"""Kept open; opening one takes from 0.1 s to a second."""


class Service:
    """Answers Inspect and Prepare."""

    def __init__(self, open_vocabulary: Callable[[str, EngineOptions], Vocabulary]) -> None:
        self._open_vocabulary = open_vocabulary
        self._opened: OrderedDict[_Key, tuple[Vocabulary, ChatTemplate | RequestError]] = OrderedDict()

    def answer(self, message: ToPrep) -> FromPrep | None:
        """Return the answer, None for Stop. Whatever goes wrong is an answer too."""
        match message:
            case Inspect():
                return self._inspect(message)
            case Prepare():
                return self._prepare(message)
            case _:
                return None

    def close(self) -> None:
        """Free what is open."""
        for vocabulary, _ in self._opened.values():
            vocabulary.close()
        self._opened.clear()

    def _inspect(self, message: Inspect) -> Inspected | InspectFailed:
        model, path, number = message.model, message.path, message.number
        try:
            vocabulary, template = self._open(path, message.engine)
            if message.engine.chat_template_file is not None and isinstance(template, RequestError):
                raise UnusableFile(template.message)
            facts = vocabulary.measure(message.engine)
            return Inspected(model=model, facts=_describe(facts, template), number=number)
        except (UnusableFile, OSError) as error:
            return InspectFailed(model=model, message=_words(error, path), number=number)
        except Exception as error:
            # A defect of ours, shown with its place; the others' requests go on.
            log.exception("inspection of %s failed", path)
            words = f"{Path(path).name}: internal error: {error!r}"
            return InspectFailed(model=model, message=words, number=number)

    def _prepare(self, message: Prepare) -> FromPrep:
        job, path = message.job, message.path
        try:
            vocabulary, template = self._open(path, message.engine)
            return prepare(job, vocabulary, template, message.context, message.sampling)
        except RequestError as error:
            code, text, param = error.code, error.message, error.param
        except (UnusableFile, OSError) as error:
            code, text, param = Code.MODEL_LOADING_FAILED, f"model '{job.model}': {_words(error, path)}", None
        except Exception as error:
            log.exception("preparation failed", extra=fields(request_id=job.request_id, job=job.id))
            code, text, param = Code.INTERNAL_ERROR, f"preparing the request failed: {error!r}", None
        log.info("job refused: %s", text, extra=fields(request_id=job.request_id, job=job.id))
        return Failed(items=[FailedItem(job=job.id, attempt=job.attempt, code=code, message=text, param=param)])

    def _open(self, path: str, options: EngineOptions) -> tuple[Vocabulary, ChatTemplate | RequestError]:
        """Open a file, or take it from those that are open; one that has changed is opened anew."""
        template_file = options.chat_template_file
        key = (_identity(path), tuple(options.override_kv), template_file and _identity(template_file))
        opened = self._opened.get(key)
        if opened is None:
            vocabulary = self._open_vocabulary(path, options)
            source = vocabulary.chat_template if template_file is None else _read_template(template_file)
            try:
                template: ChatTemplate | RequestError = ChatTemplate(
                    source, bos=vocabulary.bos_text, eos=vocabulary.eos_text
                )
            except RequestError as error:
                template = error  # the model still completes plain text
            opened = self._opened[key] = (vocabulary, template)
            if len(self._opened) > VOCABULARIES:
                _, (oldest, _) = self._opened.popitem(last=False)
                oldest.close()
        self._opened.move_to_end(key)
        return opened


def _identity(path: str) -> tuple[str, int, int]:
    try:
        state = os.stat(path)
    except OSError as error:
        raise UnusableFile(f"{path}: {error.strerror}") from None
    return path, state.st_mtime_ns, state.st_size


def _read_template(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UnusableFile(f"chat_template_file: {path}: {getattr(error, 'strerror', None) or error}") from None


def _describe(facts: ModelFacts, template: ChatTemplate | RequestError) -> ModelFacts:
    """Add what the chat template tells to the facts of the header."""
    if isinstance(template, RequestError) or "chat" not in facts.capabilities:
        return facts
    more = ["tools", "reasoning"] if template.family.has_reasoning else ["tools"]
    return structs.replace(facts, capabilities=[*facts.capabilities, *more], format=template.family.name)


def _words(error: Exception, path: str) -> str:
    reason = error.strerror or str(error) if isinstance(error, OSError) else str(error)
    return f"{Path(path).name}: {reason}"


def serve(
    line: FrameSocket, incarnation: str, build: str, open_vocabulary: Callable[[str, EngineOptions], Vocabulary]
) -> None:
    """Answer messages until Stop. Raises EOFError if the supervisor is gone."""
    service = Service(open_vocabulary)
    line.send([encode(PrepHello(pid=os.getpid(), incarnation=incarnation, build=build))])
    while True:
        for parts in line.receive():
            try:
                message = decode_to_prep(b"".join(parts))
            except ProtocolError as error:
                log.error("undecodable message from the supervisor: %s", error)
                continue
            answer = service.answer(message)
            if answer is None:
                service.close()
                return
            line.send([encode(answer)])
