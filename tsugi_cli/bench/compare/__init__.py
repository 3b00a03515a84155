"""`tsugi bench`: the same workload by several methods in real processes, and the report on them."""
