"""The torch side: pool, local updates, wire codecs, collective, aggregator."""
