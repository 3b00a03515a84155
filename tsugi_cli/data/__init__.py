"""Data: from whatever a user has to token ids that are known to be right, once, before any replica starts."""
