"""Which part of a reply is the answer."""

from __future__ import annotations

import re
from typing import Literal

ExtractMode = Literal["all", "last_number", "last_line", "answer_tag"]

# A sign counts only where no value stands before it: "8-6" ends in 6, "= -6" in -6. Thousands may have commas.
_NUMBER = re.compile(
    r"(?:(?<![\w.)\]])[-+\u2212])?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?|(?<!\d)\.\d+"
)
_ANSWER_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def extract_answer(reply: str, mode: ExtractMode) -> str | None:
    """The answer without surrounding space, or None when the reply has none of that kind.

    `last_number` comes back without thousands separators; of several <answer> tags the last one counts."""
    match mode:
        case "all":
            return reply.strip() or None
        case "last_line":
            return next((line.strip() for line in reversed(reply.splitlines()) if line.strip()), None)
        case "last_number":
            numbers = _NUMBER.findall(reply)
            return numbers[-1].replace(",", "").replace("\u2212", "-") if numbers else None
        case "answer_tag":
            tags = _ANSWER_TAG.findall(reply)
            return tags[-1].strip() if tags else None


def to_number(text: str | None) -> float | None:
    """The value of a text that is one number, else None."""
    text = (text or "").strip().replace("\u2212", "-")
    match = _NUMBER.fullmatch(text)
    return float(text.replace(",", "")) if match else None
