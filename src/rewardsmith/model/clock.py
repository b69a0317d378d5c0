"""Chat templates that write today's date: found, and pinned to one day for a model, in every tool that renders them."""

from __future__ import annotations

import copy
import json
import re
from datetime import date, datetime, time

import jinja2
import jinja2.ext
import jinja2.meta
from transformers import PreTrainedTokenizerBase

from rewardsmith.errors import ModelError

# The one way to the clock that transformers gives a chat template, and the first words of a template that we took it from.
_CLOCK = "strftime_now"
_PINNED = re.compile(r"\{# date pinned by rewardsmith: (\d{4}-\d\d-\d\d) #\}")


def pinned_date(tokenizer: PreTrainedTokenizerBase, today: date) -> str | None:
    """The date for a spec that is made today: None where the chat template (if any) does not ask for the clock.

    A template that was pinned before keeps its date: a reward model that goes on must read what it has read.

    >>> pinned_date(tokenizer, datetime.date(2026, 3, 1))  # doctest: +SKIP
    '2026-03-01'

    Raises:
        ModelError: if the chat template cannot be parsed.
    """
    if not tokenizer.chat_template:
        return None
    template = tokenizer.get_chat_template()
    if pinned := _PINNED.match(template):
        return pinned[1]
    return today.isoformat() if _reads_clock(template) else None


def is_day(text: str) -> bool:
    """Whether a text is a day as YYYY-MM-DD."""
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


class _GenerationBlock(jinja2.ext.Extension):
    """`{% generation %}`, with which some templates mark what the assistant wrote; here it only has to parse."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        """The statements inside."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _parsed(template: str) -> jinja2.nodes.Template:
    """A chat template's syntax tree, by the rules under which transformers compiles it."""
    environment = jinja2.Environment(extensions=[_GenerationBlock, "jinja2.ext.loopcontrols"])
    try:
        return environment.parse(template)
    except jinja2.TemplateSyntaxError as error:
        raise ModelError(
            "a chat template that can be parsed",
            f"{error} in line {error.lineno}",
            'Mend it, or set encoding = "text".',
        ) from error


def _reads_clock(template: str) -> bool:
    """Whether a template can ask for the time: the name is looked up and the template does not define it itself."""
    return _CLOCK in template and _CLOCK in jinja2.meta.find_undeclared_variables(_parsed(template))


def _pin(template: str, day: str) -> str:
    """A template that writes `day` wherever it would write today's date, in every tool that renders it.

    The clock is replaced inside the template, by a macro of its name: what is passed from outside as a function does not reach a template in
    transformers 5.23, and nothing passed by us would reach a template that another tool renders.
    """
    moment = datetime.combine(date.fromisoformat(day), time())
    words = [node.value for node in _parsed(template).find_all(jinja2.nodes.Const) if isinstance(node.value, str)]
    codes = sorted({code for word in words for code in re.findall(r"%-?[A-Za-z]", word)})
    # json's strings are jinja's, too.
    steps = "".join(f".replace({json.dumps(code)}, {json.dumps(moment.strftime(code))})" for code in codes)
    # One line, whose end `trim_blocks` takes away: the template below begins as it began.
    head = f"{{# date pinned by rewardsmith: {day} #}}"
    return f"{head}{{% macro {_CLOCK}(format) %}}{{{{ format{steps} }}}}{{% endmacro %}}\n{template}"


def with_pinned_clock(tokenizer: PreTrainedTokenizerBase, day: str | None) -> PreTrainedTokenizerBase:
    """The tokenizer, or a copy whose chat template has its date pinned; what is saved with a model is the copy."""
    template = tokenizer.get_chat_template()
    if pinned := _PINNED.match(template):
        if pinned[1] != day:
            raise ModelError(
                f"the date {pinned[1]}, to which this chat template is pinned",
                f"a spec that says {day}",
                "Take the chat template and the contract of one model folder.",
            )
        return tokenizer
    if not _reads_clock(template):
        return tokenizer
    if day is None:
        raise ModelError(
            "a pinned date, because this chat template writes today's date into every text",
            "a spec without one: scores would change from day to day",
            "Train or import the model again: that pins and stores a date.",
        )
    pinned_tokenizer, named = copy.copy(tokenizer), tokenizer.chat_template
    template = _pin(template, day)
    pinned_tokenizer.chat_template = {**named, "default": template} if isinstance(named, dict) else template
    return pinned_tokenizer
