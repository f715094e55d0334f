"""The scorer as an lm-eval ``LM``, so that lm-eval's own evaluation can run on it."""

from __future__ import annotations

from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from massive_sft.evaluation.build import generation
from massive_sft.evaluation.requests import Generation, Likelihood, Request, Rolling
from massive_sft.evaluation.responses import GenerationResponse, LikelihoodResponse, Response
from massive_sft.evaluation.scorer import Scorer


class ScorerLM(LM):
    """Answers lm-eval's requests with a ``Scorer``: ``lm_eval.simple_evaluate(model=ScorerLM(scorer), ...)``."""

    def __init__(self, scorer: Scorer):
        super().__init__()
        self._scorer = scorer

    def _score(self, requests: list[Request]) -> list[Response]:
        return self._scorer.score(requests)[0]

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Return (log-probability, greedy) of each (context, continuation)."""
        asked: list[Request] = [Likelihood(i, i, 0, "", 1, *request.args) for i, request in enumerate(requests)]
        return [(r.logprob, r.greedy) for r in self._score(asked) if isinstance(r, LikelihoodResponse)]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Return the log-probability of each text."""
        asked: list[Request] = [Rolling(i, i, 0, "", 1, *request.args) for i, request in enumerate(requests)]
        return [r.logprob for r in self._score(asked) if isinstance(r, LikelihoodResponse)]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Return the greedy answer to each (context, arguments)."""
        arguments: list[dict[str, Any]] = [generation(request.args[1], ()) for request in requests]
        asked: list[Request] = [
            Generation(i, i, 0, "", 1, request.args[0], **arguments[i]) for i, request in enumerate(requests)
        ]
        return [r.text for r in self._score(asked) if isinstance(r, GenerationResponse)]
