"""A run's records: the run directory, its JSON lines, and sinks such as Prometheus and trackers."""
