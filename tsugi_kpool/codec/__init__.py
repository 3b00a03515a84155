"""The codes of a round in numpy: coding, headers, sums, shards and what their owners do. No torch, no sockets."""
