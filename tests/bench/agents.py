"""Conversations of agents: turns that build on each other, two at a time, against llama-server's own caches."""

import contextlib
import random
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from neuron.prep.llama_vocabulary import LlamaVocabulary, open_vocabulary
from neuron.worker.prefix_cache import shared_length
from tests.bench.against_llama import CELLS, FLAGS
from tests.bench.llama_server import LlamaServer
from tests.bench.load import Answer, send_all
from tests.support.harness import DEMO_MODEL, DEMO_SOURCE, Gateway, Neuron

CONVERSATIONS, TURNS = 8, 6
SYSTEM_TOKENS, TURN_TOKENS, ANSWER_TOKENS = 1500, (60, 100), 64
ROUNDS = 7
SLOTS = (4, 8)
NO_END = {"0": -100, "2": -100}
WORDS = [f"{a}{b}" for a in ("re", "un", "de", "in", "con", "sub") for b in ("port", "form", "tend", "vert", "press")]


@contextlib.contextmanager
def demo_chain(parallel: int) -> Iterator[tuple[Neuron, str]]:
    """Run neuron and gateway with the demo model; yield the neuron and the gateway's URL."""
    profile = {"id": "demo", "source": DEMO_SOURCE, "context": 8192, "kv_tokens": CELLS, "parallel": parallel}
    cpu = {"kind": "cpu", "memory_mb": 2048, "threads": 2}
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        with (
            Neuron(base / "n", devices=[cpu], models=[profile], preload=["demo"], host_cache_mb=2048) as neuron,
            Gateway(base / "g", neurons=[neuron], workers=1) as gateway,
        ):
            neuron.wait_for(lambda s: s["state"]["models"][0]["status"] == "loaded", timeout_s=60)
            yield neuron, gateway.url


def measure(rounds: int = ROUNDS) -> dict[str, Any]:
    """p50 TTFT of the first and of later turns, and the share of possible tokens that came from a cache."""
    vocabulary = open_vocabulary(str(DEMO_MODEL))
    readings: dict[str, list[dict[str, float]]] = {}
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        sides = {"ours": stack.enter_context(demo_chain(8))[1]}
        for slots in SLOTS:
            options = (*FLAGS, "--ctx-size", str(CELLS), "--parallel", str(slots))
            rival = stack.enter_context(LlamaServer(Path(folder) / f"l{slots}", DEMO_MODEL, *options))
            sides[f"llama-server, {slots} slots"] = rival.url
        for number in range(rounds):
            for side, url in sides.items():
                readings.setdefault(side, []).append(_round(url, vocabulary, number))
    vocabulary.close()
    figures: dict[str, Any] = {"rounds": rounds}
    for name in readings["ours"][0]:
        figures[name] = {side: round(statistics.median(r[name] for r in rs), 3) for side, rs in readings.items()}
        for side in readings if name.endswith("_s") else ():
            ratios = [a[name] / b[name] for a, b in zip(readings["ours"], readings[side], strict=True)]
            if side != "ours":
                figures[name][f"ratio to {side}"] = round(statistics.median(ratios), 3)
    return figures


def _round(url: str, vocabulary: LlamaVocabulary, number: int) -> dict[str, float]:
    """Play all conversations once; the texts of a round are its own, so nothing is known from an earlier one."""
    texts = random.Random(number)
    system = _text(texts, vocabulary, SYSTEM_TOKENS)
    said = [system] * CONVERSATIONS
    earlier: list[list[int]] = []
    first: list[float] = []
    later: list[float] = []
    cached = possible = 0
    for turn, pair in _order(texts):
        for conversation in pair:
            said[conversation] += "\n\nUser: " + _text(texts, vocabulary, texts.randint(*TURN_TOKENS)) + "\n\nReply:"
        answers = send_all(f"{url}/v1/completions", [_body(said[c]) for c in pair])[1]
        for conversation, answer in zip(pair, answers, strict=True):
            (later if turn else first).append(answer.first_s)
            tokens = vocabulary.tokenise(said[conversation], add_special=True, parse_special=True)
            possible += max((min(shared_length(tokens, e), len(tokens) - 1) for e in earlier), default=0)
            cached += _cached(answer)
            said[conversation] += answer.text
        earlier += [vocabulary.tokenise(said[c], add_special=True, parse_special=True) for c in pair]
    return {
        "first_turn_s": statistics.median(first),
        "later_turns_s": statistics.median(later),
        "cached_of_possible": cached / possible,
    }


def _order(texts: random.Random) -> Iterator[tuple[int, list[int]]]:
    """Yield each turn's number with the two conversations that take it together, in a new order each time."""
    for turn in range(TURNS):
        order = texts.sample(range(CONVERSATIONS), CONVERSATIONS)
        for i in range(0, CONVERSATIONS, 2):
            yield turn, order[i : i + 2]


def _cached(answer: Answer) -> int:
    return int((answer.usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)


def _text(texts: random.Random, vocabulary: LlamaVocabulary, tokens: int) -> str:
    """Return words of about so many tokens."""
    words: list[str] = []
    while len(words) < tokens:
        words += texts.choices(WORDS, k=16)
        count = len(vocabulary.tokenise(" ".join(words), add_special=False, parse_special=False))
        if count >= tokens:
            return " ".join(words[: max(1, len(words) * tokens // count)])
    return " ".join(words)


def _body(prompt: str) -> dict[str, Any]:
    return {"model": "demo", "prompt": prompt, "max_tokens": ANSWER_TOKENS, "temperature": 0, "logit_bias": NO_END}
