"""Small tokenizers trained on the spot: byte-level and metaspace, with and without BOS."""

import json
from collections.abc import Sequence
from functools import cache
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "The quick brown fox jumps over the lazy dog. Hello world, hello there! How are you today?",
    "user assistant system tool model  two  spaces\n\nlines\nmore lines What is 2+2? It is 4.",
    "name arguments function get_weather city Paris result sunny think thought tool_call",
    "é è ü ñ 你好 😀 café naïve. Yes. No. answer question prompt completion. A B C one two three",
    "ab.\nab.\nab.\nxy>\n\nxy>\n\n",
] * 4

# Every named token that the templates of these tests write.
CHATML = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
LLAMA3 = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
GLM = ["[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|system|>", "<|observation|>"]
GEMMA = ["<bos>", "<start_of_turn>", "<end_of_turn>"]
MISTRAL = ["[INST]", "[/INST]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"]
PLAIN = ["<s>", "</s>", "<unk>"]
THOUGHTS = ["<think>", "</think>", "<tool_call>", "</tool_call>"]
OTHERS = [
    "<|START|>",
    "<|SAY|>",
    "<|SAID|>",
    "<|END|>",
    "<|end|>",
    "<|start|>",
    "<|message|>",
    "<|call|>",
    "<|return|>",
    "[GO]",
    "<|turn>",
    "<turn|>",
    "<|channel>",
    "<channel|>",
    "<|tool_call>",
    "<tool_call|>",
    "<|tool_response>",
    "<tool_response|>",
]
NAMED = [*PLAIN, *CHATML, *LLAMA3, *GLM, *GEMMA, *MISTRAL]
MORE = [*THOUGHTS, *OTHERS]


@cache
def _byte_level(prefix_space: bool = False) -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=alphabet, special_tokens=NAMED, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer.to_str()


@cache
def _metaspace() -> str:
    """Like Llama 2: spaces become ▁, unknown characters their bytes."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=NAMED, show_progress=False)
    ascii_corpus = [t.encode("ascii", "ignore").decode() for t in CORPUS]
    tokenizer.train_from_iterator(ascii_corpus, trainer)
    made = json.loads(tokenizer.to_str())
    vocabulary = made["model"]["vocab"]
    vocabulary |= {f"<0x{b:02X}>": len(vocabulary) + b for b in range(256)}
    return json.dumps(made)


def _wrapped(tokenizer: Tokenizer, bos: bool, eos: bool, template: str | None, **names: str) -> Any:
    bos_token, eos_token = names.pop("bos_token", "<s>"), names.pop("eos_token", "</s>")
    if bos or eos:
        first = f"{bos_token} $A" if bos else "$A"
        single = f"{first} {eos_token}" if eos else first
        ids = [(t, tokenizer.token_to_id(t)) for t in (bos_token, eos_token)]
        added = processors.TemplateProcessing(single=single, special_tokens=ids)
        byte_level = processors.ByteLevel(trim_offsets=False)
        tokenizer.post_processor = processors.Sequence([byte_level, added])
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=bos_token, eos_token=eos_token, **names
    )
    made.pad_token = made.eos_token  # as many models have it
    made.chat_template = template
    return made


def byte_level(
    template: str | None = None, *, bos: bool = False, eos: bool = False, **names: str
) -> Any:
    """Byte-level BPE, as of GPT-2, Llama 3 and Qwen; padded with its end of text."""
    return _wrapped(Tokenizer.from_str(_byte_level()), bos, eos, template, **names)


def metaspace(template: str | None = None, *, bos: bool = True, **names: str) -> Any:
    """SentencePiece-like BPE with byte fallback, as of Llama 2."""
    return _wrapped(Tokenizer.from_str(_metaspace()), bos, False, template, **names)


def more_tokens(template: str | None = None, **how: Any) -> Any:
    """Byte-level, and tokens for thoughts, calls and turns of other families, too."""
    made = byte_level(template, **how)
    made.add_tokens([AddedToken(t, normalized=False) for t in MORE])
    return made


def single_bytes(template: str | None, named: Sequence[str], **names: str) -> Any:
    """Byte-level without a merge: a token for each byte, and the `named` ones."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.model = models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[])
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in named])
    return _wrapped(tokenizer, False, False, template, **names)
