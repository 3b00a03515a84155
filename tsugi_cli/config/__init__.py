"""From the command line and conf/ to a checked, frozen RunSpec: Hydra, overrides, schema, rules."""
