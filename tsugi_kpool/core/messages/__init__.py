"""The messages of the sideband, as small frozen structs; one frame holds one message.

A frame is one byte of schema version and a MessagePack map with a type tag. Nothing is ever unpickled. Each message
says who sends it, who reads it, and whether it may be lost. There are two ways not to be lost. A replica's message
has a number (``seq``) and is sent again until it is acknowledged. The hub's order is repeated to every member whose
beats show that it has not acted on it. To handle a message twice changes nothing. Import messages from here; they are
defined in `from_replica`, `from_hub` and `from_outside`, by who sends them.
"""

from __future__ import annotations

from .codec import Frame, decode, encode
from .frame import MAX_FRAME_BYTES, SCHEMA_VERSION, BadFrame, Message
from .from_hub import (
    BEAT_SEQ,
    Abort,
    Ack,
    Commit,
    Drain,
    Finish,
    Fire,
    Generation,
    Lease,
    NotTaken,
    Refill,
    Refused,
    Stamps,
    StoreValue,
    Totals,
)
from .from_outside import (
    DataPart,
    DataRequest,
    Fell,
    FleetStatus,
    ReplicaStatus,
    Slot,
    SlotRequest,
    Slowness,
    StatusRequest,
    StopRequest,
    StopRun,
)
from .from_replica import (
    AdapterFacts,
    Beat,
    Broken,
    Bye,
    Discarded,
    Evaluated,
    Failed,
    Figures,
    Hello,
    LeaseRequest,
    Reduced,
    Saved,
    StopFleet,
    StoreGet,
    StorePut,
    Vitals,
)

__all__ = [
    "BEAT_SEQ",
    "MAX_FRAME_BYTES",
    "SCHEMA_VERSION",
    "Abort",
    "Ack",
    "AdapterFacts",
    "BadFrame",
    "Beat",
    "Broken",
    "Bye",
    "Commit",
    "DataPart",
    "DataRequest",
    "Discarded",
    "Drain",
    "Evaluated",
    "Failed",
    "Fell",
    "Figures",
    "Finish",
    "Fire",
    "FleetStatus",
    "Frame",
    "Generation",
    "Hello",
    "Lease",
    "LeaseRequest",
    "Message",
    "NotTaken",
    "Reduced",
    "Refill",
    "Refused",
    "ReplicaStatus",
    "Saved",
    "Slot",
    "SlotRequest",
    "Slowness",
    "Stamps",
    "StatusRequest",
    "StopFleet",
    "StopRequest",
    "StopRun",
    "StoreGet",
    "StorePut",
    "StoreValue",
    "Totals",
    "Vitals",
    "decode",
    "encode",
]
