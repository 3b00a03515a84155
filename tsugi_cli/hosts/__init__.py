"""Other machines: who starts them, which part each has, and how they get the run's key."""
