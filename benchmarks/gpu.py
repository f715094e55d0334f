"""Proves the GPU path and measures it, in at most eight minutes on one H100 or H200.

    python benchmarks/gpu.py [--only LETTERS] [--seconds N] FOLDER
    python benchmarks/gpu.py --dry FOLDER       tiny sizes on a CPU, to find mistakes first

It needs torch, transformers, peft and DeepSpeed, not Ray. Stages: M the machine's ceilings; L every layout trains the
same, and lack of memory halves the micro-batch; R a stopped training goes on; T speed of training with Llama-2-7B's
layers; S scoring and generation; D copies and hashes. A stage that fails says so and the next goes on; one that would
begin too late is skipped. Each result is a line of JSON on stdout and in FOLDER/gpu.jsonl.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from massive_sft.core.errors import Interrupted
from massive_sft.core.fingerprint import hash_file
from massive_sft.data.samples import Samples
from massive_sft.evaluation.encoding import RequestEncoder
from massive_sft.evaluation.generate import Generator
from massive_sft.evaluation.requests import Generation, Likelihood
from massive_sft.evaluation.scorer import PlainScorer
from massive_sft.ledger.attempt import Attempt
from massive_sft.ledger.lease import LeaseWatch
from massive_sft.ledger.storage import Folder
from massive_sft.models.snapshots import load_for_scoring
from massive_sft.sweep.schema import Dataset, Model, Schedule, Setting
from massive_sft.sweep.spec import Layout, Mixture, Part, TrainingSpec
from massive_sft.training.checkpoints.disk import CheckpointStore
from massive_sft.training.events import Event, StepDone
from massive_sft.training.loop import train_trajectory
from massive_sft.training.summary import TrainingSummary
from massive_sft.training.trainer import TrajectoryTrainer

LIBRARIES = ("torch", "transformers", "peft", "deepspeed", "triton", "safetensors", "numpy")
PEAK_FLOPS = 989e12  # of an H100 SXM and an H200: dense bf16, by their data sheets
TINY = {
    "vocab_size": 512, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.1,
}  # fmt: skip
# Layers of a 7B model and of an 8B one with a large vocabulary.
LLAMA_2 = {
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32,
    "num_key_value_heads": 32, "max_position_embeddings": 4096,
}  # fmt: skip
LLAMA_3 = {
    "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32,
    "num_key_value_heads": 8, "max_position_embeddings": 8192,
}  # fmt: skip


@dataclass
class Check:
    """What all stages share.

    Attributes:
        gpu: False for tiny sizes on the CPU.
        folder: for models and trainings.
        out: where results are written.
        until: when to end, by ``time.monotonic``.
    """

    gpu: bool
    folder: Path
    out: Path
    until: float
    began: float = field(default_factory=time.monotonic)
    stage: str = ""

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if self.gpu else "cpu")

    def tell(self, what: str, **values: object) -> None:
        """Write one result."""
        at = {"t": round(time.monotonic() - self.began, 1), "stage": self.stage, "what": what}
        line = json.dumps({**at, **values}, default=str)
        print(line, flush=True)
        with self.out.open("a") as file:
            file.write(line + "\n")

    def attempt(self, what: str, run: Callable[[], dict[str, object]]) -> None:
        """Tell what ``run`` returns, or how it failed; nothing is begun after the end."""
        if time.monotonic() > self.until:
            self.tell(what, skipped="too late")
            return
        self.free()
        try:
            self.tell(what, **run())
        except Exception as error:  # noqa: BLE001 - the next one must run
            traceback.print_exc()
            self.tell(what, failed=f"{type(error).__name__}: {error}"[:300])
        finally:
            self.free()

    def free(self) -> None:
        if self.gpu:
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def seconds(self, call: Callable[[], object], repeats: int = 10, warm: int = 3) -> float:
        """Return the median seconds of a call."""
        found = []
        for turn in range(warm + repeats):
            self.wait()
            began = time.perf_counter()
            call()
            self.wait()
            found += [time.perf_counter() - began] if turn >= warm else []
        return median(found)

    def wait(self) -> None:
        if self.gpu:
            torch.cuda.synchronize()

    def peak(self) -> float:
        """Return the most bytes reserved since ``free``, in GB."""
        return round(torch.cuda.max_memory_reserved() / 1e9, 1) if self.gpu else 0.0

    def base(self, name: str, **config: Any) -> Path:
        """Return the folder of a random Llama in bf16, written once."""
        folder = self.folder / name
        if not folder.exists():
            torch.manual_seed(0)
            fixed = {"tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
            with torch.device(self.device):
                LlamaForCausalLM(LlamaConfig(**{**fixed, **config})).bfloat16().save_pretrained(folder)
            self.free()
        return folder


# The machine


def measure_machine(check: Check) -> None:
    check.tell("versions", **{name: _version(name) for name in LIBRARIES})
    if check.gpu:
        check.tell("card", name=torch.cuda.get_device_name(), bytes=torch.cuda.get_device_properties(0).total_memory)
    for rows, inner, columns in ((8192, 8192, 8192), (16384, 4096, 11008), (4096, 4096, 11008)):
        sizes = (rows, inner, columns) if check.gpu else (64, 64, 64)
        check.attempt("x".join(map(str, sizes)), lambda sizes=sizes: _matmul(check, *sizes))
    check.attempt("copy on the device", lambda: _copy(check))
    fused = (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)
    for backend in fused if check.gpu else fused[:1]:  # a CPU has the first alone
        check.attempt(f"causal {backend.name}", lambda backend=backend: _attention(check, backend))
    check.attempt("AdamW beyond 2**31 numbers", lambda: _large_update(check))


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _matmul(check: Check, rows: int, inner: int, columns: int) -> dict[str, object]:
    a = torch.randn(rows, inner, device=check.device, dtype=torch.bfloat16)
    b = torch.randn(columns, inner, device=check.device, dtype=torch.bfloat16)
    return {"tflops": round(2 * rows * inner * columns / check.seconds(lambda: functional.linear(a, b)) / 1e12, 1)}


def _copy(check: Check) -> dict[str, object]:
    source = torch.randn(2**28 if check.gpu else 2**18, device=check.device)
    target = torch.empty_like(source)
    return {"tb_per_s": round(8 * source.numel() / check.seconds(lambda: target.copy_(source)) / 1e12, 2)}


def _attention(check: Check, backend: SDPBackend) -> dict[str, object]:
    heads, length, width = (32, 4096, 128) if check.gpu else (2, 64, 16)
    shape = (1, heads, length, width)
    q, k, v = (torch.randn(shape, device=check.device, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))

    def both() -> None:
        functional.scaled_dot_product_attention(q, k, v, is_causal=True).sum().backward()

    with sdpa_kernel(backend):
        seconds = check.seconds(both)
    return {"tflops": round(3.5 * 2 * heads * width * length**2 / seconds / 1e12, 1)}


def _large_update(check: Check) -> dict[str, object]:
    """One flat tensor of more than 2**31 numbers, as ZeRO has of a 7B model on one GPU."""
    weight = torch.zeros(2**31 + 4096 if check.gpu else 4096, device=check.device, requires_grad=True)
    weight.grad = torch.ones_like(weight)
    torch.optim.AdamW([weight], lr=1.0, weight_decay=0.0, fused=True).step()
    return {"ok": bool((weight.detach()[-8:] < -0.9).all() and (weight.detach()[:8] < -0.9).all())}


# Trainings


def make_samples(lengths: Sequence[int], vocabulary: int, prompt: float = 0.3) -> Samples:
    """Return samples of random tokens; the first ``prompt`` of each are not trained on."""
    rng = np.random.default_rng(0)
    trainable = [np.arange(length) >= max(1, int(prompt * length)) for length in lengths]
    return Samples(
        tokens=rng.integers(3, vocabulary, sum(lengths)).astype(np.int32),
        trainable=np.concatenate(trainable),
        offsets=np.cumsum([0, *lengths]).astype(np.int64),
        part=np.zeros(len(lengths), np.int16),
        row=np.arange(len(lengths)),
        text_bytes=np.ones((len(lengths), 2), np.int64),
    )


def mixed_lengths(count: int, typical: int, longest: int) -> list[int]:
    """Return log-normal lengths, as real instruction data has."""
    drawn = np.random.default_rng(0).lognormal(np.log(typical), 0.8, count)
    return np.clip(drawn, 16, longest).astype(int).tolist()


def make_spec(check: Check, base: Path, layout: dict[str, Any], epochs: int = 1, **setting: Any) -> TrainingSpec:
    part = Part(name="made", dataset=Dataset(path="made.jsonl", format="gsm8k"), count=None)
    values = {"method": "full", "lr": 1e-5, "batch": 8, "precision": "bf16", "max_length": 4096, **setting}
    return TrainingSpec(
        trajectory="0123456789abcdef",
        model=Model(path=str(base)),
        mixture=Mixture(name="made", parts=(part,)),
        setting=Setting(**values),
        schedule=Schedule(name="constant"),
        horizon=epochs,
        snapshots=(epochs,),
        layout=Layout(**{"gpus": int(check.gpu), **layout}),
    )


def train(check: Check, spec: TrainingSpec, samples: Samples) -> tuple[TrainingSummary, list[StepDone]]:
    """Train in a folder that is removed; return the summary and the steps."""
    events: list[Event] = []
    with tempfile.TemporaryDirectory(dir=check.folder) as folder:
        summary = train_trajectory(spec, samples, Path(folder) / "run", events.append)
    return summary, [event for event in events if isinstance(event, StepDone)]


LAYOUTS: list[dict[str, Any]] = [
    {}, {"zero": 0}, {"zero": 1}, {"zero": 2}, {"zero": 3}, {"gradient_checkpointing": True}, {"packing": True},
    {"zero": 1, "offload": "optimizer"}, {"micro_batch": 2}, {"packing": True, "attention": "sdpa"},
    {"zero": 3, "packing": True, "gradient_checkpointing": True}, {"gradient_checkpointing": "selective"},
]  # fmt: skip
COMPILED: list[dict[str, Any]] = [  # on a GPU alone: a CPU compiles for minutes
    {"kernels": "compiled", **rest}
    for rest in ({}, {"zero": 1}, {"packing": True}, {"gradient_checkpointing": True, "micro_batch": 1})
]


def compare_layouts(check: Check) -> None:
    base = check.base("tiny", **TINY)
    samples = make_samples(mixed_lengths(24, 80, 200), 512)
    reference: dict[tuple[str, str], list[float]] = {}
    for precision, method in (("fp32", "full"), ("bf16", "full"), ("bf16", "lora")):
        tolerance = 1e-4 if precision == "fp32" else 3e-2
        for layout in LAYOUTS + (COMPILED if check.gpu else []):
            if precision == "bf16" and layout.get("zero") == 0:
                continue
            spec = make_spec(check, base, layout, 2, precision=precision, method=method, lr=1e-3)

            def compare(
                spec: TrainingSpec = spec, key: tuple[str, str] = (precision, method), tolerance: float = tolerance
            ) -> dict[str, object]:
                summary, steps = train(check, spec, samples)
                losses = [step.loss for step in steps]
                first = reference.setdefault(key, losses)
                worst = max(abs(one - other) for one, other in zip(first, losses, strict=True))
                return {"ok": worst < tolerance, "worst": worst, "attention": summary.attention, "held": _held(check)}

            check.attempt(f"{precision} {method} {layout}", compare)
    if check.gpu:
        for layout in ({}, {"zero": 1}, {"zero": 2}, {"zero": 3}, {"kernels": "compiled"}):
            check.attempt(
                f"lack of memory halves the micro-batch {layout}", lambda layout=layout: _halve(check, base, layout)
            )


def _held(check: Check) -> float:
    """Return the GB that tensors hold after a training: what it should have given back."""
    check.free()
    return round(torch.cuda.memory_allocated() / 1e9, 3) if check.gpu else 0.0


def _halve(check: Check, base: Path, layout: dict[str, Any]) -> dict[str, object]:
    """64 samples of 500 tokens, in 0.6 of the memory that they take at once."""
    spec = make_spec(check, base, {"micro_batch": 64, **layout}, batch=64)
    samples = make_samples([500] * 64, 512)
    train(check, spec, samples)
    most = torch.cuda.max_memory_reserved()
    check.free()
    torch.cuda.set_per_process_memory_fraction(0.6 * most / torch.cuda.get_device_properties(0).total_memory)
    try:
        summary, steps = train(check, spec, samples)
        return {"ok": summary.micro_batch["samples"] < 64, "micro_batch": summary.micro_batch, "loss": steps[-1].loss}
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def stop_and_resume(check: Check) -> None:
    base = check.base("tiny", **TINY)
    samples = make_samples(mixed_lengths(24, 80, 200), 512)
    cases: list[tuple[dict[str, Any], str]] = [({}, "full"), ({}, "lora"), ({"zero": 1}, "full"), ({"zero": 3}, "full")]
    for layout, method in cases + ([({"kernels": "compiled"}, "full")] if check.gpu else []):
        spec = make_spec(check, base, layout, 3, method=method, lr=1e-3)
        check.attempt(f"{method} {layout}", lambda spec=spec: _resume(check, spec, samples))


def _resume(check: Check, spec: TrainingSpec, samples: Samples) -> dict[str, object]:
    _, undisturbed = train(check, spec, samples)
    events: list[Event] = []

    def losses() -> list[float]:
        return [event.loss for event in events if isinstance(event, StepDone)]

    home = Path(tempfile.mkdtemp(dir=check.folder))
    for stop_at in (4, None):
        attempt = Attempt.begin(home.name, Folder(home), "check", LeaseWatch())
        assert attempt is not None
        store = CheckpointStore(attempt.storage, attempt.claim)
        with attempt:
            try:
                train_trajectory(
                    spec, samples, attempt.folder, events.append, store, lambda at=stop_at: len(losses()) == at
                )
            except Interrupted:
                continue
    worst = max(abs(one - other.loss) for one, other in zip(losses(), undisturbed, strict=True))
    return {"ok": len(losses()) == len(undisturbed) and worst < 2e-2, "worst": worst}


# Speed of training


def flops_per_token(config: dict[str, Any], length: int, method: str) -> float:
    """Return the operations of a token: 2 a weight that is multiplied, causal attention; thrice, of LoRA twice."""
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    keys = 2 * config["num_key_value_heads"] * hidden // config["num_attention_heads"]
    layer = hidden * (2 * hidden + keys) + 3 * hidden * config["intermediate_size"]
    weights = layers * layer + config["vocab_size"] * hidden
    return (3 if method == "full" else 2) * (2.0 * weights + 2.0 * layers * hidden * length)


def measure_training(check: Check) -> None:
    memory = torch.cuda.get_device_properties(0).total_memory if check.gpu else 0
    # As many layers as leave room for activations beside 18 bytes a weight; the arithmetic of one is the same.
    full = {**LLAMA_2, "num_hidden_layers": 26 if memory > 130e9 else 12} if check.gpu else TINY
    lora = {**LLAMA_3, "num_hidden_layers": 32} if check.gpu else TINY
    length = 4096 if check.gpu else 64
    whole, long = [length] * (32 if check.gpu else 8), [length // 2] * (64 if check.gpu else 32)
    mixed = mixed_lengths(128 if check.gpu else 32, 350 if check.gpu else 20, 2048 if check.gpu else 60)
    few = {"micro_batch": 1}
    compiled = {"kernels": "compiled"}
    for name, config, layout, method, lengths in (
        ("full", full, {}, "full", whole),
        ("full", full, compiled, "full", whole),
        ("full", full, few, "full", whole),
        ("full", full, {"zero": 1, "gradient_checkpointing": True, "micro_batch": 1}, "full", whole),
        ("full, mixed lengths", full, {}, "full", mixed),
        ("full, mixed lengths", full, {"packing": True}, "full", mixed),
        ("full, mixed lengths", full, {"packing": True, **compiled}, "full", mixed),
        ("LoRA", lora, {}, "lora", long),
        ("LoRA", lora, compiled, "lora", long),
        ("LoRA, mixed lengths", lora, {}, "lora", mixed),
        ("LoRA, mixed lengths", lora, {"packing": True}, "lora", mixed),
        ("LoRA, mixed lengths", lora, {"packing": True, **compiled}, "lora", mixed),
    ):
        if layout.get("kernels") == "compiled" and not check.gpu:  # a CPU compiles for minutes
            continue
        base = check.base(f"{method}-base", **config)
        batch = 8 if lengths is whole else 32
        spec = make_spec(check, base, layout, method=method, batch=batch)
        samples = make_samples(lengths, config["vocab_size"], prompt=0.0 if lengths is whole else 0.3)
        check.attempt(f"{name} {layout}", lambda spec=spec, s=samples, c=config: _speed(check, spec, s, c))


def _speed(check: Check, spec: TrainingSpec, samples: Samples, config: dict[str, Any]) -> dict[str, object]:
    began = time.perf_counter()
    with mock.patch.object(TrajectoryTrainer, "_begin_snapshot"):  # seconds of hashing that stage D tells of
        summary, steps = train(check, spec, samples)
    whole = time.perf_counter() - began
    late = steps[1:] or steps  # the first compiles and chooses kernels
    tokens = sum(step.tokens for step in late) / sum(step.seconds for step in late)
    work = flops_per_token(config, int(samples.lengths.mean()), spec.setting.method)
    return {
        "tokens_per_second": round(tokens), "mfu": round(tokens * work / PEAK_FLOPS, 3), "peak_gb": check.peak(),
        "parameters": summary.parameters, "micro_batch": summary.micro_batch, "attention": summary.attention,
        "kernels": summary.kernels, "steps": [round(step.seconds, 2) for step in steps], "all_seconds": round(whole, 1),
        "losses": [round(step.loss, 3) for step in steps][:3],
    }  # fmt: skip


# Scoring


def byte_tokenizer() -> PreTrainedTokenizerFast:
    names = ["<s>", "</s>", "<pad>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    raw = Tokenizer(models.BPE(vocab={name: place for place, name in enumerate(names)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def measure_scoring(check: Check) -> None:
    config = {**LLAMA_2, "num_hidden_layers": 12} if check.gpu else TINY
    model = load_for_scoring(Model(path=str(check.base("scored", **config))), None, "bf16", device=check.device)
    tokenizer = byte_tokenizer()
    rng = random.Random(0)

    def text(length: int) -> str:
        return "".join(rng.choices("abcdefghij klmnop", k=length))

    shots, question, choice, questions = (600, 110, 8, 128) if check.gpu else (40, 10, 3, 4)
    prefix = text(shots)
    asked = [
        Likelihood(4 * number + place, number, place, "", 1, prefix + asks, option)
        for number in range(questions)
        for asks in [text(question)]
        for place, option in enumerate(text(choice) for _ in range(4))
    ]
    tokens = len(asked) * (shots + question + choice)

    def score() -> dict[str, object]:
        began = time.perf_counter()
        PlainScorer(model, tokenizer, 2048).score(asked)
        check.wait()
        seconds = time.perf_counter() - began
        return {"seconds": round(seconds, 2), "tokens_per_second": round(tokens / seconds), "peak_gb": check.peak()}

    check.attempt("likelihoods, 5-shot multiple choice", score)
    limit = 128 if check.gpu else 4
    prompts = [
        Generation(number, number, 0, "", 1, text(rng.randint(50, 150)), ("\n\n\n",), limit)
        for number in range(512 if check.gpu else 4)
    ]

    def answer(budget: int) -> dict[str, object]:
        part = prompts[: 128 if budget == 16384 else None]
        began = time.perf_counter()
        generator = Generator(model, tokenizer, RequestEncoder(tokenizer), [1], 2048, budget)
        made, _ = generator.generate(part)
        check.wait()
        seconds = time.perf_counter() - began
        return {"tokens_per_second": round(sum(one.tokens for one in made) / seconds), "peak_gb": check.peak()}

    for budget in (16384, 131072) if check.gpu else (512,):
        check.attempt(f"answers, budget {budget} tokens", lambda budget=budget: answer(budget))


# Copies and hashes


def measure_disk(check: Check) -> None:
    (file, *_) = sorted(check.base("tiny" if not check.gpu else "scored", **TINY).glob("*.safetensors"))
    size = file.stat().st_size / 1e9

    def gigabytes_per_second(call: Callable[[], object], amount: float) -> dict[str, object]:
        return {"gb_per_s": round(amount / check.seconds(call, 3, 1), 2)}

    check.attempt("SHA-256 of a file", lambda: gigabytes_per_second(lambda: hash_file(file), size))
    check.attempt(
        "copy of a file", lambda: gigabytes_per_second(lambda: shutil.copyfile(file, check.folder / "copy"), size)
    )
    if check.gpu:
        source = torch.empty(2**30, dtype=torch.uint8, device=check.device)
        pinned = torch.empty(2**30, dtype=torch.uint8, pin_memory=True)
        kept = torch.zeros(2**30, dtype=torch.uint8)
        amount = 2**30 / 1e9
        check.attempt("to new host memory", lambda: gigabytes_per_second(source.cpu, amount))
        check.attempt("to host memory in use", lambda: gigabytes_per_second(lambda: kept.copy_(source), amount))
        check.attempt("to pinned memory", lambda: gigabytes_per_second(lambda: pinned.copy_(source), amount))


STAGES: dict[str, Callable[[Check], None]] = {
    "M": measure_machine,
    "L": compare_layouts,
    "R": stop_and_resume,
    "T": measure_training,
    "S": measure_scoring,
    "D": measure_disk,
}


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where results are written")
    parser.add_argument("--dry", action="store_true", help="tiny sizes on the CPU")
    parser.add_argument("--only", default="".join(STAGES), help="letters of stages")
    parser.add_argument("--seconds", type=float, default=460.0, help="nothing is begun after these")
    arguments = parser.parse_args(given)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        until = time.monotonic() + arguments.seconds
        check = Check(not arguments.dry, Path(folder), arguments.folder / "gpu.jsonl", until)
        for letter in arguments.only:
            check.stage = letter
            try:
                STAGES[letter](check)
            except Exception as error:  # noqa: BLE001 - the next stage must run
                traceback.print_exc()
                check.tell("FAILED", error=f"{type(error).__name__}: {error}"[:300])
            check.free()


if __name__ == "__main__":
    main()
