"""The sideband, the control channel over ZeroMQ: link, hub, observer, keys."""
