"""Pure decisions and messages: no torch, no sockets, no clock, no random source."""
