"""The vLLM engine against the plain one, through a server that speaks vLLM's HTTP API, and what it says of refusals."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import evaluation_world as world
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from small_sweep import small_sweep
from vllm_stand_in import Reply, StandIn, stand_in

from massive_sft.core.errors import InvalidInput, Unsupported
from massive_sft.evaluation.requests import Generation, Likelihood, Request, Rolling
from massive_sft.evaluation.scorer import PlainScorer
from massive_sft.evaluation.vllm import VllmScorer, served_by, vllm_scorer
from massive_sft.evaluation.vllm_server import VllmServer
from massive_sft.planning.plan import make_plan
from massive_sft.running.check.servers import server_problems
from massive_sft.sweep.load import load_sweep
from massive_sft.sweep.schema import Model, Vllm

CONTEXTS = ("Question: red?\nAnswer:", "the answer is\n", "two cats ")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[StandIn]:
    with stand_in(world.llama(), world.tokenizer(), str(tmp_path)) as running:
        yield running


def asked() -> list[Request]:
    requests: list[Request] = [
        Likelihood(2 * i + j, i, j, "", 1, context, ending)
        for i, context in enumerate([*CONTEXTS, "", "x" * 300])
        for j, ending in enumerate((" blue", " the long yellow road"))
    ]
    requests.append(Rolling(20, 20, 0, "", 1, "seven green cats " * 40))  # in windows
    for i, context in enumerate([*CONTEXTS, "no " * 200]):
        requests.append(Generation(30 + i, 30 + i, 0, "", 1, context, ("e", "\n\n"), 12, "\n" if i == 1 else ""))
    return requests


def scorer(server: StandIn, adapter: Path | None = None, timeout: int = 30) -> VllmScorer:
    model = Model(path=server.root)
    servers = Vllm(servers=(server.url,), at_once=4, timeout=timeout)
    return vllm_scorer(servers, model, server.model.config, world.tokenizer(), {1}, adapter)


def adapter_of(model: Any, folder: Path) -> Path:
    torch.manual_seed(1)
    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    tuned = get_peft_model(model, config)
    tuned.save_pretrained(folder)
    tuned.unload()
    return folder


def require_equal(server: StandIn, adapter: Path | None, model: Any) -> None:
    """Texts and likelihoods must be those of the plain engine with the context that the server has."""
    found, happened = scorer(server, adapter).score(asked())
    expected, happened_plainly = PlainScorer(model, world.tokenizer(), max_length=254, ends={1}).score(asked())
    assert happened == {"memory_splits": 0, "contexts_cut": happened_plainly["contexts_cut"]} and [
        r.index for r in found
    ] == [r.index for r in expected]
    for ours, theirs in zip(found, expected, strict=True):
        if ours.kind == "generated":
            assert ours == theirs
        else:
            assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-4)  # type: ignore[union-attr]
            assert (ours.greedy, ours.tokens) == (theirs.greedy, theirs.tokens)  # type: ignore[union-attr]


def test_base_model_and_adapter_are_answered_for_as_by_the_plain_engine(server: StandIn, tmp_path: Path) -> None:
    require_equal(server, None, server.model)
    completions = [body for path, body in server.asked if path == "/v1/completions"]
    assert all(body["temperature"] == 0 and body["seed"] == 0 for body in completions)
    assert scorer(server).attention == "vLLM 0.11.0" and scorer(server).engine == "vllm"

    folder = adapter_of(server.model, tmp_path / "adapter")
    tuned = PeftModel.from_pretrained(world.llama(), folder).eval()
    require_equal(server, folder, tuned)
    assert server.adapters == {}  # it is taken away again
    server.uses_adapters = False
    with pytest.raises(Unsupported, match=r"answers with the adapter .* as without it"):
        scorer(server, folder).score(asked())
    with pytest.raises(Unsupported, match="is a whole model"):
        scorer(server, tmp_path)


def test_model_s_own_generation_settings_play_no_part_and_its_limit_is_refused(server: StandIn) -> None:
    server.defaults = {"repetition_penalty": 1.5}
    require_equal(server, None, server.model)
    server.defaults = {"max_new_tokens": 2}
    with pytest.raises(Unsupported, match=r"ends an answer at 2 of 12 tokens.*--generation-config vllm"):
        scorer(server).score(asked()[-1:])


def test_one_of_two_tokens_that_are_as_likely_is_the_likeliest(server: StandIn) -> None:
    """As happens in bf16; vLLM's rank of either is 2 where it is asked for no other."""
    letters = "xyz"
    with torch.no_grad():
        rows = server.model.get_output_embeddings().weight
        rows.zero_()
        rows[world.tokenizer().convert_tokens_to_ids(list(letters))] = torch.tensor([[1.0], [1.0], [-1.0]])
    pairs = [(context, letter) for context in ("red", "blue", "green", "two") for letter in letters]
    requests = [Likelihood(index, index, 0, "", 1, *pair) for index, pair in enumerate(pairs)]
    found, expected = (
        [one.greedy for one in engine.score(requests)[0]]  # type: ignore[union-attr]
        for engine in (scorer(server), PlainScorer(server.model, world.tokenizer(), ends={1}))
    )
    assert found == expected and sum(found) == 4 and any(found[::3])


def test_answer_that_the_server_breaks_off_is_refused(server: StandIn) -> None:
    """A vLLM that is stopped or put to sleep answers 200 with what it has."""

    def broken_off(path: str, body: dict[str, Any]) -> Reply | None:
        if "completions" not in path:
            return None
        choice = server.choice(body | {"max_tokens": 2})
        return 200, {"choices": [choice | {"finish_reason": "abort"}]}

    server.reply = broken_off
    with pytest.raises(Unsupported, match=r"ends an answer at 2 of 12 tokens \(abort\)"):
        scorer(server).score(asked()[-1:])


def test_adapter_whose_loading_was_answered_too_late_is_used_and_taken_away(
    server: StandIn, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """vLLM refuses a further try of what it has done; so it does where an adapter is gone already."""
    waiting = VllmServer(server.url, timeout=5, first_wait_s=0.01)

    def lost(path: str, body: dict[str, Any]) -> Reply | None:
        loads, has = path.endswith("/load_lora_adapter"), body.get("lora_name") in server.adapters
        if "lora" not in path:
            return None
        if loads == has:
            return (400, "it has already been loaded") if loads else (404, "it cannot be found")
        server.answer(path, body)
        return 504, "too late"

    server.reply = lost
    with waiting.adapter(tmp_path) as name:
        assert list(server.adapters) == [name]
    assert server.adapters == {} and not caplog.messages


def test_refusals_of_a_server_are_told_in_its_own_words(server: StandIn, tmp_path: Path) -> None:
    waiting = VllmServer(server.url, timeout=0.1, first_wait_s=0.01)
    first = list[Reply]([(503, "busy"), (429, "busy")])
    server.reply = lambda path, body: first.pop() if first else None
    assert [base.name for base in waiting.bases()] == ["base"] and not first

    before = len(server.asked)
    with pytest.raises(Unsupported, match="answers 400: This model's maximum context length is 256 tokens"):
        waiting.complete("base", [3] * 256, max_tokens=8)
    with pytest.raises(Unsupported, match="answers 404: The model `gone` does not exist"):
        waiting.complete("gone", [3], max_tokens=1)
    assert len(server.asked) == before + 2  # not tried again
    server.reply = lambda path, body: (404, '{"detail": "Not Found"}') if "lora" in path else None
    with pytest.raises(Unsupported, match=r"answers 404: Not Found.*VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"):
        scorer(server, adapter_of(server.model, tmp_path / "adapter")).score(asked())
    server.reply = lambda path, body: (200, {"choices": [{"text": "blue"}]}) if "completions" in path else None
    with pytest.raises(Unsupported, match="gives no log-probabilities"):
        scorer(server).score(asked())
    with pytest.raises(Unsupported, match=r"gives no token ids .*0\.10\.2"):
        scorer(server).score(asked()[-1:])
    server.late = 0.3
    with pytest.raises(Unsupported, match="does not answer within 0 s"):
        waiting.complete("base", [3], max_tokens=1)


def test_sweep_whose_servers_cannot_score_it_is_refused(server: StandIn, tmp_path: Path) -> None:
    def sweep(**changes: Any) -> Path:
        protocol = {"dtype": "fp32", "engine": "vllm", **changes.pop("protocol", {})}
        return small_sweep(tmp_path, evaluation={"tasks": [], "protocol": protocol, **changes})

    with pytest.raises(InvalidInput, match="must have vllm, with its servers"):
        load_sweep(sweep())
    with pytest.raises(InvalidInput, match="does not merge adapters"):
        load_sweep(sweep(vllm={"servers": server.url}, protocol={"adapters": "merged"}))

    tasks = [{"path": str(tmp_path / "world" / "tasks" / "facts_gen.yaml"), "limit": 2}]

    def problems(address: str) -> list[str]:
        plan = make_plan(load_sweep(sweep(vllm={"servers": address}, tasks=tasks)))
        return [str(problem) for problem in server_problems(plan, lambda _: None)]

    unserved, whole = problems(server.url)
    assert "evaluation.vllm.servers: no vLLM server has" in unserved and f"served: base ({server.root})" in unserved
    assert "evaluation.protocol.engine: vllm scores base models and adapters alone; engine plain or trie" in whole
    server.root = str(tmp_path / "world" / "models" / "tiny-llama")
    assert problems(server.url) == [whole]
    by_name = served_by(Model(path="base"), Vllm(servers=(server.url,)))
    assert by_name[1].root == server.root


def test_server_that_is_stopped_is_no_matter_to_who_is_served_by_another(server: StandIn, tmp_path: Path) -> None:
    with stand_in(server.model, server.tokenizer, "") as another:
        stopped = another.url
    servers = Vllm(servers=(stopped, server.url))
    server.root = f"{tmp_path}/"  # as a shell completes it
    assert served_by(Model(path=str(tmp_path)), servers)[0].address == server.url
    with pytest.raises(Unsupported, match=rf"no vLLM server has other; served: base .*; .*{stopped}.* does not answer"):
        served_by(Model(hub="other"), servers)
    with pytest.raises(Unsupported, match=r"^the vLLM server at .* does not answer"):
        served_by(Model(hub="other"), Vllm(servers=(stopped,)))
