"""What a run leaves on disk and tells other programs: the run directory, its JSON lines, Prometheus."""
