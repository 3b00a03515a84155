"""The torch side of a replica: pool, update rules, wire codecs, collective, aggregator."""
