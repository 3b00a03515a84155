"""Stragglers: how fast each replica is against the fleet, since when one is slow, and why."""
