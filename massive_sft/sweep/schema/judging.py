"""Benchmarks whose answers another model judges: the judges, what is judged, and what that may cost."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from massive_sft.sweep.schema.field_types import Flag, Fraction, Number, OneOrMore, Positive, Text, Variable
from massive_sft.sweep.schema.strict_model import StrictModel

Cost = Annotated[Number, Field(ge=0)]
TITLES = {"mt_bench": "mtbench", "win_rate": "alpaca_eval_v2"}
"""What benchmarks are called by default: as in the table that Harada et al. 2025 released."""


def _address(text: str) -> str:
    if not text.startswith(("http://", "https://")) or "@" in text or "?" in text:
        raise ValueError("must be an address such as https://host/v1, without a login or a query in it")
    return text.rstrip("/")


def _name(text: str) -> str:
    if "," in text:
        raise ValueError("must be a name without a comma")
    return text


Address = Annotated[Text, AfterValidator(_address)]
ModelName = Annotated[Text, AfterValidator(_name)]


class Price(StrictModel):
    """What a judge costs, in whatever money ``budget`` is in."""

    input: Cost
    """Of a million tokens that it reads."""
    output: Cost
    """Of a million tokens that it writes."""


class Judge(StrictModel):
    """A model behind an endpoint that speaks OpenAI's protocol (chat completions)."""

    name: ModelName
    """The model, by the name that the endpoint answers with. One that answers with another is refused: give the dated
    name, and no alias."""
    endpoint: Address
    """Where it is, such as ``http://localhost:8000/v1``; ``/chat/completions`` is added."""
    key: Variable | None = None
    """The environment variable that holds the key, on the machine that asks; without one no key is sent."""
    max_tokens: Positive = 2048
    """The longest verdict with its reasons."""
    concurrency: Positive = 8
    """How many calls a run has open at once."""
    per_minute: Positive | None = None
    """How many calls a run begins in a minute at most."""
    timeout: Positive = 120
    """Seconds after which a call that is not answered is tried again."""
    price: Price | None = None
    """What its tokens cost; ``budget`` needs it."""


class JudgedBenchmark(StrictModel):
    """A benchmark without right answers."""

    kind: Literal["mt_bench", "win_rate"]
    """``mt_bench``: a rating from 1 to 10 of each of two turns. ``win_rate``: how often the answer is preferred to that
    of ``baseline``, in both orders; plain, and with the lengths of the answers taken out."""
    name: ModelName | None = None
    """What it is called in tables; left out: ``mtbench``, ``alpaca_eval_v2``."""
    questions: Text
    """The file of questions: MT-Bench's ``question.jsonl``, AlpacaEval's ``alpaca_eval.json``, or one of that form."""
    references: Text | None = None
    """Of ``mt_bench``: the file of reference answers; left out, those in the file of questions, where it has any."""
    baseline: Text | None = None
    """Of ``win_rate``: the file of the answers that are compared with, in the order of the questions."""
    gamed: Text | None = None
    """Of ``win_rate``: AlpacaEval's ``df_gamed.csv``, which its regression takes the difficulty of instructions from;
    left out, the regression knows the lengths alone."""
    prompts: Text | None = None
    """The file of the judge's prompts: FastChat's ``judge_prompts.jsonl``, AlpacaEval's ``alpaca_eval_clf.txt``; left
    out, prompts of our own, which ask for the same form of verdict."""
    logprobs: Flag = False
    """Of ``win_rate``: the preference is the probability of the judge's first token, as in AlpacaEval 2."""
    max_tokens: Positive = 1024
    """The longest answer of the model that is judged; it is written greedily."""
    limit: Positive | None = None
    """Only the first so many questions; all when left out."""

    @property
    def title(self) -> str:
        """What it is called in tables."""
        return self.name or TITLES[self.kind]

    @model_validator(mode="after")
    def _fields_fit_the_kind(self) -> JudgedBenchmark:
        if self.kind == "win_rate" and self.baseline is None:
            raise ValueError("win_rate needs a baseline: the file of the answers that are compared with")
        alien = ("references",) if self.kind == "win_rate" else ("baseline", "gamed", "logprobs")
        named = [name for name in alien if name in self.model_fields_set]
        if named:
            raise ValueError(f"{self.kind} takes no {', '.join(named)}")
        return self


class Judging(StrictModel):
    """Who judges what, and for how much."""

    judges: Annotated[tuple[Judge, ...], OneOrMore, Field(min_length=1)]
    """The judges, each asked for all; the scores of the first stand for the benchmark, and with more than one it is
    told how far they agree."""
    benchmarks: Annotated[tuple[JudgedBenchmark, ...], OneOrMore, Field(min_length=1)]
    """What is judged."""
    budget: Annotated[Number, Field(gt=0)] | None = None
    """What all calls under the storage root may cost together, by ``price``; nothing is asked beyond it."""
    max_failures: Fraction = 0.05
    """The share of answers without a verdict (nonsense, refusals) up to which there is a score; they are counted, and
    the interval holds for whatever they would have been."""

    @model_validator(mode="after")
    def _names_and_prices(self) -> Judging:
        for what, names in (
            ("judge", [judge.name for judge in self.judges]),
            ("benchmark", [item.title for item in self.benchmarks]),
        ):
            if len(set(names)) < len(names):
                raise ValueError(f"must have a {what} of one name once")
        if self.budget is not None and (free := [judge.name for judge in self.judges if judge.price is None]):
            raise ValueError(f"budget needs the price of {', '.join(free)}")
        return self
