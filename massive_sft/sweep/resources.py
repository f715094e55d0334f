"""Which rule of ``resources`` each training run gets, and which rules have no effect."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from massive_sft.core.errors import Problem
from massive_sft.sweep.cell import Recipe
from massive_sft.sweep.load import Sweep
from massive_sft.sweep.schema import Resource
from massive_sft.sweep.spec import Layout


@dataclass(frozen=True)
class ScoringResources:
    """What scores a sweep's cells.

    Attributes:
        gpus: of one scorer; 0 scores on the CPU.
        kind: of GPU that a rule for ``evaluate`` names; empty for any.
        most: scorers at a time; None for as many as have room.
    """

    gpus: int
    kind: str
    most: int | None


def scoring_resources(rules: Sequence[Resource]) -> ScoringResources:
    """Return what scores, by the rules alone: a base model too is scored where trainings of the sweep are."""
    ours = [rule for rule in rules if rule.when.phase != "train"]
    gpus = next((rule.gpus_per_replica for rule in ours if rule.gpus_per_replica), 0)
    kind = next((rule.gpu for rule in ours if rule.when.phase == "evaluate" and rule.gpu), "")
    most = next((rule.replicas for rule in ours if isinstance(rule.replicas, int)), None)
    return ScoringResources(gpus or int(any(rule.gpus for rule in rules)), kind, most)


class ResourceRules:
    """The rules of a sweep's ``resources``; the first that matches a training run wins."""

    def __init__(self, sweep: Sweep):
        self._rules: Sequence[_Rule] = [_Rule(sweep, rule) for rule in sweep.file.resources]
        self._sweep = sweep

    def find(self, recipe: Recipe) -> Resource | None:
        """Return a training run's rule, if one matches."""
        return next((self._rules[number].resource for number in self._matching(recipe)), None)

    def place(self, recipe: Recipe) -> str:
        """Return where a training run's rule stands; the whole list where none matches."""
        place = self._sweep.place("resources")
        return next((f"{place}[{number}]" for number in self._matching(recipe)), place)

    def _matching(self, recipe: Recipe) -> Iterator[int]:
        """Yield the numbers of the rules that match a training run, the one that wins first."""
        return (number for number, rule in enumerate(self._rules) if rule.matches(recipe))

    def warnings(self, recipes: Sequence[Recipe]) -> Iterator[Problem]:
        """Say which runs no rule matches, which rules no run reaches, and which GPUs stay unused."""
        place = self._sweep.place("resources")
        chosen: dict[int, int] = {}
        matched: dict[int, int] = {}
        left = []
        for recipe in recipes:
            numbers = list(self._matching(recipe))
            left += [] if numbers else [recipe]
            for number in numbers:
                matched[number] = matched.get(number, 0) + 1
            for number in numbers[:1]:
                chosen[number] = chosen.get(number, 0) + 1
        if left and self._rules:
            first = f"{left[0].model_name} {left[0].mixture.name} {left[0].setting_name}"
            rule = f"no rule matches {len(left)} of {len(recipes)} training runs, e.g. {first}"
            yield Problem(place, f"{rule}: one worker trains them on the CPU")
        for number, numbered_rule in enumerate(self._rules):
            at = f"{place}[{number}]"
            if numbered_rule.resource.when.phase != "evaluate" and number not in chosen:
                yield Problem(at, _unreached(matched.get(number, 0)))
            if numbered_rule.resource.gpus_per_replica > 1:
                rule = "are given to each scorer, but it loads a model on the first of them only"
                yield Problem(f"{at}.gpus_per_replica", rule, numbered_rule.resource.gpus_per_replica)


def describe_layouts(layouts: Iterable[Layout]) -> str:
    """Return how many training runs are on what, for people: ``3 on 8 GPUs, 2 on the CPU by 1 worker``."""
    counts = Counter((layout.gpus, layout.workers) for layout in layouts)
    return ", ".join(
        f"{runs:,} on {_count(gpus, 'GPU') if gpus else 'the CPU by ' + _count(workers, 'worker')}"
        for (gpus, workers), runs in counts.most_common()
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number > 1 else ''}"


def _unreached(matches: int) -> str:
    if matches:
        return f"is never reached: earlier rules take all {matches} training runs that it matches"
    return "matches no training run"


class _Rule:
    def __init__(self, sweep: Sweep, resource: Resource):
        when = resource.when
        self.resource = resource
        self._models = None if when.model is None else frozenset(sweep.models_of(when.model))
        self._mixtures = None if when.mixture is None else {item.key for item in sweep.mixtures_of(when.mixture)}

    def matches(self, recipe: Recipe) -> bool:
        when = self.resource.when
        return (
            when.phase in (None, "train")
            and (self._models is None or recipe.model_name in self._models)
            and (self._mixtures is None or recipe.mixture.key in self._mixtures)
            and (when.setting is None or recipe.setting_name in when.setting)
            and when.method in (None, recipe.setting.method)
        )


def make_layout(rule: Resource | None) -> Layout:
    """Return the layout of a training run under a rule, or under none; ``gpus: auto`` is 1 until it is chosen."""
    if rule is None:
        return Layout()
    gpus = 1 if rule.gpus == "auto" else rule.gpus
    return Layout(
        workers=rule.workers or max(gpus, 1),
        gpus=gpus,
        zero=rule.zero,
        offload=rule.offload,
        micro_batch=rule.micro_batch,
        packing=rule.packing,
        gradient_checkpointing=rule.gradient_checkpointing,
        attention=rule.attention,
        kernels=rule.kernels,
        lora_at_once=rule.lora_at_once,
    )
