"""What the model will see: samples as text with the trained tokens marked, for people to read."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Column, Table
from rich.text import Text

from massive_sft.data.mixture import Counts, PartCounts
from massive_sft.data.samples import Samples

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Trained text stands between these marks, so that it can be told apart without colour.
OPEN, CLOSE = "⟦", "⟧"
_STYLES = {(False, False): "", (True, False): "bold green", (False, True): "magenta", (True, True): "bold yellow"}


def render_sample(
    samples: Samples, index: int, tokenizer: PreTrainedTokenizerFast, part_names: Sequence[str] = ()
) -> Text:
    """Return sample ``index`` decoded from its tokens: trained runs between ⟦ and ⟧ and green, special tokens coloured.

    The first line names the part, the source row and the tokens. The text is what the tokens decode to, so it shows
    truncation, a doubled BOS or an unknown character as the model gets them.
    """
    tokens, trainable = samples[index]
    part = samples.part[index]
    name = part_names[part] if part < len(part_names) else f"part {part}"
    head = f"{name} row {samples.row[index]}: {len(tokens)} tokens, {int(trainable.sum())} trained"
    text = Text(head + "\n", style="")
    text.stylize("bold", 0, len(head))
    special = set(tokenizer.all_special_ids) | {
        number for number, token in tokenizer.added_tokens_decoder.items() if token.special
    }
    kinds = [(bool(mark), int(token) in special) for token, mark in zip(tokens, trainable, strict=True)]
    shown, end, inside = "", 0, False
    for kind, run in groupby(kinds):
        end += len(list(run))
        # Decoding from the start keeps the spaces that a decoder strips off the beginning of what it is given.
        decoded = str(
            tokenizer.decode(tokens[:end].tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        )
        if kind[0] != inside:
            text.append(OPEN if kind[0] else CLOSE, style="dim")
            inside = kind[0]
        text.append(decoded[len(shown) :], style=_STYLES[kind])
        shown = decoded
    if inside:
        text.append(CLOSE, style="dim")
    return text


def render_counts(counts: Counts) -> Table:
    """Return the counts as a table: one row a part, and the total when there are several parts."""
    columns = [name for name in PartCounts.model_fields if name not in ("name", "first_joined")]
    table = Table(Column("count", no_wrap=True), title=counts.total.name)
    shown = [*counts.parts, counts.total] if len(counts.parts) > 1 else list(counts.parts)
    for number, part in enumerate(shown):
        table.add_column("total" if number == len(counts.parts) else part.name, justify="right", overflow="fold")
    for column in columns:
        table.add_row(column.replace("_", " "), *(f"{getattr(part, column):,}" for part in shown))
    return table


def render(
    samples: Samples, counts: Counts, tokenizer: PreTrainedTokenizerFast, indices: Sequence[int] = (0, 1, 2)
) -> Group:
    """Return the counts and the samples at ``indices`` (those beyond the last are left out), for a rich console."""
    names = [part.name for part in counts.parts]
    legend = Text(f"Trained text stands between {OPEN} and {CLOSE}.", style="dim")
    parts = [render_sample(samples, index, tokenizer, names) for index in indices if index < len(samples)]
    spaced = [piece for part in parts for piece in (part, Text(""))]
    return Group(render_counts(counts), legend, Text(""), *spaced)
