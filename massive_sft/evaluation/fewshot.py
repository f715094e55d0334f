"""Few-shot examples: which a task shows before its questions, and whether it has as many as are asked for."""

from __future__ import annotations

from lm_eval.api.samplers import ContextSampler, FirstNSampler
from lm_eval.api.task import Task

from massive_sft.core.wording import counted
from massive_sft.evaluation.task_errors import TaskUnavailable
from massive_sft.evaluation.tasks import TaskDefaults
from massive_sft.sweep import schema


def set_shots(task: Task, defaults: TaskDefaults, shots: int, fewshot: schema.Fewshot) -> None:
    """Have a task show so many examples before each question, drawn as declared.

    Args:
        defaults: how the task came: an earlier call may have changed it.

    Raises TaskUnavailable where it cannot draw them so, or has fewer.
    """
    task.set_config("num_fewshot", shots)
    if defaults.sampler is not None:
        task.sampler, task.fewshot_cfg.split = defaults.sampler, defaults.split
    if shots > 0 and fewshot.sampler == "first_n":
        if defaults.sampler is None:
            raise TaskUnavailable(f"{task.config.task} draws its few-shot examples itself; use sampler: default")
        own = getattr(task.fewshot_cfg, "samples", None) is not None  # examples that the task file itself holds
        if defaults.split is None and not own and not (task.has_training_docs() or task.has_validation_docs()):
            # The examples come from the split under test, and lm-eval leaves the evaluated document out of them
            # only when that split is named.
            task.fewshot_cfg.split = task.config.test_split
        task.sampler = FirstNSampler(list(task.fewshot_docs()))
    task.set_fewshot_seed(seed=fewshot.seed)
    _require_examples(task, shots)


def _require_examples(task: Task, shots: int) -> None:
    """Raise TaskUnavailable where a task has fewer examples to show than shots; one that draws them itself may."""
    sampler = getattr(task, "sampler", None)
    if shots == 0 or sampler is None or type(sampler) not in (ContextSampler, FirstNSampler):
        return
    split = task.fewshot_cfg.split
    # lm-eval leaves the question out of what it shows where both are of one split, or of none that has a name: then
    # the first examples are of another, but one more than the shots is drawn.
    own = split == task.config.test_split and (split is not None or type(sampler) is ContextSampler)
    most = max(0, len(sampler.fewshot_docs()) - own)
    if shots > most:
        where = f" in its split {split}" if split else ""
        beside = " beside the question itself" if own else ""
        text = f"{task.config.task} has {counted(most, 'example')} to show{where}{beside}"
        raise TaskUnavailable(f"{text}: shots must be {most} at most, got {shots}")
