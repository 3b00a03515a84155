"""The codec of messages: a byte of schema version and a MessagePack map with a type tag. Nothing is unpickled."""

from __future__ import annotations

import msgspec

from .frame import MAX_FRAME_BYTES, SCHEMA_VERSION, BadFrame, Message
from .from_hub import (
    Abort,
    Ack,
    Check,
    Commit,
    Compare,
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
    AdapterOffer,
    AdapterSettled,
    CheckpointOffer,
    CheckpointSettled,
    DataPart,
    DataRequest,
    Fell,
    FleetStatus,
    Slot,
    SlotRequest,
    StatusRequest,
    StopRequest,
    StopRun,
)
from .from_replica import (
    Beat,
    Broken,
    Bye,
    Checked,
    Compared,
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
    Unreached,
    Vitals,
)

Frame = (
    Hello | Beat | Vitals | Stamps | Reduced | Broken | Discarded | Failed | LeaseRequest | Evaluated | Saved | Bye
    | StorePut | StoreGet | Ack | Refused | Generation | Fire | Commit | Abort | Lease | StoreValue | Drain | Refill
    | Finish | StatusRequest | FleetStatus | SlotRequest | Slot | StopRequest | StopRun | Fell | NotTaken
    | Figures | Totals | StopFleet | Check | Checked | DataRequest | DataPart | AdapterOffer
    | AdapterSettled | Unreached | CheckpointOffer | CheckpointSettled | Compare | Compared
)  # fmt: skip
_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Frame] = msgspec.msgpack.Decoder(Frame)


def encode(message: Message) -> bytes:
    """Turn a message into a frame.

    Raises:
        BadFrame: the message does not fit into MAX_FRAME_BYTES.
    """
    frame = bytes([SCHEMA_VERSION]) + _encoder.encode(message)
    if len(frame) > MAX_FRAME_BYTES:
        raise BadFrame(f"{type(message).__name__} takes {len(frame)} bytes, at most {MAX_FRAME_BYTES}")
    return frame


def decode(frame: bytes) -> Frame:
    """Turn a frame into a message.

    Raises:
        BadFrame: whatever is wrong with it. Besides DecodeError, msgspec lets UnicodeDecodeError (a ValueError)
            and RecursionError out of hostile input.
    """
    if not 2 <= len(frame) <= MAX_FRAME_BYTES:
        raise BadFrame(f"frame of {len(frame)} bytes")
    if frame[0] != SCHEMA_VERSION:
        raise BadFrame(f"schema version {frame[0]}, expected {SCHEMA_VERSION}")
    try:
        return _decoder.decode(frame[1:])
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BadFrame(str(error)) from error
