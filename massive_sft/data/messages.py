"""A conversation as it stands in a record: roles, texts, which answers are trained; what would be lost is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from massive_sft.core.errors import UNSET

MISSING: Any = object()
# Where format `messages` looks when no column is named: LIMA and ShareGPT files say `conversations`.
MESSAGE_COLUMNS = ("messages", "conversations")
SYSTEM_COLUMN = "system"
"""A column beside the messages that holds the system message, as LLaMA-Factory's files have it."""
ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
# Columns beside the messages that belong to what the model is to learn; every other one is about the row.
_UNSUPPORTED_COLUMNS = ("tools", "functions", "system_prompt", "images", "image", "audios", "audio", "videos", "video")
# Keys of a message that are about it and no part of it.
_ABOUT = {
    *("id", "message_id", "parent_id", "uuid", "index", "turn", "turn_id", "turn_identifier", "timestamp", "date"),
    *("created_at", "updated_at", "create_time", "update_time", "lang", "language", "country", "state", "header"),
    *("hashed_ip", "model", "source", "url", "markdown", "hash", "tokens", "num_tokens", "token_count", "length"),
    *("score", "rank", "rating", "labels", "toxic", "toxicity", "redacted", "moderation", "openai_moderation"),
}
_FORMS = (("role", "content"), ("from", "value"))
_TRAINS = ("weight", "train")


class BadRecord(NamedTuple):
    kind: str
    rule: str
    value: Any = UNSET


class Message(NamedTuple):
    """One message: ``role`` is system, user or assistant."""

    role: str
    text: str
    trained: bool


@dataclass
class Conversation:
    """``untrained``: the turns whose answer is not trained, counted from 0. Without turns, ``faults`` say why."""

    turns: list[tuple[str, str]] = field(default_factory=list)
    system: str | None = None
    untrained: tuple[int, ...] = ()


Text = Callable[[Any, str, list[BadRecord]], str | None]


def read_conversation(messages: Any, first: bool, text: Text, faults: list[BadRecord]) -> Conversation:
    """Return the turns of a list of messages; ``first``: only the first of them.

    A message is an object with role and content, or with from and value, or a text in turn. ``text`` returns a
    message's text or notes a fault. An answer with ``weight: 0`` or ``train: false`` is not trained.
    """
    parsed = _read_messages(messages, text, faults)
    found = Conversation()
    if parsed and parsed[0].role == "system":
        found.system, parsed = parsed[0].text, parsed[1:]
    if first:
        parsed = parsed[:2]
    roles = [message.role for message in parsed]
    if not faults and (not parsed or roles != ["user", "assistant"] * (len(parsed) // 2)):
        rule = "must be an optional system message, then user and assistant in turns, ending with the assistant"
        faults.append(BadRecord("conversations out of turn", rule, roles))
    if faults:
        return found
    found.turns = [(parsed[index].text, parsed[index + 1].text) for index in range(0, len(parsed), 2)]
    found.untrained = tuple(turn for turn, answer in enumerate(parsed[1::2]) if not answer.trained)
    if len(found.untrained) == len(found.turns):
        faults.append(BadRecord("nothing to train", "has no answer to train: each has weight 0 or train false"))
    return found


def lost_columns(record: Any) -> list[BadRecord]:
    """Return a fault for each column beside the messages that a model would have to see and that is not supported."""
    if not isinstance(record, Mapping):
        return []
    rule = "has a column {} beside its messages, which is not supported; take it out of the file"
    return [
        BadRecord("unsupported columns", rule.format(column), record[column])
        for column in _UNSUPPORTED_COLUMNS
        if not _empty(record.get(column))
    ]


def _read_messages(messages: Any, text: Text, faults: list[BadRecord]) -> list[Message]:
    if not isinstance(messages, list):
        faults.append(BadRecord("messages that are no list", "messages must be a list", messages))
        return []
    parsed: list[Message] = []
    for number, message in enumerate(messages):
        read = _read_message(message, number, text, faults)
        if read is None:
            return []
        parsed.append(read)
    return parsed


def _read_message(message: Any, number: int, text: Text, faults: list[BadRecord]) -> Message | None:
    """Return one message, or None with what is wrong in ``faults``."""
    role, content = _role_and_content(message, number)
    if role is MISSING:
        rule = f"message {number} must be text, or an object with role and content or with from and value"
        faults.append(BadRecord("unreadable messages", rule, message))
        return None
    if not isinstance(role, str) or role not in ROLES:
        rule = f"message {number} must have a known role ({', '.join(ROLES)})"
        faults.append(BadRecord("unknown roles", rule, role))
        return None
    keys = message if isinstance(message, dict) else {}
    lost = _lost_keys(keys)
    if lost:
        rule = f"message {number} has {', '.join(lost)}, which is not supported; take it out of the file"
        faults.append(BadRecord("message keys that would be lost", rule, keys[lost[0]]))
        return None
    if isinstance(content, (list, dict)):
        rule = f"message {number} must be one text: content in parts is not supported"
        faults.append(BadRecord("content in parts", rule, content))
        return None
    trained = _trained(keys, ROLES[role], number, faults)
    words = text(content, f"message {number}", faults)
    return None if words is None or trained is None else Message(ROLES[role], words, trained)


def _role_and_content(message: Any, number: int) -> tuple[Any, Any]:
    """Return one message's role and content, ``MISSING`` for what is in none of the known forms."""
    if isinstance(message, str):
        return ("user", "assistant")[number % 2], message
    for role, content in _FORMS:
        if isinstance(message, dict) and role in message:
            return message[role], message.get(content)
    return MISSING, MISSING


def _lost_keys(message: Mapping[str, Any]) -> list[str]:
    """Return the keys that say something and are neither read nor known to be only about the message."""
    read = next((form for form in _FORMS if form[0] in message), ())
    known = {*read, *_TRAINS, *_ABOUT}
    return [str(key) for key, value in message.items() if key not in known and not _empty(value)]


def _empty(value: Any) -> bool:
    """Whether a value says nothing: Parquet files have every key in every message."""
    return value is None or (isinstance(value, (str, list, dict)) and len(value) == 0)


def _trained(message: Mapping[str, Any], role: str, number: int, faults: list[BadRecord]) -> bool | None:
    """Return whether an answer is trained; None for a value that cannot be followed. Requirements never are."""
    given = {key: message[key] for key in _TRAINS if message.get(key) is not None}
    wrong = {key: value for key, value in given.items() if value not in (0, 1)}
    if role != "assistant":
        wrong = {key: value for key, value in given.items() if value != 0}
    for key, value in wrong.items():
        rule = "must be 0 or 1" if role == "assistant" else "must be 0 or left out: only answers are trained"
        faults.append(BadRecord("weights of messages", f"message {number}: {key} {rule}", value))
    return None if wrong else all(given.values())
