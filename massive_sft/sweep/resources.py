"""Which rule of ``resources`` each training run gets, and which rules have no effect."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from massive_sft.core.errors import Problem
from massive_sft.sweep.cell import Recipe
from massive_sft.sweep.load import Sweep
from massive_sft.sweep.schema import Resource
from massive_sft.sweep.spec import Layout
from massive_sft.sweep.unused_fields import EVALUATION_FIELDS


class ResourceRules:
    """The rules of a sweep's ``resources``; the first that matches a training run wins."""

    def __init__(self, sweep: Sweep):
        self._rules: Sequence[_Rule] = [_Rule(sweep, rule) for rule in sweep.file.resources]
        self._sweep = sweep

    def find(self, recipe: Recipe) -> Resource | None:
        """Return a training run's rule, if one matches."""
        return next((rule.resource for rule in self._rules if rule.matches(recipe)), None)

    def warnings(self, recipes: Sequence[Recipe]) -> Iterator[Problem]:
        """Say which runs no rule matches, which rules no run reaches, and what of them only estimates know."""
        place = f"{self._sweep.path}: resources"
        chosen: dict[int, int] = {}
        matched: dict[int, int] = {}
        left = []
        for recipe in recipes:
            numbers = [number for number, rule in enumerate(self._rules) if rule.matches(recipe)]
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
            estimate_only = [field for field in EVALUATION_FIELDS if field in numbered_rule.resource.model_fields_set]
            if estimate_only:
                rule = (
                    "counts for the estimates of plan only: a scorer takes one GPU, and as many run as there are GPUs"
                )
                yield Problem(f"{at}.{estimate_only[0]}", rule)


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
    """Return the layout of a training run under a rule, or under none."""
    if rule is None:
        return Layout()
    return Layout(
        workers=rule.workers or max(rule.gpus, 1),
        gpus=rule.gpus,
        zero=rule.zero,
        offload=rule.offload,
        micro_batch=rule.micro_batch,
        packing=rule.packing,
        gradient_checkpointing=rule.gradient_checkpointing,
        attention=rule.attention,
    )
