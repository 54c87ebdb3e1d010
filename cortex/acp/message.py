"""A user's message: the editor's content blocks as the model gets them, and what cannot reach it by name."""

import asyncio
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from acp.schema import (
    AudioContentBlock,
    BlobResourceContents,
    EmbeddedResourceContentBlock,
    ImageContentBlock,
    ResourceContentBlock,
    TextContentBlock,
)

from cortex.acp.editor import Editor, EditorError

Block = TextContentBlock | ImageContentBlock | AudioContentBlock | ResourceContentBlock | EmbeddedResourceContentBlock

_RANGE = re.compile(r"L(\d+)(?:(?:[:,-]|-L|:L)(\d+))?")
_MOST_CHARACTERS = 100_000
_INSTRUCTIONS = ("AGENTS.md", "CLAUDE.md", ".rules")
_MOST_INSTRUCTIONS = 32_000

SYSTEM = """\
You are a coding agent inside the user's editor. Work in the folder {cwd}; paths are absolute or relative to it.
Use the tools to read before you change, change as little as the task needs, and say shortly what you did."""
PLAN = """\
You are in plan mode: read and think, then write a plan. You may write inside .helexa/plans only, and run nothing."""


def plain_text(blocks: list[Block]) -> str:
    """Return what the user typed."""
    return "\n".join(b.text for b in blocks if isinstance(b, TextContentBlock)).strip()


def compose(blocks: list[Block], files: dict[str, str]) -> tuple[Any, list[str]]:
    """Return the content for the model, text or parts, and the names of what it does not get.

    `files` holds the text of linked files by their URI.
    """
    texts: list[str] = []
    images: list[Any] = []
    dropped: list[str] = []
    for block in blocks:
        match block:
            case TextContentBlock():
                texts.append(block.text)
            case ImageContentBlock():
                images.append(
                    {"type": "image_url", "image_url": {"url": f"data:{block.mime_type};base64,{block.data}"}}
                )
            case ResourceContentBlock():
                texts.append(files.get(block.uri, f"[link {block.name}: {block.uri}]"))
            case EmbeddedResourceContentBlock(resource=BlobResourceContents() as blob):
                dropped.append(f"{blob.uri} ({blob.mime_type or 'binary'})")
            case EmbeddedResourceContentBlock():
                texts.append(_framed(block.resource.uri, getattr(block.resource, "text", "")))
            case AudioContentBlock():
                dropped.append(f"a recording ({block.mime_type})")
    texts += [f"[not sent: {name}; this agent passes on text and images]" for name in dropped]
    text = "\n\n".join(texts)
    return ([{"type": "text", "text": text}, *images] if images else text), dropped


async def read_links(blocks: list[Block], editor: Editor) -> dict[str, str]:
    """Return the text of every linked file by its URI; one that cannot be read says so."""
    files = {}
    for block in blocks:
        if isinstance(block, ResourceContentBlock) and block.uri.startswith("file://"):
            path, first, last = parse_link(block.uri)
            try:
                lines = (await editor.read(path)).splitlines(keepends=True)
                text = "".join(lines[first - 1 : last])
                files[block.uri] = _framed(block.uri, text)
            except EditorError as error:
                listing = await asyncio.to_thread(_folder, path)
                files[block.uri] = _framed(block.uri, listing) if listing else f"[{block.uri} cannot be read: {error}]"
    return files


def parse_link(uri: str) -> tuple[str, int, int | None]:
    """Return path, first and last line of a file link with or without #L3, #L3:9, #L3-9, #L3-L9."""
    parts = urlsplit(uri)
    found = _RANGE.fullmatch(parts.fragment)
    if not found:
        return unquote(parts.path), 1, None
    first = max(int(found[1]), 1)
    return unquote(parts.path), first, int(found[2]) if found[2] else first


def read_instructions(cwd: str) -> str:
    """Return what the project tells agents, each file once."""
    texts: dict[str, str] = {}
    for name in _INSTRUCTIONS:
        try:
            text = Path(cwd, name).read_text(encoding="utf-8", errors="replace")[:_MOST_INSTRUCTIONS]
        except OSError:
            continue  # most projects have one of them at most
        texts.setdefault(text, name)  # they are often links to each other
    return "\n\n".join(f"# {name}\n\n{text}" for text, name in texts.items())


def _folder(path: str) -> str:
    return "\n".join(sorted(p.name for p in Path(path).iterdir())) if Path(path).is_dir() else ""


def _framed(uri: str, text: str) -> str:
    cut = f"\n[{len(text) - _MOST_CHARACTERS} characters cut]" if len(text) > _MOST_CHARACTERS else ""
    return f'<resource uri="{uri}">\n{text[:_MOST_CHARACTERS]}{cut}\n</resource>'
