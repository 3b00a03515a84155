"""The torch side of a replica: pool, update rules, collective, aggregator."""
