"""The real prep process on the real model file."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from common.codec import decode_from_prep, encode
from common.errors import Code
from common.frames import FrameSocket
from common.ids import new_incarnation
from common.messages import (
    Chat,
    Failed,
    FailedItem,
    FromPrep,
    Infill,
    Inspect,
    Inspected,
    InspectFailed,
    Job,
    Prepare,
    Prepared,
    PrepHello,
    Sampling,
    Snippet,
    Stop,
    Text,
    TokenIds,
    ToPrep,
)
from tests.support.harness import DEMO_MODEL, ROOT
from tests.support.tiny_models import FIRST_FILL_IN, write_tiny_model

MODEL = str(DEMO_MODEL)


class Prep:
    """A prep process and the supervisor's end of its socket."""

    def __init__(self) -> None:
        end, theirs = socket.socketpair()
        end.settimeout(20)
        self.line = FrameSocket(end)
        self._incarnation = new_incarnation()
        hold, self._lifeline = os.pipe()
        arguments = ["--line", str(theirs.fileno()), "--incarnation", self._incarnation, "--lifeline", str(hold)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "neuron.prep", *arguments, "--supervisor-pid", str(os.getpid())],
            pass_fds=(hold, theirs.fileno()), env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, cwd=ROOT,
        )  # fmt: skip
        os.close(hold)
        theirs.close()
        hello = self.receive()
        assert isinstance(hello, PrepHello)
        assert hello.incarnation == self._incarnation

    def receive(self) -> FromPrep:
        while not (messages := self.line.receive()):
            pass
        ((payload,),) = messages
        return decode_from_prep(payload)

    def send(self, frame: bytes) -> None:
        self.line.send([frame])

    def ask(self, message: ToPrep) -> FromPrep:
        self.send(encode(message))
        return self.receive()

    def prepare(
        self, prompt: Chat | Text | TokenIds | Infill, *, context: int = 2048, path: str = MODEL, **keys: object
    ) -> Prepared | FailedItem:
        job = Job(id="j", attempt=1, model="m", request_id="r", input=prompt, **keys)  # type: ignore[arg-type]
        answer = self.ask(Prepare(job=job, path=path, context=context))
        if isinstance(answer, Failed):
            return answer.items[0]
        assert isinstance(answer, Prepared)
        return answer

    def close(self) -> None:
        os.close(self._lifeline)
        self.process.wait(5)
        self.line.close()


@pytest.fixture
def prep() -> Iterator[Prep]:
    started = Prep()
    yield started
    started.close()


def chat(*texts: str) -> Chat:
    roles = ("user", "assistant")
    return Chat(messages=[{"role": roles[i % 2], "content": t} for i, t in enumerate(texts)])


def test_the_facts_of_the_demo_model(prep: Prep) -> None:
    answer = prep.ask(Inspect(model="demo", path=MODEL))
    assert isinstance(answer, Inspected)
    facts = answer.facts
    assert (facts.architecture, facts.context_train, facts.layers, facts.vocabulary) == ("llama", 8192, 30, 49152)
    assert facts.kv_bytes_per_token == 23040
    assert facts.vocab_fingerprint


def test_a_chat_is_rendered_with_the_models_own_template(prep: Prep) -> None:
    answer = prep.prepare(chat("Hello"), max_tokens=10)
    assert isinstance(answer, Prepared)
    assert answer.max_tokens == 10
    # The marker is one token only where the template's text is read as control tokens.
    text = prep.prepare(Text(text="<|im_start|>"))
    assert isinstance(text, Prepared)
    assert text.tokens[0] in answer.tokens
    assert len(text.tokens) == 1


def test_token_ids_and_text_pass_unchanged(prep: Prep) -> None:
    ids = prep.prepare(TokenIds(ids=[5, 6, 7]))
    assert isinstance(ids, Prepared)
    assert ids.tokens == [5, 6, 7]


def test_a_gap_is_filled_in_after_the_files_own_tokens_or_refused(prep: Prep, tmp_path: Path) -> None:
    gap = Infill(prefix="", suffix="", extra=[Snippet(text="")])
    refused = prep.prepare(gap)
    assert isinstance(refused, FailedItem)
    assert (refused.code, refused.param) == (Code.UNSUPPORTED_PARAMETER, "suffix")
    path = str(write_tiny_model(tmp_path, "llama", fills_in=True))
    first = FIRST_FILL_IN
    answer = prep.prepare(gap, path=path)
    assert isinstance(answer, Prepared)
    assert [t for t in answer.tokens if t >= first] == [first + 3, first + 3, first, first + 1, first + 2]
    assert answer.tokens[0] == 1, "BOS, as the file wants it"


def test_max_tokens_is_clamped_to_what_the_context_leaves(prep: Prep) -> None:
    answer = prep.prepare(TokenIds(ids=[5] * 100), context=128, max_tokens=32000)
    assert isinstance(answer, Prepared)
    assert answer.max_tokens == 28
    answer = prep.prepare(TokenIds(ids=[5] * 100), context=128)
    assert isinstance(answer, Prepared)
    assert answer.max_tokens == 28


@pytest.mark.parametrize(
    ("prompt", "keys", "code", "expected"),
    [
        (
            TokenIds(ids=[5] * 128),
            {},
            Code.CONTEXT_LENGTH_EXCEEDED,
            "maximum context length is 128 tokens.* 128 tokens",
        ),
        (TokenIds(ids=[49152]), {}, Code.INVALID_VALUE, "token id 49152"),
        (TokenIds(ids=[]), {}, Code.INVALID_VALUE, "prompt is empty"),
        (Text(text=""), {}, Code.INVALID_VALUE, "prompt is empty"),
        (Text(text="x"), {"sampling": Sampling(logit_bias={99999: 1.0})}, Code.INVALID_VALUE, "logit_bias"),
        (Text(text="x"), {"sampling": Sampling(stop=[""])}, Code.INVALID_VALUE, "stop"),
        (Text(text="x"), {"sampling": Sampling(stop=["a"] * 17)}, Code.INVALID_VALUE, "stop"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(
    prep: Prep, prompt: Text | TokenIds, keys: dict[str, Any], code: Code, expected: str
) -> None:
    import re

    answer = prep.prepare(prompt, context=128, **keys)
    assert isinstance(answer, FailedItem)
    assert answer.code is code
    assert re.search(expected, answer.message)


def test_files_that_cannot_be_served_say_why_and_prep_goes_on(prep: Prep, tmp_path: Path) -> None:
    data = DEMO_MODEL.read_bytes()
    cases = {
        "truncated.gguf": (data[: len(data) // 2], "truncated"),
        "header.gguf": (data[:1000], "damaged or cut off"),
        "text.gguf": (b"hello, I am no model" * 10, "no GGUF file"),
        "empty.gguf": (b"", "is empty"),
    }
    for name, (content, expected) in cases.items():
        path = tmp_path / name
        path.write_bytes(content)
        answer = prep.ask(Inspect(model=name, path=str(path)))
        assert isinstance(answer, InspectFailed), name
        assert expected in answer.message, name
    gone = prep.ask(Inspect(model="gone", path=str(tmp_path / "gone.gguf")))
    assert isinstance(gone, InspectFailed)
    prep.send(b"garbage")
    assert isinstance(prep.ask(Inspect(model="demo", path=MODEL)), Inspected)


def test_stop_and_the_loss_of_the_lifeline_end_it(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    stopped, orphaned = Prep(), Prep()
    stopped.send(encode(Stop()))
    assert stopped.process.wait(5) == 0
    stopped.close()
    orphaned.close()
    assert orphaned.process.returncode != 0
