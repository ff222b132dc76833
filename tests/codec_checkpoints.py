"""Codec folders with random weights, each in its kind's own format: everything runs, nothing sounds like speech."""

from pathlib import Path

import torch


def write_residual(path: Path, kind: str) -> Path:
    """A codec of transformers with 64 codes in its first book: mimi, encodec or dac."""
    from transformers import AutoConfig, AutoModel

    settings = {
        "mimi": {
            "hidden_size": 32,
            "num_filters": 4,
            "codebook_size": 64,
            "codebook_dim": 16,
            "vector_quantization_hidden_dimension": 16,
            "num_quantizers": 4,
            "num_hidden_layers": 1,
            "intermediate_size": 32,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "upsample_groups": 32,
        },
        "encodec": {"hidden_size": 16, "num_filters": 2, "codebook_size": 64, "num_lstm_layers": 1},
        "dac": {
            "encoder_hidden_size": 2,
            "decoder_hidden_size": 32,
            "n_codebooks": 2,
            "codebook_size": 64,
            "codebook_dim": 4,
        },
    }
    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model(kind, **settings[kind]))
    for name, buffer in model.named_buffers():  # the books start as zeros: all codes alike
        if name.endswith(("embed_sum", ".embed")):
            torch.nn.init.normal_(buffer)
    for name, weight in model.named_parameters():  # else a random encoder hears hardly anything
        if name.startswith("encoder.") and name.endswith("original0"):
            weight.data *= 4
    model.save_pretrained(path)
    return path
