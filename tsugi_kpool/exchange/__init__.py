"""The exchange: a data plane in which every replica only connects outwards, to a process beside the hub. No torch."""
