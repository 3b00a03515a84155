"""One small file for each peer: `train(run)` is its training loop, written as its own documentation shows it."""
