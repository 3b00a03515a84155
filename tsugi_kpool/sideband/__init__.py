"""The phase-correction sideband over ZeroMQ: link, hub, observer, keys."""
