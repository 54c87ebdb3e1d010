"""The tools as the endpoint is told of them."""

from typing import Any

_PATH = {"type": "string", "description": "absolute, or relative to the working folder"}


def _tool(name: str, description: str, required: list[str], **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": required}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def _text(description: str) -> dict[str, str]:
    return {"type": "string", "description": description}


def _number(description: str) -> dict[str, Any]:
    return {"type": "integer", "minimum": 1, "description": description}


SCHEMAS = [
    _tool(
        "read_file", "Read a text file, or a part of it.", ["path"],
        path=_PATH, line=_number("first line"), limit=_number("most lines, 2000 by default"),
    ),
    _tool(
        "write_file", "Make or replace a whole text file.", ["path", "content"],
        path=_PATH, content=_text("the whole file"),
    ),
    _tool(
        "edit_file", "Replace one passage of a text file.", ["path", "old_text", "new_text"],
        path=_PATH, old_text=_text("exact, and in the file once only"), new_text=_text("what takes its place"),
    ),
    _tool("list_dir", "List a folder.", [], path=_PATH),
    _tool(
        "search", "Search the text files under a folder, line by line.", ["text"],
        text=_text("plain text, case counts"), path=_PATH,
    ),
    _tool(
        "bash", "Run a shell command in the working folder.", ["command"],
        command=_text("for sh -c"), timeout_s=_number("seconds until it is killed, 600 by default"),
    ),
    _tool(
        "update_plan", "Show the user the plan of a longer piece of work, whole each time.", ["entries"],
        entries={
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "content": {"type": "string"},
                    "status": {"type": "string", "enum": ["pending", "in_progress", "completed"]},
                },
                "required": ["content", "status"],
            },
        },
    ),
]  # fmt: skip
