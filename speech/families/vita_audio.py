"""VITA-Audio (Balance, Boost, Plus): Qwen2.5 with GLM-4-Voice's codes in its vocabulary.

    prompt   <|im_start|>user\\n <|begin_of_audio|> audio <|end_of_audio|> <|im_end|>\\n
             <|im_start|>assistant\\n
    reply    (text+ <|begin_of_audio|> code+ <|end_of_audio|>)+ <|im_end|>

``audio`` is codes, or, in the Plus models, a SenseVoice encoder's vectors at <|context_of_audio|>; a reply is
codes in all of them. The last ``num_nextn_predict_layers`` layers (MCTP) predict several tokens at once:
engines sample from the main head alone and do not have them, and the learner only with model.mtp=trained.
Sources: docs/models/vita_audio.md.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from conf.schema import ModelConfig
from speech.checkpoints.folder import count_stored_layers, read_json
from speech.checkpoints.qwen2 import read_decoder
from speech.checkpoints.tensor_names import TensorNameMap
from speech.families.base import (
    AudioEncoder,
    EncodePastReply,
    Family,
    add_system_turn,
    codes_to_ids,
    read_embedding_rows,
)
from speech.features import AudioFeatures, EncodedPrompt
from speech.grammar.channels import ChannelMap
from speech.grammar.interleave import ChunkPattern, Interleave
from speech.turns import Role, Turn
from speech.vocabulary import Vocabulary

OPTIONS = ("system", "ear", "ratios", "mtp")
CODES_MODEL_TYPE, VECTORS_MODEL_TYPE = "qwen2_mtp", "qwen2_mtp_sensevoice"  # model_type of the released checkpoints
VITA_SYSTEM_PROMPT = "Your Name: Luke\nYour Gender: male\n\nRespond in a text-audio interleaved manner."
VOICE_PROMPT = "Your Voice: "  # before a spoken system turn: a voice to imitate
DEFAULT_RATIOS = (1, 10, 4, 10)  # Boost and Plus; Balance: 1, 4, 3, 8, 4, 10
VITA_CODE_RATE = 12.5
# of the config: read here, of training, and written by its own class, whose model does not read it
VITA_CONFIG_KEYS = ("num_nextn_predict_layers", "mtp_loss_weight", "speech_token_offset")


def load(model: ModelConfig) -> Family:
    """Read config, tokenizer and ratios. ValueError names the file and the rule."""
    path = model.path
    config = read_json(path / "config.json")
    kind = config.get("model_type")
    if kind not in (CODES_MODEL_TYPE, VECTORS_MODEL_TYPE):
        rule = f"model_type must be {CODES_MODEL_TYPE} or {VECTORS_MODEL_TYPE}, a VITA-Audio model's"
        raise ValueError(f"{path / 'config.json'}: {rule}: got {kind}")
    layers, ahead = _read_layer_counts(path / "config.json", config)
    vocabulary = Vocabulary.of_pieces(path / "tokenizer.json")
    rows = read_embedding_rows(path / "config.json", config.get("vocab_size"), vocabulary)
    stop = (vocabulary.special_id("<|im_end|>"), vocabulary.special_id("<|endoftext|>"))
    begin, end = vocabulary.special_id("<|begin_of_audio|>"), vocabulary.special_id("<|end_of_audio|>")
    code_ids = vocabulary.numbered_ids("<|audio_{}|>")
    channels = ChannelMap.build(vocab=rows, text=vocabulary.ordinary, audio=code_ids, boundary=(begin, end), stop=stop)
    if model.mtp == "trained" and not ahead:
        raise ValueError(f"{path / 'config.json'}: model.mtp=trained needs MCTP layers: the model has none")
    decoder_config = {**config, "num_hidden_layers": layers}
    decoder = read_decoder(path / "config.json", decoder_config, others=VITA_CONFIG_KEYS)
    uses_vectors = kind == VECTORS_MODEL_TYPE

    def make_audio_encoder() -> AudioEncoder:
        from speech.encoders import sensevoice  # needs torch, which the learner's driver does not

        return sensevoice.load_sensevoice(path, model.ear or path)

    return Family(
        name="vita_audio",
        path=path,
        vocabulary=vocabulary,
        channels=channels,
        interleave=Interleave("delimited", channels, stop, begin, end, _read_chunk_pattern(model)),
        code_ids=code_ids,
        template=_Template(
            vocabulary, code_ids, VITA_SYSTEM_PROMPT if model.system is None else model.system, uses_vectors
        ),
        target_end="\n",
        backbone=decoder | {"num_nextn_predict_layers": ahead} if model.mtp == "trained" else decoder,
        engine_config=decoder,
        tensor_names=_map_tensor_names(layers, ahead, learns=model.mtp == "trained"),
        module=_import_mtp_class if model.mtp == "trained" else None,
        mtp_depth=ahead if model.mtp == "trained" else 0,
        audio_inputs={"user": "vectors", "system": "vectors"} if uses_vectors else {},
        codec_path=model.codec,
        code_rate=VITA_CODE_RATE,
        make_audio_encoder=make_audio_encoder if uses_vectors else None,
    )


class _Template:
    """ChatML without a default system turn: a turn is one string, an earlier reply what the model says."""

    def __init__(self, vocabulary: Vocabulary, code_ids: Sequence[int], system: str, uses_vectors: bool) -> None:
        self._encode, self._code_ids, self._system = vocabulary.encode, code_ids, system
        self._start, self._stop, self._begin, self._end = (
            vocabulary.special_id(f"<|{name}|>") for name in "im_start im_end begin_of_audio end_of_audio".split()
        )
        self._context = vocabulary.special_id("<|context_of_audio|>") if uses_vectors else None

    def __call__(self, turns: Sequence[Turn], encode_past_reply: EncodePastReply) -> EncodedPrompt:
        turns = add_system_turn(turns, self._system)
        ids: list[int] = []
        features: list[AudioFeatures] = []
        for turn in turns:
            ids += self._open_turn(turn.role)
            voice = turn.role == "system" and turn.is_spoken
            parts = (VOICE_PROMPT, *turn.parts, "\n") if voice else turn.parts
            for part in () if turn.is_interleaved_reply else parts:
                if isinstance(part, str):
                    ids += self._encode(part)
                    continue
                ids.append(self._begin)
                if part.vectors is not None:
                    assert self._context is not None, "vectors are heard by Plus models only"
                    steps = range(len(ids), len(ids) + len(part.vectors))
                    features.append(AudioFeatures(tuple(steps), part.vectors))
                    ids += [self._context] * len(part.vectors)
                ids += [*codes_to_ids(self._code_ids, part.codes or ()), self._end]
            ids += [*(encode_past_reply(turn) if turn.is_interleaved_reply else [self._stop]), *self._encode("\n")]
        return EncodedPrompt((*ids, *self._open_turn("assistant")), AudioFeatures.join_features(features))

    def _open_turn(self, role: Role) -> list[int]:
        return [self._start, *self._encode(role), *self._encode("\n")]


def _read_layer_counts(file: Path, config: Mapping[str, Any]) -> tuple[int, int]:
    """(layers of the decoder, MCTP layers behind them)."""
    whole, ahead = config.get("num_hidden_layers"), config.get("num_nextn_predict_layers", 0)
    if not (isinstance(whole, int) and isinstance(ahead, int) and 0 <= ahead < whole):
        rule = "num_hidden_layers must exceed num_nextn_predict_layers, which it counts"
        raise ValueError(f"{file}: {rule}: got {whole} and {ahead}")
    if whole > (stored := count_stored_layers(file.parent, "model.layers.")):
        raise ValueError(f"{file}: num_hidden_layers must not exceed the weights' {stored}: got {whole}")
    return whole - ahead, ahead


def _map_tensor_names(layers: int, ahead: int, learns: bool) -> TensorNameMap:
    """The decoder's tensors keep their names; the audio encoder and its projector are frozen.

    ``ahead``: the MCTP layers, which the checkpoint numbers behind the decoder's. The learner has them where it
    ``learns`` them; engines never do.
    """
    mctp_layers = "|".join(str(layers + depth) for depth in range(ahead)) or "none"
    mctp = rf"model\.layers\.({mctp_layers})\..*|mtp_.*"
    rules = [
        (pattern, (name,))
        for depth in range(ahead)
        for pattern, name in (
            (rf"model\.layers\.{layers + depth}\.(.*)", rf"ahead.{depth}.layer.\1"),
            (rf"mtp_projs\.{depth}\.(.*)", rf"ahead.{depth}.proj.\1"),
            (rf"mtp_(embed|hidden)_norms\.{depth}\.(.*)", rf"ahead.{depth}.\1_norm.\2"),
        )
    ]
    frozen: list[tuple[str, tuple[str, ...]]] = [(r"model\.(audio_model|audio_projection)\..*", ())]
    mctp_rules = rules if learns else [(mctp, ())]
    return TensorNameMap((*mctp_rules, *frozen), unsampled=mctp if learns else None)


def _import_mtp_class() -> Any:
    from speech.models import vita_audio  # as the ear: only where it is loaded

    return vita_audio.VitaAudioForCausalLM


def _read_chunk_pattern(model: ModelConfig) -> ChunkPattern:
    """(texts, codes) of a reference reply's chunks; the ratios' audio counts include both boundaries."""
    ratios = model.ratios or _read_trained_ratios(model.path) or DEFAULT_RATIOS
    if len(ratios) % 2 or any(audio < 3 for audio in ratios[1::2]):
        rule = "model.ratios must be pairs of a text count and an audio count of at least 3 (boundaries count)"
        raise ValueError(f"{rule}: got {','.join(map(str, ratios))}")
    return tuple((text, audio - 2) for text, audio in zip(ratios[::2], ratios[1::2], strict=True))


def _read_trained_ratios(path: Path) -> tuple[int, ...] | None:
    """The list that training leaves in generation_config.json; None: none, or one that turns MCTP off."""
    file = path / "generation_config.json"
    ratios = read_json(file).get("mtp_inference_mode") if file.is_file() else None
    if ratios is None or (isinstance(ratios, list) and 0 in ratios):
        return None
    if not (isinstance(ratios, list) and all(isinstance(ratio, int) for ratio in ratios)):
        raise ValueError(f"{file}: mtp_inference_mode must be a list of counts: got {ratios}")
    return tuple(ratios)
