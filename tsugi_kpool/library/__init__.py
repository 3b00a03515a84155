"""The library: the pool in a training loop that the user wrote. The package's public names come from here."""
