"""The vLLM engine: a server answers, base models and adapters. Nothing of the model is loaded here.

Texts and log-probabilities are the server's, as its kernels round and its batches happen to be; nothing certifies them.
So they have a protocol id of their own. Prompts are given as tokens, and where an answer ends is decided here, by the
rules of the other engines.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from massive_sft.core.errors import Unsupported
from massive_sft.evaluation.encoding import RequestEncoder, max_length_of
from massive_sft.evaluation.generate import prompt_of
from massive_sft.evaluation.requests import Generation, Request
from massive_sft.evaluation.responses import CONTEXTS_CUT, GenerationResponse, LikelihoodResponse, Response
from massive_sft.evaluation.sampling import Sampling
from massive_sft.evaluation.scorer import Span, Value, rows_of, spans_of, totals
from massive_sft.evaluation.vllm_server import Served, VllmServer
from massive_sft.evaluation.writing import Endings, Prompt, Writing
from massive_sft.models.location import place_of
from massive_sft.sweep.schema import Model, Vllm

REMEDY = "vllm scores base models and adapters alone; engine plain or trie scores whole models too"
CANARY_TOKENS = 16
# A token to predict and one that is written, which the server cannot do without.
BEYOND_CONTEXT = 2
T = TypeVar("T")
R = TypeVar("R")


def served_by(model: Model, servers: Vllm) -> tuple[VllmServer, Served]:
    """Return the first server that has a base model, and as what.

    Raises:
        Unsupported: none has it of those that answer; with what the others say.
    """
    place = place_of(model)
    wanted = {place} | ({str(Path(place).resolve())} if model.path is not None else set())
    seen, silent = list[str](), list[str]()
    for address in servers.servers:
        server = VllmServer(address, servers.timeout)
        try:
            bases = server.bases()
        except Unsupported as error:  # another model's may have been stopped
            silent.append(str(error))
            continue
        for base in bases:
            if wanted & {base.name, base.root}:
                return server, base
            seen.append(f"{base.name} ({base.root})")
    told = [f"no vLLM server has {place}; served: {', '.join(seen) or 'nothing'}"] if seen or not silent else []
    raise Unsupported("; ".join([*told, *silent]))


def vllm_scorer(
    servers: Vllm, model: Model, config: Any, tokenizer: Any, ends: Collection[int], snapshot: Path | None
) -> VllmScorer:
    """Return the scorer of a base model, or of a snapshot of it.

    Raises:
        Unsupported: no server has the base model, or the snapshot is a whole model.
    """
    if snapshot is not None and not (snapshot / "adapter_config.json").exists():
        raise Unsupported(f"{snapshot} is a whole model, of which a vLLM server would have to be started; {REMEDY}")
    server, base = served_by(model, servers)
    return VllmScorer(server, base, config, tokenizer, ends, snapshot, servers.at_once)


class VllmScorer:
    """Answers requests through a server that has the base model.

    Args:
        config: the model's; contexts are cut to its length, or to the server's where that is shorter.
        ends: the tokens that end an answer.
        adapter: of the snapshot that answers; None for the base model.
        at_once: calls that are open at once.
    """

    engine = "vllm"

    def __init__(
        self,
        server: VllmServer,
        base: Served,
        config: Any,
        tokenizer: Any,
        ends: Collection[int],
        adapter: Path | None,
        at_once: int,
    ):
        self._server, self._base, self._adapter, self._at_once = server, base, adapter, at_once
        self._encoder = RequestEncoder(tokenizer)
        self._endings = Endings(tokenizer, ends)
        self._max_length = min(max_length_of(config, tokenizer), base.max_tokens - BEYOND_CONTEXT)
        self._version = server.version()

    @property
    def attention(self) -> str:
        """What computes the attention."""
        return f"vLLM {self._version}"

    def score(self, requests: Sequence[Request], tokens: Path | None = None) -> tuple[list[Response], dict[str, int]]:
        """See ``Scorer.score``; equal lists may give responses that differ by rounding.

        Raises:
            Unsupported: as ``PlainScorer.score``; the server refuses, is not there, or does not use the adapter.
        """
        likelihoods = [i for i, request in enumerate(requests) if not isinstance(request, Generation)]
        found, cut = spans_of(requests, likelihoods, self._encoder, self._max_length, tokens)
        rows = rows_of(found)
        spans = [span for row in rows for span in row]
        generations = [(i, request) for i, request in enumerate(requests) if isinstance(request, Generation)]
        eos = self._endings.tokenizer.decode([self._endings.tokenizer.eos_token_id])
        prompts = [prompt_of(request, self._encoder, eos, self._max_length) for _, request in generations]
        with self._model() as model:
            values = iter(self._each(partial(self._value, model), spans))
            written = self._each(partial(self._write, model), prompts)
        scored = totals(rows, [[next(values) for _ in row] for row in rows])
        responses: dict[int, Response] = {
            i: LikelihoodResponse(requests[i].index, *scored.get(i, (0.0, True, 0))) for i in likelihoods
        }
        for (i, request), writing in zip(generations, written, strict=True):
            answer = writing.answer()
            responses[i] = GenerationResponse(request.index, answer.text, answer.tokens, answer.finish)
        cut += sum(prompt.cut for prompt in prompts)
        return [responses[i] for i in range(len(requests))], {"memory_splits": 0} | ({CONTEXTS_CUT: cut} if cut else {})

    @contextmanager
    def _model(self) -> Iterator[str]:
        """Within it the server has what answers, by the name that is given: it is proven that an adapter is in use."""
        if self._adapter is None:
            yield self._base.name
            return
        with self._server.adapter(self._adapter) as name:
            canary = self._canary(self._base.name)
            if self._canary(name) == canary:
                raise Unsupported(
                    f"the vLLM server at {self._server.address} answers with the adapter {self._adapter} as without it"
                )
            yield name

    def _canary(self, model: str) -> list[float]:
        """Return log-probabilities of a fixed text."""
        tokens = (self._encoder.encode("The quick brown fox, 12 + 30 = 42.") * CANARY_TOKENS)[:CANARY_TOKENS]
        return [logprob for logprob, _ in self._predicted(model, tokens, 1)]

    def _each(self, answer: Callable[[T], R], asked: Sequence[T]) -> list[R]:
        """Return the answers in order; the first failure ends all."""
        if not asked:
            return []
        with ThreadPoolExecutor(min(self._at_once, len(asked))) as pool:
            try:
                return list(pool.map(answer, asked))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _value(self, model: str, span: Span) -> Value:
        tokens = [*span.tokens, span.continuation[-1]]
        predicted = self._predicted(model, tokens, len(tokens) - len(span.continuation))
        return sum(logprob for logprob, _ in predicted), all(first for _, first in predicted)

    def _predicted(self, model: str, tokens: Sequence[int], start: int) -> list[tuple[float, bool]]:
        """Return the log-probability of each token from ``start`` on, and whether it was the likeliest.

        The likeliest is asked for beside each token, for its rank alone counts all that are as likely, as happens
        in bf16: of two of them neither would be the first.
        """
        choice = self._server.complete(model, tokens, max_tokens=1, prompt_logprobs=1)
        try:
            entries = [choice["prompt_logprobs"][place][str(tokens[place])] for place in range(start, len(tokens))]
            return [(float(entry["logprob"]), entry["rank"] == 1) for entry in entries]
        except (KeyError, TypeError, IndexError, ValueError) as error:
            raise Unsupported(
                f"the vLLM server at {self._server.address} gives no log-probabilities of a prompt's tokens ({error!r})"
            ) from error

    def _write(self, model: str, prompt: Prompt) -> Writing:
        writing = Writing(prompt, self._endings)
        if prompt.most == 0:
            return writing
        choice = self._server.complete(
            model,
            prompt.tokens,
            max_tokens=prompt.most,
            stop=[stop for stop in prompt.until if stop and not _may_begin_in(prompt.lead, stop)],
            stop_token_ids=sorted(self._endings.ends),
            include_stop_str_in_output=True,
            skip_special_tokens=False,
            return_token_ids=True,
            **({} if prompt.sampling is None else _sampled(prompt.sampling)),
        )
        made = choice.get("token_ids")
        if not isinstance(made, list):
            raise Unsupported(
                f"the vLLM server at {self._server.address} gives no token ids of an answer; vLLM 0.10.2 or later does"
            )
        for token in made:
            if writing.finish is not None:
                break
            writing.take(token)
        ended = choice.get("finish_reason")
        if writing.finish is None and ended != "stop":
            told = f"the vLLM server at {self._server.address} ends an answer at {len(made)} of {prompt.most} tokens"
            # "abort": it is stopped or put to sleep, and gives what it has as if that were all.
            remedy = ": start it with --generation-config vllm" if ended == "length" else f" ({ended}): ask it again"
            raise Unsupported(told + remedy)
        writing.finish = writing.finish or "eos"  # it may leave out the token that ended an answer
        return writing


def _sampled(sampling: Sampling) -> dict[str, Any]:
    """Return how the server is to draw: its random numbers are its own."""
    return {
        "temperature": sampling.temperature,
        "top_k": sampling.top_k or -1,  # all
        "top_p": sampling.top_p,
        "seed": sampling.seed,
    }


def _may_begin_in(lead: str, stop: str) -> bool:
    """Return whether a stop may be met in what stands before an answer, or begin there."""
    return stop in lead or any(stop.startswith(lead[place:]) for place in range(len(lead)))
