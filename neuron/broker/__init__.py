"""Jobs of the bus: their book and admission (pure), and the sockets (shell)."""
