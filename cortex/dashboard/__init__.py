"""The page at `GET /`: the fleet live, for people."""
