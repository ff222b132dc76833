"""A Whisper checkpoint small enough to make anew in every test session: random weights, letters for words."""

import json
from pathlib import Path

import torch
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

SPECIALS = (
    "<|endoftext|>",
    "<|startoftranscript|>",
    "<|en|>",
    "<|translate|>",
    "<|transcribe|>",
    "<|startoflm|>",
    "<|startofprev|>",
    "<|nospeech|>",
    "<|notimestamps|>",
)
SAID = (*"abcdefghijklmnopqrstuvwxyz", "\u0120", "<|endoftext|>")  # all that it ever says; \u0120 is a blank
STAMPS = tuple(f"<|{step * 0.02:.2f}|>" for step in range(1501))


def write_micro_whisper(path: Path, seed: int = 0, length: int = 24) -> Path:
    """Write a multilingual checkpoint below ``path`` and return it; it says at most ``length`` tokens."""
    path.mkdir(parents=True, exist_ok=True)
    letters = list(bytes_to_unicode().values())
    ids = {token: index for index, token in enumerate([*letters, *SPECIALS, *STAMPS])}
    tokenizer = WhisperTokenizer(vocab={letter: ids[letter] for letter in [*letters, "<|endoftext|>"]}, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIALS[1:])})
    tokenizer.add_tokens(list(STAMPS))
    assert all(tokenizer.convert_tokens_to_ids(token) == index for token, index in ids.items())
    tokenizer.save_pretrained(path)
    WhisperFeatureExtractor(feature_size=80).save_pretrained(path)
    torch.manual_seed(seed)
    start, end = ids["<|startoftranscript|>"], ids["<|endoftext|>"]
    model = WhisperForConditionalGeneration(
        WhisperConfig(
            vocab_size=len(ids),
            d_model=32,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=64,
            decoder_ffn_dim=64,
            decoder_start_token_id=start,
            bos_token_id=end,
            eos_token_id=end,
            pad_token_id=end,
            init_std=0.6,  # else it says the same of every sound
        )
    )
    model.generation_config = GenerationConfig(
        decoder_start_token_id=start,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        max_length=length,
        is_multilingual=True,
        lang_to_id={"<|en|>": ids["<|en|>"]},
        task_to_id={"translate": ids["<|translate|>"], "transcribe": ids["<|transcribe|>"]},
        no_timestamps_token_id=ids["<|notimestamps|>"],
        suppress_tokens=[index for token, index in ids.items() if token not in SAID],
    )
    model.save_pretrained(path)
    assert json.loads((path / "config.json").read_text())["model_type"] == "whisper"
    return path
