"""Conversations between the hub and its replicas, to be read and to be replayed: docs/transcripts.md says how."""
