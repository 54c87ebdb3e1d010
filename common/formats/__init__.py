"""How models write reasoning and tool calls as text; each format one pure file, chosen by the chat template."""
