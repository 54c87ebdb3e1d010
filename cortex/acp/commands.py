"""Slash commands: answered by the agent itself, kept in the session, never sent to the model."""

from collections.abc import Awaitable, Callable

from acp import update_agent_message_text
from acp.schema import AvailableCommand, AvailableCommandInput, UnstructuredCommandInput

from cortex.acp.session import Session

COMMANDS = [
    AvailableCommand(name="compact", description="Send the model only the gist of the conversation so far"),
    AvailableCommand(
        name="model",
        description="Show the models, or choose one",
        input=AvailableCommandInput(root=UnstructuredCommandInput(hint="model id")),
    ),
    AvailableCommand(name="status", description="Show model, mode, and the length and file of the session"),
]


def split(text: str) -> tuple[str, str] | None:
    """Return the command of a message and what follows it; None for a message to the model."""
    word, _, rest = text.partition(" ")
    if word in {f"/{c.name}" for c in COMMANDS}:
        return word[1:], rest.strip()
    return None


async def answer(
    session: Session, command: str, rest: str, models: Callable[[], Awaitable[list[str]]], path: str
) -> str:
    """Do a command and return what to tell the user."""
    record = session.record
    if command == "compact":
        record.compacted = len(record.history)
        return f"{record.compacted} entries are sent in short from now on. The session's file keeps them whole."
    if command == "model" and rest:
        known = await models()
        if known and rest not in known:
            return f"There is no model {rest!r}; there are {', '.join(known)}."
        record.model = rest
        return f"The model is {rest} from now on."
    if command == "model":
        known = await models()
        return (
            "\n".join(f"- {m}{' (in use)' if m == record.model else ''}" for m in known) or "The endpoint lists none."
        )
    return "\n".join(
        [
            f"- model: {record.model or 'none chosen'}",
            f"- mode: {record.mode}",
            f"- entries: {len(record.history)}, of which {record.compacted} are sent in short",
            f"- file: {path}",
        ]
    )


async def run(session: Session, owner: object, entry: dict[str, object], reply: Awaitable[str]) -> str:
    """Show a command's answer and keep both out of the model's sight; return the stop reason."""
    entry["local"] = True
    text = await reply
    await session.editor.update(update_agent_message_text(text))
    session.extend(owner, [{"role": "assistant", "content": text, "local": True}])
    await session.save()
    return "end_turn"
