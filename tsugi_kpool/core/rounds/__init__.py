"""When a round fires, which adapters it ships, how much work goes into it: trigger, noise, selection, link cost."""
