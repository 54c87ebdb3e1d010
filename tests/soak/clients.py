"""Clients of a soak: each request is one of a few kinds, and is counted by how it ended."""

import random
import threading
from collections import Counter

import httpx
import orjson

from tests.support.fake_engine import answer, text_of, tokenise
from tests.support.streams import chat

MODELS = ("both", "left", "right")
WELL_FORMED = frozenset({200, 400, 429, 503, 504})


class Clients:
    """Threads that ask and count until told to stop."""

    def __init__(self, url: str, threads: int, seed: int) -> None:
        self._url = f"{url}/v1/chat/completions"
        self._is_over = threading.Event()
        self._lock = threading.Lock()
        self.sent = 0
        self.ended: Counter[str] = Counter()
        """By kind and how; every request is here once."""
        self.wrong: list[str] = []
        """Answers that are not what an undisturbed run would have given."""
        self._threads = [
            threading.Thread(target=self._ask_and_ask, args=(seed * 1000 + i,), name=f"client-{i}", daemon=True)
            for i in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def finish(self, timeout_s: float = 180.0) -> None:
        """Ask nothing more, and wait for what is under way."""
        self._is_over.set()
        for thread in self._threads:
            thread.join(timeout_s)
        assert not any(t.is_alive() for t in self._threads), "a request has no end"

    def _ask_and_ask(self, seed: int) -> None:
        chance = random.Random(seed)
        number = 0
        with httpx.Client(timeout=httpx.Timeout(170.0)) as client:
            while not self._is_over.is_set():
                number += 1
                with self._lock:
                    self.sent += 1
                kind = chance.choice(("stream", "stream", "stream", "whole", "gone", "bad"))
                try:
                    how = self._ask(client, kind, f"client {seed} asks {number}", chance)
                except httpx.HTTPError as error:
                    how = f"broken: {type(error).__name__}"
                with self._lock:
                    self.ended[f"{kind}: {how}"] += 1

    def _ask(self, client: httpx.Client, kind: str, prompt: str, chance: random.Random) -> str:
        count = chance.choice((1, 20, 100, 300))
        body = chat(chance.choice(MODELS), prompt, max_tokens=-1 if kind == "bad" else count)
        if kind in ("whole", "bad"):
            reply = client.post(self._url, json=body)
            if reply.status_code != 200:
                return self._refusal(reply.status_code, reply.content)
            return self._judge(prompt, count, reply.json()["choices"][0]["message"]["content"])
        text, error, is_done, lines_left = "", None, False, chance.randrange(1, 40) if kind == "gone" else -1
        with client.stream("POST", self._url, json={**body, "stream": True}) as reply:
            if reply.status_code != 200:
                return self._refusal(reply.status_code, reply.read())
            for line in reply.iter_lines():
                if line == "data: [DONE]":
                    assert not is_done, "ended twice"
                    is_done = True
                elif line.startswith("data: "):
                    event = orjson.loads(line[6:])
                    error = event.get("error", {}).get("code") or error
                    for choice in event.get("choices", []):
                        text += choice["delta"].get("content") or ""
                lines_left -= 1
                if lines_left == 0:
                    return "left"
        if not expected(prompt, count).startswith(text):
            self.wrong.append(f"{prompt}: {text!r}")
        if error is not None:
            return f"error {error}"
        if not is_done:
            self.wrong.append(f"{prompt}: neither an error nor an end")
        return self._judge(prompt, count, text)

    def _refusal(self, status: int, content: bytes) -> str:
        if status not in WELL_FORMED or "error" not in orjson.loads(content):
            self.wrong.append(f"status {status}: {content!r}")
        return f"status {status} {orjson.loads(content)['error']['code']}"

    def _judge(self, prompt: str, count: int, text: str) -> str:
        if text != expected(prompt, count):
            self.wrong.append(f"{prompt}: {text!r}")
            return "altered"
        return "ok"


def expected(prompt: str, count: int) -> str:
    """Return what the fake engine says to a prompt."""
    return text_of(answer(tokenise(f"user: {prompt}"), count))
