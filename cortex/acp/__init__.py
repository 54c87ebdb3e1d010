"""The editor's agent: Agent Client Protocol on stdio, talking to any OpenAI-compatible endpoint."""
