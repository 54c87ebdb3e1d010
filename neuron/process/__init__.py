"""The only place with fork, kill and waitpid."""
