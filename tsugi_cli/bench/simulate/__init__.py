"""`tsugi bench --simulate`: fleets of any size in virtual time."""
