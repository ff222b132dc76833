"""ONNX files of others: opened the one way that reads nothing but the file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

MAX_ONNX_BYTES = (1 << 31) - 1  # bytes; protobuf has no longer message


def open_onnx_session(file: Path, what: str, providers: Sequence[str] = ("CPUExecutionProvider",)) -> Any:
    """A session of one thread with one input, on the first of ``providers`` that is there.

    ValueError, saying ``what`` the file was to be: no onnxruntime, no such file, not a whole model.
    """
    try:
        import onnxruntime
    except ImportError as missing:
        raise ValueError(f"{file}: needs onnxruntime: pip install onnxruntime") from missing
    if not file.is_file() or file.stat().st_size > MAX_ONNX_BYTES:
        raise ValueError(f"{file}: {what} must be an .onnx file of at most 2 GiB")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what goes wrong is raised
    have = [name for name in providers if name in onnxruntime.get_available_providers()]
    try:
        # From bytes: a model that was read from a path may name other files to be read.
        session = onnxruntime.InferenceSession(file.read_bytes(), options, providers=have)
    except Exception as broken:  # its errors have no class in common
        raise ValueError(f"{file}: must be an ONNX model without external data: {broken}") from broken
    if len(session.get_inputs()) != 1:
        raise ValueError(f"{file}: {what} must have one input: got {len(session.get_inputs())}")
    return session
