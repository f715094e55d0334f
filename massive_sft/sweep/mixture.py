"""The mixture algebra: what `each`, `concat`, `leave_one_out` and `weights` stand for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from massive_sft.core.errors import Problem
from massive_sft.sweep.schema import Dataset, MixtureEntry, Mixtures
from massive_sft.sweep.spec import Mixture, Part

Groups = dict[str, tuple[Mixture, ...]]


def largest_remainder(weights: Mapping[str, float], total: int) -> dict[str, int]:
    """Split ``total`` in proportion to ``weights`` so that the parts add up (Hamilton's method).

    Ties go to the name that sorts first, so that the order of the keys never matters. So renaming a dataset may move
    one row from it to another, and then the mixture's content and id: the one place where a name counts.
    """
    whole = math.fsum(weights.values())
    shares = {name: total * weight / whole for name, weight in weights.items()}
    counts = {name: math.floor(share) for name, share in shares.items()}
    by_remainder = sorted(shares, key=lambda name: (counts[name] - shares[name], name))
    for name in by_remainder[: total - sum(counts.values())]:
        counts[name] += 1
    return counts


def expand_mixtures(
    mixtures: Mixtures, datasets: Mapping[str, Dataset], place: str, broken: Mapping[str, Sequence[str]] | None = None
) -> tuple[Groups, list[Problem]]:
    """Return every entry's mixtures, by the entry's name, and what is wrong with the entries.

    ``each`` yields one mixture a dataset, named after it; ``leave_one_out`` one a part, named ``<entry>-<part>``.
    ``broken`` has, by section, the names of entries with problems of their own, which are valid names all the same.
    """
    expander = _Expander(mixtures.entries, datasets, mixtures.sample_seed, place, broken or {})
    for name in mixtures.entries:
        expander.group(name, ())
    expander.refuse_ambiguous_names()
    return expander.groups, expander.problems


def declared_at(mixture: Mixture, groups: Groups) -> str:
    """Return where a sweep file declares a mixture: ``mixtures.all``; ``mixtures.single: own`` of one of several."""
    alike = [(entry, one) for entry, group in groups.items() for one in group if one.name == mixture.name]
    entry = next((entry for entry, one in alike if one.size == mixture.size), alike[0][0] if alike else mixture.name)
    return f"mixtures.{entry}" + (f": {mixture.name}" if entry != mixture.name else "")


class _Expander:
    def __init__(
        self,
        entries: Mapping[str, MixtureEntry],
        datasets: Mapping[str, Dataset],
        seed: int,
        place: str,
        broken: Mapping[str, Sequence[str]],
    ):
        self.entries, self.datasets, self.seed, self.place = entries, datasets, seed, place
        self.valid_datasets = [*datasets, *broken.get("datasets", ())]
        self.valid_mixtures = [*entries, *broken.get("mixtures", ())]
        self.groups: Groups = {}
        self.problems: list[Problem] = []

    def group(self, name: str, above: tuple[str, ...]) -> tuple[Mixture, ...]:
        if name in self.groups:
            return self.groups[name]
        place = f"{self.place}.{name}"
        if name in above:
            self.problems.append(Problem(place, "refers to itself", " -> ".join((*above, name))))
            return ()
        entry, before = self.entries[name], len(self.problems)
        if entry.each:
            mixtures = [self._single(dataset, entry.samples, entry, f"{place}.each") for dataset in entry.each]
        elif entry.weights:
            mixtures = [self._weighted(name, entry, place)]
        elif entry.concat:
            mixtures = [self._concat(name, entry.concat, (*above, name), f"{place}.concat")]
        else:
            mixtures = self._leave_one_out(name, str(entry.leave_one_out), (*above, name), f"{place}.leave_one_out")
        self.groups[name] = () if len(self.problems) > before else tuple(item for item in mixtures if item)
        return self.groups[name]

    def _part(self, dataset: str, count: int | None, entry: MixtureEntry, place: str) -> Part | None:
        if dataset not in self.datasets:
            self.problems.append(Problem(place, "unknown dataset", dataset, self.valid_datasets))
            return None
        limit = self.datasets[dataset].limit
        if count is not None and limit is not None and count > limit * entry.max_repeats:
            rule = f"takes {count} samples of {dataset}, whose limit is {limit}; lower samples or raise max_repeats"
            self.problems.append(Problem(place, rule, entry.max_repeats))
            return None
        return Part(name=dataset, dataset=self.datasets[dataset], count=count, max_repeats=entry.max_repeats)

    def _single(self, dataset: str, count: int | None, entry: MixtureEntry, place: str) -> Mixture | None:
        part = self._part(dataset, count, entry, place)
        return Mixture(name=dataset, parts=(part,), sample_seed=self.seed) if part else None

    def _weighted(self, name: str, entry: MixtureEntry, place: str) -> Mixture | None:
        counts = largest_remainder(entry.weights or {}, entry.samples or 0)
        parts = [self._part(dataset, count, entry, f"{place}.weights") for dataset, count in counts.items() if count]
        empty = [dataset for dataset, count in counts.items() if count == 0]
        if empty:
            rule = f"leaves no sample of {', '.join(empty)}; raise samples or drop the weight"
            self.problems.append(Problem(f"{place}.weights", rule, entry.samples))
        return Mixture(name=name, parts=tuple(part for part in parts if part), sample_seed=self.seed)

    def _concat(self, name: str, members: tuple[str, ...], above: tuple[str, ...], place: str) -> Mixture | None:
        parts: list[Part] = []
        for member in members:
            if member not in self.entries:
                hint = f"is a dataset: {{each: [{member}]}} makes a mixture of it" if member in self.datasets else ""
                self.problems.append(Problem(place, "unknown mixture", member, self.valid_mixtures, hint))
                continue
            group = self.group(member, above)
            if not group:
                return None  # the member's own problem says why
            parts += [part for mixture in group for part in mixture.parts]
        names = [part.name for part in parts]
        for twice in sorted({item for item in names if names.count(item) > 1}):
            self.problems.append(
                Problem(place, "takes a dataset twice; use weights with max_repeats to repeat rows", twice)
            )
        return Mixture(name=name, parts=tuple(parts), sample_seed=self.seed)

    def _leave_one_out(self, name: str, target: str, above: tuple[str, ...], place: str) -> list[Mixture | None]:
        if target not in self.entries:
            self.problems.append(Problem(place, "unknown mixture", target, self.valid_mixtures))
            return []
        whole = self.group(target, above)
        if not whole:
            return []  # the target's own problem says why
        if len(whole) != 1 or len(whole[0].parts) < 2:
            self.problems.append(Problem(place, "must name one mixture of at least two datasets", target))
            return []
        parts = whole[0].parts
        return [
            Mixture(
                name=f"{name}-{out.name}", parts=tuple(part for part in parts if part is not out), sample_seed=self.seed
            )
            for out in parts
        ]

    def refuse_ambiguous_names(self) -> None:
        """One name and size must mean one content, whichever entry it comes from."""
        seen: dict[tuple[str, int | None], tuple[str, Mixture]] = {}
        for entry, group in self.groups.items():
            for mixture in group:
                first_entry, first = seen.setdefault((mixture.name, mixture.size), (entry, mixture))
                if first != mixture:
                    rule = f"yields {mixture.name!r} with {mixture.size} samples, "
                    rule += f"but so does {first_entry} with other content"
                    self.problems.append(Problem(f"{self.place}.{entry}", rule))
