"""The launcher: starts a run and looks after it (plan, hub, torchrun agents, restarts, checkpoints, resume, join)."""
