"""The launcher: Typer commands, Hydra composition, torchrun agents, the console."""
