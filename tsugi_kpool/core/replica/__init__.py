"""A replica's decisions, without tensors and sockets: stages of a round, ledger, outbox, heartbeats, clock offset."""
