"""OpenCompass's rules for generated answers, beside lm-eval's: a second score of the same stored answers.

Published tables such as that of Harada et al. 2025 were made by them. What differs in the prompt stays different: these
rules are given the answers that lm-eval's prompts got. Written after open-compass/opencompass 0.5.4,
``datasets/gsm8k.py``, ``natural_question.py``, ``math.py``, ``mbpp.py`` and ``utils/text_postprocessors.py``, and after
its ``humaneval.py`` from before 0.3, for later versions ask for whole functions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from lm_eval.api.task import Task
from lm_eval.tasks.hendrycks_math.utils import is_equiv

from massive_sft.evaluation.code_eval import executes_code, has_code_eval, runs_by_itself
from massive_sft.evaluation.opencompass_letters import bleu_accuracy, first_capital, first_option
from massive_sft.evaluation.task_errors import as_task_unavailable
from massive_sft.sandbox.run import choose, run_all

METRIC = "opencompass_acc"
DECLARED = "opencompass"  # the key of a task file's ``metadata`` that names one of ``RULES`` for its answers
_MATH = "hendrycks_math"
# The rule for answers to tasks of lm-eval, by the data that they read: a rule needs its fields.
OF_DATA = {
    "openai/gsm8k": "gsm8k",
    "google-research-datasets/nq_open": "nq_open",
    "EleutherAI/hendrycks_math": _MATH,
    "truthfulqa/truthful_qa": "truthfulqa_gen",
    "cais/mmlu": "first_option",
    "fxmarty/mmlu-redux-2.0-ok": "first_option",
    "google-research-datasets/mbpp": "mbpp",
    "openai/openai_humaneval": "humaneval",
}

Rule = Callable[[Task, Any, str], bool]  # a task, a document, its answer


def opencompass_values(task: Task, docs: Mapping[int, Any], answers: Mapping[int, str]) -> dict[int, float] | None:
    """Return by document whether its answer is right by OpenCompass's rules; None of a task that these do not know.

    Args:
        docs: by number.
        answers: as the model wrote them, by document.

    Raises:
        TaskUnavailable: the rule that the task names does not fit its documents.
    """
    name = _rule_name(task)
    with as_task_unavailable(f"{task.config.task} cannot be scored by OpenCompass's rule {name}"):
        if name in PROGRAMS:
            programs = [PROGRAMS[name](docs[doc], answer) for doc, answer in answers.items()]
            outcomes = run_all(programs, choose("rlimits"))
            return {doc: float(outcome.passed) for doc, outcome in zip(answers, outcomes, strict=True)}
        if name in RULES:
            return {doc: float(RULES[name](task, docs[doc], answer)) for doc, answer in answers.items()}
    return None


def runs_programs(task: Task) -> bool:
    """Return whether scoring a leaf task runs what a model wrote: by lm-eval, or by a rule for its answers."""
    return executes_code(task) or _rule_name(task) in PROGRAMS


def runs_without_walls(task: Task) -> bool:
    """Return whether scoring a leaf task runs what a model wrote by code of its own, which nothing walls in."""
    others_do = has_code_eval(task) or _rule_name(task) in PROGRAMS
    return runs_by_itself(task) or (executes_code(task) and not others_do)


def _rule_name(task: Task) -> str:
    """Return the rule that a task names, else that of lm-eval's task of its name where it reads the same data."""
    if task.OUTPUT_TYPE != "generate_until":
        return ""
    name, metadata = str(task.config.task), task.get_config("metadata") or {}
    declared = metadata.get(DECLARED) if isinstance(metadata, dict) else None
    if name.startswith("mmlu_") and name.endswith("_generative"):
        name = "first_option"
    name = _MATH if name.startswith(f"{_MATH}_") else name
    return str(declared or (name if name == OF_DATA.get(str(task.config.dataset_path)) else ""))


def _gsm8k(_: Task, doc: Any, answer: str) -> bool:
    """The last number before a next question, against the one behind ``####``."""
    numbers = re.findall(r"-?\d+\.\d+|-?\d+", answer.split("Question:")[0])
    gold = doc["answer"].split("#### ")[1].replace(",", "")
    if not numbers:
        return False
    try:
        return numbers[-1] == gold or abs(float(numbers[-1]) - int(gold)) < 1e-6
    except ValueError:
        return False


def _natural_questions(_: Task, doc: Any, answer: str) -> bool:
    """The first line, behind an "answer is", holds one of the right answers, wherever in it."""
    line = answer.strip().split("\n")[0].lower()
    given = _without_articles(line.split("answer is")[-1])
    return any(_without_articles(right).lower() in given for right in doc["answer"])


def _without_articles(text: str) -> str:
    """Return what is before a line's end, full stop or comma, without punctuation, articles and double spaces."""
    bare = re.sub(r"[^\w\s]", "", re.split(r"[\n.,]", text, maxsplit=1)[0])
    return re.sub(r"\s+", " ", re.sub(r"\b(a|an|the)\b", "", bare, flags=re.IGNORECASE)).strip()


# Minerva's normalisation (Lewkowycz et al. 2022), in OpenCompass's order.
_REPLACED = (
    ("an ", ""), ("a ", ""), (".$", "$"), ("\\$", ""), (r"\ ", ""), (" ", ""), ("mbox", "text"),
    (",\\text{and}", ","), ("\\text{and}", ","), ("\\text{m}", "\\text{}"), ("\\le", "<"),
)  # fmt: skip
_REMOVED = (
    "square", "ways", "integers", "dollars", "mph", "inches", "ft", "hours", "km", "units", "\\ldots", "sue", "points",
    "feet", "minutes", "digits", "cents", "degrees", "cm", "gm", "pounds", "meters", "meals", "edges", "students",
    "childrentickets", "multiples", "\\text{s}", "\\text{.}", "\\text{\ns}", "\\text{}^2", "\\text{}^3", "\\text{\n}",
    "\\text{}", r"\mathrm{th}", r"^\circ", r"^{\circ}", r"\;", r",\!", "{,}", '"', "\\dots", "\n", "\r", "\f",
)  # fmt: skip
_UNWRAPPED = (
    r"\\text\{\((.*?)\)\}",
    r"\\text\{(.*?)\}",
    r"\\textbf\{(.*?)\}",
    r"\\overline\{(.*?)\}",
    r"\\boxed\{(.*)\}",
)
_WITHIN = (r"finalansweris(.*)", r"answer?is:?(.*)", r"oxed\{(.*?)\}", r"\$(.*?)\$")  # the last of each counts


def _math(_: Task, doc: Any, answer: str) -> bool:
    """The sentence with "final answer", else the first one, normalised; equal is what is equal for lm-eval, too."""
    sentences = answer.split(".")
    chosen = next((sentence for sentence in sentences if "final answer" in sentence.lower()), sentences[0])
    return bool(is_equiv(_normalised(chosen), doc["answer"]))


def _normalised(text: str) -> str:
    for before, after in _REPLACED:
        text = text.replace(before, after)
    for removed in _REMOVED:
        text = text.replace(removed, "")
    for pattern in _UNWRAPPED:
        text = re.sub(pattern, r"\1", text)
    for pattern in _WITHIN:
        found = re.findall(pattern, text)
        text = found[-1] if found else text
    text = text.strip()
    if "rac" in text and "\\frac" not in text:
        text = text.replace("rac", "\\frac")
    text = re.sub(r"(frac)([^{])(.)", r"frac{\2}{\3}", text)
    text = re.sub(r"(sqrt)([^{])", r"sqrt{\2}", text).replace("$", "")
    return text.replace(",", "") if text.replace(",", "").isdigit() else text


_OPEN, _CLOSED = (r"\[BEGIN\]\s*", r"BEGIN\s*"), (r"\s*\[DONE\]", r"\s*DONE")
_CODE = (
    *(f"{begin}'(.*)'{end}" for end in _CLOSED for begin in _OPEN),
    *(f"{begin}'(.*){end}" for end in _CLOSED for begin in _OPEN),
    *(f"{begin}(.*){end}" for end in _CLOSED for begin in _OPEN),
    r"```python\s*(.*)\s*```", r"```\s*(.*)\s*```", r"```python\s*(.*)\s*$", r"```\s*(.*)\s*$", r"(.*)\s*```.*",
    r"\[BEGIN\]\s*'(.*)", r"\[BEGIN\](.*)", r"'(.*)'\s*\[DONE\]",
)  # fmt: skip


def _mbpp(doc: Any, answer: str) -> str:
    """The code between the marks that the prompt names, or in a fenced block, then the tests."""
    match = next((found for pattern in _CODE if (found := re.search(pattern, answer, re.DOTALL))), None)
    code = (match[1] if match else answer).split("```")[0]
    code = re.split(r"'?\s*\[?DONE\]?", code)[0].replace("\\_", "_").strip()
    return "\n".join([code, *doc["test_list"]])


def _humaneval(doc: Any, answer: str) -> str:
    """The body of the function: of a fenced block, without imports before it and without its own head."""
    text = answer
    if "```" in text:
        blocks = re.findall(r"```(.*?)```", text, re.DOTALL)
        text = blocks[0] if blocks else text  # where OpenCompass fails
        if blocks and not text.startswith("\n"):
            text = text[max(text.find("\n") + 1, 0) :]
    if text.strip().startswith(("from", "import")) and (head := text.find("def")) != -1:
        text = text[max(text.find("\n", head) + 1, 0) :]
    if text.strip().startswith("def"):
        text = "\n".join(text.split("\n")[1:])
    if not text.startswith("    "):
        indented = "    " + text.lstrip()
        text = indented if text.startswith(" ") else "\n".join(f"    {line}" for line in text.split("\n"))
    return f"{doc['prompt']}{text}\n{doc['test']}\ncheck({doc['entry_point']})"


def _truthfulqa(_: Task, doc: Any, answer: str) -> bool:
    """An answer without a word is wrong here; OpenCompass leaves it out of the mean."""
    return bleu_accuracy(answer, doc["correct_answers"], doc["incorrect_answers"])


def _letter(found: Callable[[str], str]) -> Rule:
    """The letter in an answer, against the one that the task has for its target."""
    return lambda task, doc, answer: found(answer) == str(task.doc_to_target(doc)).strip()


RULES: Mapping[str, Rule] = {
    "gsm8k": _gsm8k,
    "nq_open": _natural_questions,
    _MATH: _math,
    "truthfulqa_gen": _truthfulqa,
    "first_option": _letter(first_option),
    "first_capital": _letter(first_capital),
}
PROGRAMS: Mapping[str, Callable[[Any, str], str]] = {"mbpp": _mbpp, "humaneval": _humaneval}
"""What is run of an answer; whether programs may run at all is decided when a task is loaded (``runs_programs``)."""
