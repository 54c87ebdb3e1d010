"""The gateway's view of the neurons: links, state, routing, and the client that runs jobs."""
