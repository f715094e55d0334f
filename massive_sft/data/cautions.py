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
    """Tell of mixtures of which the maximum length cuts, or leaves out, more than ``MUCH_TRUNCATED`` of the samples.

    Args:
        totals: the counts of whole mixtures under the setting.
        place: of the setting's maximum length in the sweep file.
        model: whose tokens are counted, as the file names it.
    """
    drops = setting.truncation == "drop"
    shares = [(total.dropped if drops else total.truncated, total) for total in totals]
    much = [(count, total) for count, total in shares if count > MUCH_TRUNCATED * total.drawn]
    if much:
        much.sort(key=lambda pair: pair[0] / pair[1].drawn, reverse=True)
        named = ", ".join(f"{count:,} of {total.drawn:,} samples of {total.name}" for count, total in much[:NAMED])
        more = f" and of {len(much) - NAMED} mixtures more" if len(much) > NAMED else ""
        verb = "leaves out" if drops else "cuts text off"
        cut = " (before its answer, and the end of an answer that is longer by itself)"
        rule = (
            f"{verb} {named}{more}{cut if setting.truncation == 'left' else ''}, counted in tokens of {model}, of "
            f"which the longest has {max(total.longest for _, total in much):,}; raise it"
        )
        yield Problem(
            place, rule if drops else f"{rule}, or leave such samples out (truncation: drop)", setting.max_length
        )


def clock(tokenizer: PreTrainedTokenizerFast, place: str) -> Iterator[Problem]:
    """Tell of a chat template that asks for the date or the time. ``place``: of the model in the sweep file."""
    try:
        reads = Chat(tokenizer, place).reads_the_clock
    except (InvalidInput, RenderError):  # told where it is used
        return
    if reads:
        rule = "has a chat template that reads the clock; in training and scoring it is told "
        yield Problem(place, f"{rule}{FROZEN:%d %B %Y, %H:%M} on every day")
