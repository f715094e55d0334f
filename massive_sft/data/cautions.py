"""What a user should know of training text that stands, but may not be what was meant."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.data.chat import FROZEN, Chat, RenderError
from massive_sft.data.mixture import PartCounts
from massive_sft.ledger.record_warnings import MUCH_TRUNCATED
from massive_sft.sweep.schema import Setting, TemplateText
from massive_sft.sweep.template import CHAT

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

NAMED = 3  # mixtures named in one warning


def joined(setting: Setting, parts: Iterable[PartCounts], place: str, model: str) -> Iterator[Problem]:
    """Tell of parts in which a token holds the end of a prompt and the beginning of its answer (``data.encoding``).

    A generation prompt ends before such a token, so a model is asked what it was not trained on. It answers all the
    same, from what other samples taught it: nothing is refused.

    Args:
        place: of the setting's template in the sweep file.
        model: whose tokenizer it is, as the file names it.
    """
    form = setting.template
    found = []
    for part in parts:
        if part.first_joined is not None:
            row, token = part.first_joined
            found.append(f"{part.joined:,} of {part.samples:,} samples of {part.name} (row {row}: {token!r})")
    if found:
        remedy = "take white space off the answers" if form == CHAT else "let the template end in a space or a new line"
        rule = f"lets the tokenizer of {model} make one token of a prompt's end and its answer's beginning, which no "
        rule += f"generation prompt can hold, in {', '.join(found)}; {remedy}"
        yield Problem(place, rule, form.prompt if isinstance(form, TemplateText) else form)


def truncated(setting: Setting, totals: Iterable[PartCounts], place: str, model: str) -> Iterator[Problem]:
    """Tell of mixtures of which more than ``MUCH_TRUNCATED`` of the samples lose text to the maximum length.

    Args:
        totals: the counts of whole mixtures under the setting.
        place: of the setting's maximum length in the sweep file.
        model: whose tokens are counted, as the file names it.
    """
    cut = [total for total in totals if total.truncated > MUCH_TRUNCATED * total.samples]
    if cut:
        cut.sort(key=lambda total: total.truncated / total.samples, reverse=True)
        named = ", ".join(f"{one.truncated:,} of {one.samples:,} samples of {one.name}" for one in cut[:NAMED])
        more = f" and of {len(cut) - NAMED} mixtures more" if len(cut) > NAMED else ""
        rule = f"cuts text off {named}{more}, counted in tokens of {model}, of which the longest has "
        rule += f"{max(one.longest for one in cut):,}; raise it, or leave such samples out (truncation: drop)"
        yield Problem(place, rule, setting.max_length)


def clock(tokenizer: PreTrainedTokenizerFast, place: str) -> Iterator[Problem]:
    """Tell of a chat template that asks for the date or the time. ``place``: of the model in the sweep file."""
    try:
        reads = Chat(tokenizer, place).reads_the_clock
    except (InvalidInput, RenderError):  # told where it is used
        return
    if reads:
        rule = "has a chat template that reads the clock; in training and scoring it is told "
        yield Problem(place, f"{rule}{FROZEN:%d %B %Y, %H:%M} on every day")
