"""The hub without its sockets: who takes part, when a round fires, what counts, when a run ends."""
