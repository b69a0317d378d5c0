"""Prompts that a policy's chat template has rendered, read back as messages, so that a reward model can render them by its own.

How a template opens and closes a turn is seen from what it makes of a few messages of known content. A reading counts only if the template renders it to the same
text again; a prompt that it does not is an error, never a guess.
"""

from __future__ import annotations

from typing import Any

from rewardsmith.data.schema import Message
from rewardsmith.errors import DataError, SettingsError

_SYSTEM, _USER, _ASSISTANT, _LAST = (f"{one}7QZ4" for one in ("SYSTEM", "FIRST", "ANSWER", "LAST"))


class TemplateReader:
    """From a rendered prompt to its messages.

    Args:
        tokenizer: of the policy, with a chat template; kept, for it renders what is read.

    Raises:
        SettingsError: if it has no chat template, or one that leaves out or changes plain words.
    """

    def __init__(self, tokenizer: Any) -> None:
        """See how the template writes turns."""
        if not getattr(tokenizer, "chat_template", None):
            raise SettingsError(
                "a tokenizer with a chat template, to read rendered prompts", "one without", "Give `read_prompt`."
            )
        self.tokenizer = tokenizer
        turns = [_message("user", _USER), _message("assistant", _ASSISTANT), _message("user", _LAST)]
        head, self._to_assistant, self._to_user, self._tail = _around(self._render(turns), _USER, _ASSISTANT, _LAST)
        # (what stands before the first user turn, what stands between a system turn and it; None where there is none)
        self._heads: list[tuple[str, str | None]] = [(head, None)]
        try:
            with_system = self._render([_message("system", _SYSTEM), *turns])
            before, between, *_ = _around(with_system, _SYSTEM, _USER, _ASSISTANT, _LAST)
            self._heads.append((before, between))
        except SettingsError:
            pass  # templates without a system turn
        # The longer one first: it is either a system turn inside the user's, or one that the template writes where nobody gave any.
        self._heads.sort(key=lambda both: -len(both[0]))

    def __call__(self, text: str) -> list[Message]:
        """The messages of a rendered prompt.

        Raises:
            DataError: if the template does not render what was read to the same text.
        """
        for head, between in self._heads:
            messages = self._read(text, head, between)
            if messages is not None and self._renders_to(messages, text):
                return messages
        raise DataError(
            "a prompt as the policy's chat template renders it",
            repr(text if len(text) <= 60 else text[:57] + "..."),
            "Give `read_prompt`, a function from the rendered prompt to a text or messages.",
        )

    def _read(self, text: str, head: str, between: str | None) -> list[Message] | None:
        if not (text.startswith(head) and text.endswith(self._tail) and len(text) >= len(head) + len(self._tail)):
            return None
        rest = text[len(head) : len(text) - len(self._tail)]
        messages = []
        if between is not None:
            system, found, rest = rest.partition(between)
            if not found:
                return None
            messages.append(_message("system", system))
        while self._to_assistant in rest:
            asked, _, rest = rest.partition(self._to_assistant)
            answered, found, rest = rest.partition(self._to_user)
            if not found:
                return None
            messages += [_message("user", asked), _message("assistant", answered)]
        return [*messages, _message("user", rest)]

    def _renders_to(self, messages: list[Message], text: str) -> bool:
        try:
            return self._render(messages) == text
        except SettingsError:
            return False

    def _render(self, messages: list[Message]) -> str:
        try:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # a template raises jinja2's errors, with the author's own words
            raise SettingsError("a chat template that takes these roles", str(error), "Give `read_prompt`.") from error
        return str(text)


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _around(text: str, *marks: str) -> list[str]:
    """What stands before, between and after the marks."""
    parts: list[str] = []
    for mark in marks:
        before, found, text = text.partition(mark)
        if not found or (parts and not before):
            raise SettingsError(
                "a chat template that writes every turn, with something between turns", "another", "Give `read_prompt`."
            )
        parts.append(before)
    return [*parts, text]
