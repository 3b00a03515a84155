"""HTML pages that need no network: pieces that several commands share, and the report of runs."""
