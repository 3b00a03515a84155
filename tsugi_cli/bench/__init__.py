"""`tsugi bench`: the same workload by several methods, on the same fleet, under the same scenario."""
