"""The sweep file's schema: one pydantic class per kind of entry, unknown keys refused.

The classes accept or reject; what spans several entries (names, counts, horizons) is checked in ``sweep.load``. Which
fields enter a cell's identity is listed in ``sweep.identity``.
"""

from massive_sft.sweep.schema.evaluation import Evaluation, Fewshot, Measure, Protocol, Task, TextSet, Vllm
from massive_sft.sweep.schema.execution import Budget, Cluster, KeepSnapshots, Resource, Storage, Tracking, When
from massive_sft.sweep.schema.judging import Judge, JudgedBenchmark, Judging, Price
from massive_sft.sweep.schema.search import Mean, Objective, Range, Search, Weights
from massive_sft.sweep.schema.sources import FORMATS, Columns, Dataset, MixtureEntry, Mixtures, Model
from massive_sft.sweep.schema.strict_model import StrictModel
from massive_sft.sweep.schema.sweep_file import Block, SweepFile
from massive_sft.sweep.schema.training import SCHEDULES, Lora, Optimizer, Schedule, Setting, TemplateText

__all__ = [
    "FORMATS", "SCHEDULES", "Block", "Budget", "Cluster", "Columns", "Dataset", "Evaluation", "Fewshot", "Judge",
    "JudgedBenchmark", "Judging", "KeepSnapshots", "Lora", "Mean", "Measure", "MixtureEntry", "Mixtures", "Model",
    "Objective", "Optimizer", "Price", "Protocol", "Range", "Resource", "Schedule", "Search", "Setting", "Storage",
    "StrictModel", "SweepFile", "Task", "TemplateText", "TextSet", "Tracking", "Vllm", "Weights",
    "When",
]  # fmt: skip
