"""`cortex chat MODEL`: a conversation in the terminal, streamed, with its speed."""

import argparse
import contextlib
import sys
from typing import Any, TextIO

import httpx

from cortex.cli import orders
from cortex.cli.fleet import DONE, FAILED, NO_ANSWER, connect, explain_silence, trusted
from cortex.cli.streaming import ChatFailed, Spoken, converse

HELP = """\
/new forgets the conversation, /model NAME changes the model, /quit or Ctrl-D ends; Ctrl-C stops an answer"""
_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the command line's grammar."""
    text = "Chat with a model. Without a terminal the message is read from stdin, and the answer alone is printed."
    chat = commands.add_parser("chat", help="chat with a model, with its speed", description=text, epilog=HELP)
    chat.add_argument("model", metavar="MODEL", help="id or alias")
    chat.add_argument("message", nargs="*", metavar="WORD", help="one message; the program ends with its answer")
    chat.add_argument("--system", metavar="TEXT", help="system prompt; there is none otherwise")
    chat.add_argument("--max-tokens", type=int, metavar="N", help="of an answer")
    chat.add_argument("--temperature", type=float, metavar="T", help="0 always takes the likeliest token")
    chat.add_argument("--seed", type=int, metavar="N", help="for answers that can be repeated")
    orders.add_gateway(chat)


class Conversation:
    """The messages so far."""

    def __init__(self, client: httpx.Client, url: str, model: str, system: str | None, options: dict[str, Any]) -> None:
        self.model = model
        self._client = client
        self._url = url
        self._options = options
        self._system = [] if system is None else [{"role": "system", "content": system}]
        self._turns: list[dict[str, str]] = []

    def forget(self) -> None:
        """Begin anew."""
        self._turns.clear()

    def say(self, text: str, out: TextIO) -> Spoken:
        """Send a message and write the answer as it comes. Raises ChatFailed; Ctrl-C ends the answer and is kept."""
        is_terminal, heard = out.isatty(), []

        def hear(piece: str, is_thought: bool) -> None:
            piece = printable(piece)
            if is_thought and is_terminal:
                out.write(f"{_DIM}{piece}{_PLAIN}")
            elif not is_thought:
                heard.append(piece)
                out.write(piece)
            out.flush()

        messages = [*self._system, *self._turns, {"role": "user", "content": text}]
        try:
            return converse(self._client, self._url, {"model": self.model, "messages": messages, **self._options}, hear)
        finally:
            if heard:
                self._turns += [messages[-1], {"role": "assistant", "content": "".join(heard)}]


def printable(text: str) -> str:
    """Return text without what a terminal would obey: a model's output must not move the cursor or set a title."""
    return "".join(c for c in text if c in "\n\t" or (c >= " " and not "\x7f" <= c <= "\x9f"))


def describe(spoken: Spoken) -> str:
    """Return one line about an answer's speed."""
    parts = [f"{spoken.tokens} tokens"]
    if spoken.tokens_per_s is not None:
        parts.append(f"{spoken.tokens_per_s:.1f} tokens/s")
    if spoken.ttft_s is not None:
        parts.append(f"first after {spoken.ttft_s * 1000:.0f} ms")
    if spoken.usage:
        cached = spoken.usage.get("prompt_tokens_details", {}).get("cached_tokens", 0)
        parts.append(f"prompt {spoken.usage.get('prompt_tokens', 0)}, {cached} cached")
    if spoken.finish_reason == "length":
        parts.append("cut off")
    return ", ".join(parts)


def run(arguments: argparse.Namespace) -> int:
    """Chat; return the exit status. Raises ConfigError."""
    url, headers = connect(arguments.url, arguments.config)
    names = ("max_tokens", "temperature", "seed")
    options = {n: v for n in names if (v := getattr(arguments, n)) is not None}
    with httpx.Client(headers=headers, verify=trusted(arguments.config)) as client:
        talk = Conversation(client, url, arguments.model, arguments.system, options)
        try:
            if arguments.message or not sys.stdin.isatty():
                return _once(talk, " ".join(arguments.message) or sys.stdin.read(), as_json=arguments.json)
            return _converse(talk)
        except httpx.TransportError as error:
            print(explain_silence(url, error), file=sys.stderr)
            return NO_ANSWER


def _once(talk: Conversation, text: str, *, as_json: bool) -> int:
    try:
        with open("/dev/null", "w") if as_json else contextlib.nullcontext(sys.stdout) as out:
            spoken = talk.say(text, out)
    except ChatFailed as error:
        print(f"\ncortex: {error}", file=sys.stderr)
        return FAILED
    if as_json:
        import orjson

        row = {"text": spoken.text, "tokens": spoken.tokens, "ttft_s": spoken.ttft_s,
               "tokens_per_s": spoken.tokens_per_s, "usage": spoken.usage}  # fmt: skip
        print(orjson.dumps(row).decode())
        return DONE
    print()
    if sys.stderr.isatty():
        print(f"{_DIM}{describe(spoken)}{_PLAIN}", file=sys.stderr)
    return DONE


def _converse(talk: Conversation) -> int:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 # gives input() editing and history

    print(f"{_DIM}{talk.model}; {HELP}{_PLAIN}")
    while True:
        try:
            text = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return DONE
        match text.split(maxsplit=1):
            case []:
                continue
            case ["/quit" | "/exit"]:
                return DONE
            case ["/new"]:
                talk.forget()
            case ["/model", name]:
                talk.model = name
            case [word, *_] if word.startswith("/"):
                print(f"{_DIM}{HELP}{_PLAIN}")
            case _:
                _turn(talk, text)


def _turn(talk: Conversation, text: str) -> None:
    try:
        line = describe(talk.say(text, sys.stdout))
    except KeyboardInterrupt:
        line = "stopped"
    except ChatFailed as error:
        line = f"failed: {error}"
    print(f"\n{_DIM}{line}{_PLAIN}")
