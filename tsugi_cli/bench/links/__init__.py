"""Slow, late and lossy links between a benchmark's replicas: network namespaces, and what is measured of them."""
