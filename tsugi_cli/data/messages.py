"""Messages as people write them: OpenAI's, ShareGPT's, with parts, tools and calls; checked, and made one kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .jsontext import parsed
from .rows import Message, Row, RowError

ROLES = {
    "system": "system", "developer": "system", "user": "user", "human": "user", "assistant": "assistant",
    "gpt": "assistant", "chatgpt": "assistant", "model": "assistant", "bot": "assistant", "tool": "tool",
    "function": "tool", "observation": "tool", "function_call": "assistant",
}  # fmt: skip
"""Whatever they are called: OpenAI's `developer` is what templates know as the system turn."""
NAMED = ("system", "user", "assistant", "tool")
_OF_USE = """
    role from content value name tool_calls function_call tool_call_id
    reasoning_content reasoning thinking weight train
"""
USED = frozenset(_OF_USE.split())
HARMLESS = frozenset(("id", "timestamp", "created_at"))
SAME = (("role", "from"), ("content", "value"), ("reasoning_content", "reasoning", "thinking"))
"""Names of one thing: whoever gives two of them must mean the same."""
CALL = frozenset(("id", "type", "index", "function"))
FUNCTION = frozenset(("name", "arguments", "parameters"))
Marks = tuple[bool | None, ...]
Tools = tuple[dict[str, Any], ...]


def conversation(messages: Any, key: str) -> tuple[tuple[Message, ...], Marks]:
    """Messages as a chat template takes them, and for each what its user said about training on it.

    Raises:
        RowError: something is missing, of another kind, or would be lost.
    """
    if isinstance(messages, str):
        messages = _json(messages, key)
    if not isinstance(messages, list) or not messages:
        raise RowError(f"{key} must be a list with at least one message")
    made = [_message(each) for each in messages]
    if made[-1][0]["role"] != "assistant":
        raise RowError("the last message must be the assistant's: nothing else is trained on")
    return tuple(message for message, _ in made), tuple(mark for _, mark in made)


def system_turn(text: Any, messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """The same conversation with a system turn of its own.

    Raises:
        RowError: it has one.
    """
    if messages and messages[0]["role"] == "system":
        raise RowError('"system" stands beside messages that begin with a system turn: keep one of them')
    return ({"role": "system", "content": text_of(text, '"system"')}, *messages)


def row_of(messages: tuple[Message, ...], trained: Marks, record: Mapping[str, Any]) -> Row:
    """A row of these messages, with the system turn and the tools that stand beside them in a record.

    Raises:
        RowError: they do not go together.
    """
    if record.get("system"):
        messages, trained = system_turn(record["system"], messages), (None, *trained)
    tools = checked_tools(record.get("tools"), record.get("functions"))
    return Row("", 0, messages, trained, tools)


def text_of(value: Any, key: str) -> str:
    """A text.

    Raises:
        RowError: it is none.
    """
    if not isinstance(value, str):
        raise RowError(f"{key} must be a text, found {type(value).__name__}")
    return value


def checked_tools(tools: Any, functions: Any = None) -> Tools | None:
    """Functions' schemas as templates take them; None where there are none.

    Raises:
        RowError: they are no list of objects.
    """
    if isinstance(tools, str) and tools.strip():
        tools = _json(tools, '"tools"')
    if functions:
        if tools:
            raise RowError('"functions" and "tools" are the same thing: keep one of them')
        tools = [{"type": "function", "function": each} for each in functions] if isinstance(functions, list) else 0
    if not tools and tools != 0:
        return None
    if not isinstance(tools, list) or not all(isinstance(each, dict) for each in tools):
        raise RowError('"tools" must be a list of functions\' schemas')
    return tuple(each if "function" in each else _schema(each) for each in tools)


def _schema(bare: dict[str, Any]) -> dict[str, Any]:
    """A function's schema that stands by itself, in its usual shell."""
    return {"type": "function", "function": {key: value for key, value in bare.items() if key != "type"}}


def is_empty(value: Any) -> bool:
    """Whether nothing is lost with this value."""
    return value is None or (isinstance(value, str | list | dict) and not value)


def _message(given: Any) -> tuple[Message, bool | None]:
    if not isinstance(given, dict):
        raise RowError(f'every message must be an object with "role" and "content", found {type(given).__name__}')
    given = {key: value for key, value in given.items() if value is not None}
    _check_used(given)
    role, called = _role(given)
    made: Message = {"role": role, "content": _content(given)}
    thought = _one_of(given, SAME[2])
    if thought:
        made["reasoning_content"] = text_of(thought, '"reasoning_content"')
    if calls := _all_calls(given, made["content"] if called else None):
        made["tool_calls"] = calls
        made["content"] = "" if called else made["content"]
    made |= {key: given[key] for key in ("name", "tool_call_id") if key in given}
    mark = _mark(given)
    if role == "assistant" and not made["content"].strip() and "tool_calls" not in made and mark is not False:
        raise RowError("the assistant's answer is empty: only the end of its turn would be trained")
    return made, mark


def _check_used(given: Mapping[str, Any]) -> None:
    left = [key for key in given if key not in USED and key not in HARMLESS and not is_empty(given[key])]
    if left:
        raise RowError(
            f'"{left[0]}" of a message would be lost: used are {", ".join(sorted(USED))}; leave it out with '
            f"data.ignore=[{left[0]}]"
        )


def _one_of(given: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    """What these names of one thing say.

    Raises:
        RowError: they say different things.
    """
    there = [name for name in names if name in given]
    said = [name for name in there if not is_empty(given[name])] if len(there) > 1 else there
    if len(said) > 1 and any(given[name] != given[said[0]] for name in said):
        raise RowError(f'"{said[0]}" and "{said[1]}" of a message say different things: keep one of them')
    return given[(said or there)[0]] if there else None


def _role(given: Mapping[str, Any]) -> tuple[str, bool]:
    """The role, and whether the turn is a call."""
    role = _one_of(given, SAME[0])
    if not isinstance(role, str) or role not in ROLES:
        found = repr(role)[:200] if isinstance(role, str) or role is None else f"of type {type(role).__name__}"
        raise RowError(f"role {found} is not one of {', '.join(NAMED)}")
    return ROLES[role], role == "function_call"


def _content(given: Mapping[str, Any]) -> str:
    """The text; parts of a text are put together."""
    content = _one_of(given, SAME[1])
    if content is None and (given.get("tool_calls") or given.get("function_call")):
        return ""
    if isinstance(content, list):
        return "".join(_part(each) for each in content)
    if not isinstance(content, str):
        raise RowError('every message needs "role" and a text as "content"')
    return content


def _part(part: Any) -> str:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    raise RowError(
        f"a part of a message is {str(kind)[:50]!r}: parts of text are read, images and sounds are not offered"
    )


def _all_calls(given: Mapping[str, Any], turn: str | None) -> list[dict[str, Any]]:
    """Calls of functions, wherever they stand.

    Args:
        given: The message.
        turn: The text of a turn that is a call itself, as ShareGPT writes it.
    """
    if given.get("tool_calls") and given.get("function_call"):
        raise RowError('"tool_calls" and "function_call" of a message are the same thing: keep one of them')
    calls = given.get("tool_calls") or given.get("function_call") or []
    if turn is not None:
        if calls:
            raise RowError("a turn that is a call has calls beside it: keep one of them")
        calls = _json(turn, "a call")
    calls = _json(calls, '"tool_calls"') if isinstance(calls, str) else calls
    calls = [calls] if isinstance(calls, dict) else calls
    if not isinstance(calls, list):
        raise RowError('"tool_calls" must be a list of calls')
    return [_call(each) for each in calls]


def _call(call: Any) -> dict[str, Any]:
    """A call with its arguments as an object: as a text, templates would write them in quotes."""
    inner = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
        raise RowError('a call needs a "function" with "name" and "arguments"')
    _check_call(call, inner)
    arguments = _one_of(inner, ("arguments", "parameters"))
    if isinstance(arguments, str):
        arguments = _json(arguments or "{}", f'"arguments" of {inner["name"]}')
    if arguments is not None and not isinstance(arguments, dict):
        raise RowError(f'"arguments" of {inner["name"]} must be an object, found {type(arguments).__name__}')
    made: dict[str, Any] = {"type": "function", "function": {"name": inner["name"], "arguments": arguments or {}}}
    return {"id": call["id"], **made} if call.get("id") is not None else made


def _check_call(call: Mapping[str, Any], inner: Mapping[str, Any]) -> None:
    """Nothing of a call is lost, and it is one of a function."""
    used = CALL | FUNCTION if inner is call else CALL
    left = [key for key in call if key not in used and not is_empty(call[key])]
    left += [key for key in inner if inner is not call and key not in FUNCTION and not is_empty(inner[key])]
    if left:
        raise RowError(f'"{left[0]}" of a call would be lost; leave it out with data.ignore=[{left[0]}]')
    if call.get("type", "function") not in ("function", None):
        raise RowError(f"a call is of type {call['type']!r:.50}: only those of functions are read")


def _mark(given: Mapping[str, Any]) -> bool | None:
    """`train` (axolotl) and `weight` (OpenAI): whether a message is trained on."""
    found = [given[key] for key in ("train", "weight") if key in given]
    if not found:
        return None
    for key, allowed in (("train", (True, False)), ("weight", (0, 1))):
        if key in given and given[key] not in allowed:
            raise RowError(f'"{key}" of a message must be {" or ".join(map(str, allowed))}, found {given[key]!r:.50}')
    if len({bool(each) for each in found}) > 1:
        raise RowError('"train" and "weight" of a message contradict each other')
    return bool(found[0])


def _json(text: Any, what: str) -> Any:
    found = parsed(text) if isinstance(text, str) else RowError("")
    if isinstance(found, RowError):
        raise RowError(f"{what} is a text that is not JSON: {str(text)[:40]!r}; {found}".rstrip("; "))
    return found
