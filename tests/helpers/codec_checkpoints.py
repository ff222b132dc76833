"""Codec folders with random weights, each in its kind's own format: everything runs, nothing sounds like speech."""

import json
from pathlib import Path

import numpy as np
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


GLM4 = {  # the published config.json, but for its sizes
    "activation_function": "gelu",
    "architectures": ["WhisperVQEncoder"],
    "d_model": 16,
    "encoder_attention_heads": 2,
    "encoder_causal_attention": False,
    "encoder_causal_convolution": True,
    "encoder_ffn_dim": 24,
    "encoder_layers": 4,
    "max_source_positions": 1500,
    "model_type": "whisper",
    "num_mel_bins": 12,
    "pooling_kernel_size": 4,
    "pooling_position": 2,
    "pooling_type": "avg",
    "quantize_causal_block_size": 20,
    "quantize_causal_encoder": False,
    "quantize_encoder_only": True,
    "quantize_position": 2,
    "quantize_vocab_size": 64,
    "torch_dtype": "float32",
}
EXTRACTOR = {
    "chunk_length": 30,
    "feature_extractor_type": "WhisperFeatureExtractor",
    "feature_size": 12,
    "hop_length": 160,
    "n_fft": 400,
    "n_samples": 480_000,
    "padding_side": "right",
    "padding_value": 0.0,
    "sampling_rate": 16_000,
}


def write_glm4_tokenizer(path: Path, codes: int = 64, prefix: str = "") -> Path:
    """A folder as glm-4-voice-tokenizer, of two layers. ``prefix``: of its tensors' names."""
    from safetensors.torch import save_file

    from speech.codecs.whisper_vq_model import WhisperVQEncoder

    path.mkdir(parents=True)
    config = GLM4 | {"quantize_vocab_size": codes}
    (path / "config.json").write_text(json.dumps(config))
    (path / "preprocessor_config.json").write_text(json.dumps(EXTRACTOR))
    random = torch.Generator().manual_seed(0)
    model = WhisperVQEncoder(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=random) * 0.5)
        features = torch.randn(codes, 12, 40, generator=random)
        heard = model.pool_features(features, torch.ones(codes, 40, dtype=torch.bool))
        model.codebook.weight.copy_(heard[:, 2])  # entries that some sound is near to
    tensors = {f"{prefix}{name}": tensor.contiguous() for name, tensor in model.state_dict().items()}
    width = config["d_model"]
    extra = {  # what the published file has and nobody needs to encode
        "ema_count": torch.ones(codes),
        "ema_weight": torch.zeros(codes, width),
        "embed_positions2.weight": torch.zeros(375, width),
    }
    save_file(tensors | {f"{prefix}{name}": tensor for name, tensor in extra.items()}, path / "model.safetensors")
    return path


def write_decoder(
    path: Path,
    codes: int = 64,
    sample_rate: int = 22_050,
    frame_rate: float = 12.5,
    samples: int = 1764,
    metadata: dict[str, str] | None = None,
) -> Path:
    """An ONNX decoder that speaks each code as ``samples`` of a tone of its own."""
    from onnx import TensorProto, helper, numpy_helper

    time = np.arange(samples) / sample_rate
    book = np.stack([np.sin(2 * np.pi * (100 + 20 * code) * time) / 4 for code in range(codes)])
    nodes = [
        helper.make_node("Gather", ["book", "codes"], ["frames"]),
        helper.make_node("Reshape", ["frames", "flat"], ["wave"]),
    ]
    tables = [
        numpy_helper.from_array(book.astype(np.float32), "book"),
        numpy_helper.from_array(np.array([1, -1]), "flat"),
    ]
    return _save(
        path,
        nodes,
        tables,
        helper.make_tensor_value_info("codes", TensorProto.INT64, [1, "T"]),
        helper.make_tensor_value_info("wave", TensorProto.FLOAT, [1, "N"]),
        {"sample_rate": str(sample_rate), "frame_rate": str(frame_rate)} if metadata is None else metadata,
    )


def write_encoder(path: Path, codes: int = 64, sample_rate: int = 16_000, samples: int = 640) -> Path:
    """An ONNX encoder that calls ``samples`` by the size of their first one."""
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("Reshape", ["wave", "blocks"], ["rows"]),
        helper.make_node("Gather", ["rows", "first"], ["heads"], axis=1),
        helper.make_node("Abs", ["heads"], ["sizes"]),
        helper.make_node("Mul", ["sizes", "scale"], ["levels"]),
        helper.make_node("Cast", ["levels"], ["whole"], to=TensorProto.INT64),
        helper.make_node("Reshape", ["whole", "flat"], ["codes"]),
    ]
    tables = [
        numpy_helper.from_array(np.array([-1, samples]), "blocks"),
        numpy_helper.from_array(np.array([0]), "first"),
        numpy_helper.from_array(np.array(codes - 1, np.float32), "scale"),
        numpy_helper.from_array(np.array([1, -1]), "flat"),
    ]
    return _save(
        path,
        nodes,
        tables,
        helper.make_tensor_value_info("wave", TensorProto.FLOAT, [1, "N"]),
        helper.make_tensor_value_info("codes", TensorProto.INT64, [1, "T"]),
        {"sample_rate": str(sample_rate), "frame_rate": str(sample_rate / samples), "size": str(codes)},
    )


def _save(path: Path, nodes: list, tables: list, source: object, target: object, metadata: dict[str, str]) -> Path:  # type: ignore[type-arg]
    from onnx import helper

    graph = helper.make_graph(nodes, "half of a codec", [source], [target], tables)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, metadata)
    path.write_bytes(model.SerializeToString())
    return path


def write_glm4_codec(path: Path, codes: int = 64) -> Path:
    """GLM-4-Voice's tokenizer, and a decoder in an ONNX file beside it."""
    write_glm4_tokenizer(path, codes)
    write_decoder(path / "decoder.onnx", codes)
    return path
