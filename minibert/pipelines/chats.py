"""Chats: lists of messages, dicts of `role` and `content`."""

from collections.abc import Mapping, Sequence
from typing import Any

from minibert.core.checks import flag
from minibert.errors import InputError, shown

Message = Mapping[str, Any]


def is_message(value: object) -> bool:
    """Returns whether a value is a message of a chat."""
    return isinstance(value, Mapping) and {"role", "content"} <= value.keys()


def check_chat(messages: Sequence[object]) -> None:
    """Raises an `InputError` unless all elements are messages, and there is one."""
    expected = 'a text, or a chat, a list of messages {"role": "user", "content": "…"}'
    if not messages:
        raise InputError(f"expected {expected}; found an empty list")
    for message in messages:
        if not is_message(message):
            raise InputError(f"expected {expected}; found {shown(message)}")


def continues(messages: Sequence[Message], continue_final_message: bool | None) -> bool:
    """Returns whether the last message is continued: by default if it is the assistant's.

    Raises:
        InputError: if it is, and its content is not a text.
    """
    last, found = messages[-1], continue_final_message
    found = last["role"] == "assistant" if found is None else flag("continue_final_message", found)
    if found and not isinstance(last["content"], str):
        raise InputError(
            f"continue_final_message: expected a text to continue, found {shown(last['content'])}"
        )
    return found


def answered(
    messages: Sequence[Message], text: str, continue_final_message: bool | None
) -> list[Message]:
    """Returns a chat with generated text: as one more message, or in its last one."""
    if not continues(messages, continue_final_message):
        return [*messages, {"role": "assistant", "content": text}]
    *before, last = messages
    return [*before, {"role": last["role"], "content": last["content"] + text}]
