"""Starting a run and looking after it: plan, hub, torchrun agents, restarts, checkpoints, resume, join."""
