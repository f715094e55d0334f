"""Tokenizers for the tests of data: byte-level BPE with a few merges, dressed as real ones are."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<s>", "</s>", "<pad>", "<|turn|>"]
CHAT = (
    "{% for m in messages %}<|turn|>{{ m['role'] }}\n{{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)


def small_tokenizer(template: str | None = None, *, trims: bool = False, bos: bool = True, **special: str | None):
    """Return a fast tokenizer whose post-processor puts ``template`` (e.g. ``<s> $A </s>``) around a text.

    ``trims``: with GPT-2's post-processor, which takes spaces off the offsets. ``special`` overrides named tokens.
    """
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(["Question Answer: Paris Paris the answer"] * 4, trainer)
    if trims:
        backend.post_processor = processors.ByteLevel(trim_offsets=True)
    elif template is not None:
        backend.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[(token, SPECIAL.index(token)) for token in ("<s>", "</s>")]
        )
    named = {"bos_token": "<s>" if bos else None, "eos_token": "</s>", "pad_token": "<pad>", **special}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **named)
