"""Slow, delayed and lossy links between a benchmark's replicas: network namespaces, and their measurement."""
