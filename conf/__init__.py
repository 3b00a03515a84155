"""Configuration groups: one folder for each, one YAML file for each choice."""
