"""The hub's side of the sideband: sockets, admission, priority queue, journal, replies."""
