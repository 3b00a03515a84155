"""Example fine-tuning recipes that ship with Tsugi."""
