"""What a replica decides without tensors and sockets: stages of a round, books, outbox, heartbeats, clock offset."""
