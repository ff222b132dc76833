"""A checkpoint small enough to make anew in every test session; the layout of examples/tiny_world/base.

Random weights and a codec fitted on noise: everything runs on it, nothing it says means anything.
"""

import json
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from speech.codecs.mel import MelCodec

SPECIALS = ("<|pad|>", "<|unk|>", "<|im_start|>", "<|im_end|>", "<|begin_of_audio|>", "<|end_of_audio|>")
ROLES = ("system", "user", "assistant")
NUMBERS = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
sixteen seventeen eighteen nineteen twenty"""
WORDS = (
    *NUMBERS.split(),
    *("what", "is", "plus", "minus", "the", "answer"),
    *("say", "it", "slowly", "loudly"),
)


def write_micro_checkpoint(
    path: Path, layers: int = 2, hidden: int = 64, codes: int = 32, *, tied: bool = True, seed: int = 0
) -> Path:
    """Write weights, config, tokenizer, codec and wavgate.json below ``path`` and return it."""
    tokens = [*SPECIALS, *ROLES, *WORDS, *(f"<|audio_{code}|>" for code in range(codes))]
    _tokenizer(tokens).save_pretrained(path)
    rows = -(-len(tokens) // 64) * 64
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=rows,
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=hidden // 32,
            num_key_value_heads=hidden // 64 or 1,
            max_position_embeddings=512,
            tie_word_embeddings=tied,
            bos_token_id=tokens.index("<|im_start|>"),
            eos_token_id=tokens.index("<|im_end|>"),
            pad_token_id=tokens.index("<|pad|>"),
        )
    )
    model.save_pretrained(path)
    noise = np.random.default_rng(seed).normal(0, 0.1, 1280 * 2 * codes).astype(np.float32)
    MelCodec.fit([noise], size=codes, seed=seed, rounds=2).save(path / "codec.safetensors")
    (path / "wavgate.json").write_text(json.dumps({"family": "tiny", "codec": "codec.safetensors"}))
    return path


def _tokenizer(tokens: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<|unk|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        unk_token="<|unk|>",
        additional_special_tokens=["<|begin_of_audio|>", "<|end_of_audio|>"],
    )
