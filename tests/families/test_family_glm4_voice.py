"""GLM-4-Voice: its prompts are the released demo's, its numbers the remote code's, its files stay as they are."""

import base64
import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import regex
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from conf.schema import ModelConfig
from rollout.loading import load_language_model
from speech.families import load_family
from speech.families.base import Family
from speech.grammar.channels import Channel
from speech.turns import AudioPart, ReplyChunk, Turn
from tests.helpers import micro_glm4_voice as micro

SPEECH = (
    "User will provide you with a speech instruction. Do it step by step. First, think about the instruction"
    " and respond in a interleaved manner, with 13 text token followed by 26 audio tokens. "
)
TEXT = (
    "User will provide you with a text instruction. Do it step by step. First, think about the instruction"
    " and respond in a interleaved manner, with 13 text token followed by 26 audio tokens."
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return micro.write_checkpoint(tmp_path_factory.mktemp("glm") / "base")


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return micro.write_codec(tmp_path_factory.mktemp("glm") / "codec")


@pytest.fixture(scope="module")
def family(checkpoint: Path, codec: Path) -> Family:
    return load(checkpoint, codec=codec)


def load(path: Path, **model: Any) -> Family:
    return load_family(ModelConfig(family="glm4_voice", path=path, max_length=512, **model))


# -- prompts: text of web_demo.py (THUDM/GLM-4-Voice@eb00ce9), ids as tokenization_chatglm.py (glm-4-9b) makes them


def user(text: str) -> Turn:
    return Turn.from_parts("user", text)


def codes(role: Any, *numbers: int) -> Turn:
    return Turn.from_parts(role, AudioPart(codes=numbers))


HEARD = "<|begin_of_audio|><|audio_3|><|audio_31|><|audio_3|><|end_of_audio|>"
OPENING = "<|assistant|>streaming_transcription\n"
CASES: list[tuple[str, str | None, list[Turn], str]] = [
    (
        "a text turn",
        None,
        [user("what's the answer?")],
        f"<|system|>\n{TEXT}<|user|>\nwhat's the answer?{OPENING}",
    ),
    (
        "an audio turn",
        None,
        [codes("user", 3, 31, 3)],
        f"<|system|>\n{SPEECH}<|user|>\n{HEARD}{OPENING}",
    ),
    (
        "written history: the system turn of the first question stays",
        None,
        [user("what is 12345?"), Turn.from_parts("assistant", "the answer\n"), codes("user", 3, 31, 3)],
        f"<|system|>\n{TEXT}<|user|>\nwhat is 12345?{OPENING}the answer<|user|>\n{HEARD}{OPENING}",
    ),
    (
        "spoken history",
        None,
        [codes("user", 3, 31, 3), codes("assistant", 0, 1), user("and then?\n\n你好")],
        f"<|system|>\n{SPEECH}<|user|>\n{HEARD}{OPENING}<|audio_0|><|audio_1|><|user|>\nand then?\n\n你好{OPENING}",
    ),
    (  # the demo sends its input back as one string, words or sound; a mixed one is our own: both, as given
        "words and sound in one turn",
        None,
        [Turn.from_parts("user", "what's the answer?\n\n", AudioPart(codes=(3, 31, 3)), " two")],
        f"<|system|>\n{SPEECH}<|user|>\nwhat's the answer?\n\n{HEARD} two{OPENING}",
    ),
    (  # previous_input_tokens + previous_completion_tokens: the reply without its end
        "a reply of words and sound",
        None,
        [codes("user", 3, 31, 3), Turn.from_parts("assistant", "the answer\n", AudioPart(codes=(0, 1))), user("two")],
        f"<|system|>\n{SPEECH}<|user|>\n{HEARD}{OPENING}the answer<|audio_0|><|audio_1|><|user|>\ntwo{OPENING}",
    ),
    (
        "a long reply of words and sound: 13 texts, 26 codes",
        "",
        [Turn.from_parts("assistant", "the" + " two" * 13, AudioPart(codes=(5,) * 28)), user("two")],
        f"{OPENING}the{' two' * 12}{'<|audio_5|>' * 26} two{'<|audio_5|>' * 2}<|user|>\ntwo{OPENING}",
    ),
    (
        "a row's own system turn",
        None,
        [Turn.from_parts("system", "be  brief. "), user("two")],
        f"<|system|>\nbe  brief. <|user|>\ntwo{OPENING}",
    ),
    (
        "the system turn of the settings",
        "be brief",
        [codes("user", 3, 31, 3)],
        f"<|system|>\nbe brief<|user|>\n{HEARD}{OPENING}",
    ),
    ("no system turn", "", [user("\n two")], f"<|user|>\n\n two{OPENING}"),
]


@pytest.mark.parametrize(("system", "turns", "published"), [case[1:] for case in CASES], ids=[c[0] for c in CASES])
def test_a_prompt_has_the_ids_of_the_released_template(
    checkpoint: Path, system: str | None, turns: list[Turn], published: str
) -> None:
    assert load(checkpoint, system=system).encode_prompt(turns).ids == published_ids(checkpoint, published)


def test_a_prompt_spelled_out_by_hand(checkpoint: Path) -> None:
    pieces = [
        *("[gMASK]", "<sop>", "<|user|>", "\n", "the", " answer", " is", " two", "<|assistant|>"),
        *("stream", "ing", "_", "t", "r", "an", "s", "c", "r", "i", "p", "t", "i", "on", "\n"),
    ]
    ids = {piece.decode("latin-1"): rank for piece, rank in ranks(checkpoint).items()} | added(checkpoint)
    assert load(checkpoint, system="").encode_prompt([user("the answer is two")]).ids == tuple(map(ids.get, pieces))


def test_text_that_spells_a_special_token_is_text(family: Family) -> None:
    ids = family.encode_prompt([user("<|assistant|><|audio_3|>")]).ids
    assert ids.count(added(family.path)["<|assistant|>"]) == 1 and added(family.path)["<|audio_3|>"] not in ids


def published_ids(folder: Path, text: str) -> tuple[int, ...]:
    """Two prefix tokens; added tokens cut the text; the rest is split by the pattern and merged rank by rank."""
    known, merges = added(folder), ranks(folder)
    cut = "(" + "|".join(map(regex.escape, known)) + ")"
    ids = [known["[gMASK]"], known["<sop>"]]
    for part in regex.split(cut, text):
        if part in known:
            ids.append(known[part])
            continue
        words = regex.findall(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
            r"\s*[\r\n]+|\s+(?!\S)|\s+",
            part,
        )
        assert "".join(words) == part
        for word in words:
            pieces = [bytes([byte]) for byte in word.encode()]
            while pairs := [merges[a + b] for a, b in pairwise(pieces) if a + b in merges]:
                for i in range(len(pieces) - 1):
                    if merges.get(pieces[i] + pieces[i + 1]) == min(pairs):
                        pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]
                        break
            ids += [merges[piece] for piece in pieces]
    return tuple(ids)


def ranks(folder: Path) -> dict[bytes, int]:
    lines = (folder / "tokenizer.model").read_text().splitlines()
    return {base64.b64decode(line.split()[0]): int(line.split()[1]) for line in lines}


def added(folder: Path) -> dict[str, int]:
    decoder = json.loads((folder / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    return {token["content"]: int(i) for i, token in decoder.items()}


# -- what an id is, and replies


def test_channels_follow_the_tokenizer(family: Family) -> None:
    ids, (table,) = added(family.path), family.channels.table_SV
    rows = json.loads((family.path / "config.json").read_text())["padded_vocab_size"]
    actual = {channel: set(np.flatnonzero(table == channel).tolist()) for channel in Channel}
    assert actual[Channel.TEXT] == set(ranks(family.path).values())
    assert actual[Channel.AUDIO] == {ids[f"<|audio_{code}|>"] for code in range(micro.CODES)}
    assert actual[Channel.BOUNDARY] == {ids["<|begin_of_audio|>"], ids["<|end_of_audio|>"]}
    assert actual[Channel.STOP] == {ids["<|user|>"], ids["<|endoftext|>"], ids["<|observation|>"]}
    assert len(table) == rows > max(ids.values()) + 1
    assert family.stop_ids[0] == ids["<|user|>"]


def test_the_place_of_the_codes_is_read_from_the_tokenizer(checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "moved")
    file = folder / "tokenizer_config.json"
    content = json.loads(file.read_text())
    first = added(folder)["<|audio_0|>"]
    content["added_tokens_decoder"] = {
        str(int(i) - 3 * (int(i) >= first)): token for i, token in content["added_tokens_decoder"].items()
    }
    file.write_text(json.dumps(content))
    assert load(folder).code_ids == tuple(range(first - 3, first - 3 + micro.CODES))


WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=60)


@given(words=WORDS, data=st.data())
def test_a_target_is_counted_and_comes_apart_again(family: Family, words: str, data: st.DataObject) -> None:
    count = len(family.vocabulary.encode(words))
    least = 26 * ((count - 1) // 13) + 1
    spoken = data.draw(st.lists(st.integers(0, micro.CODES - 1), min_size=least, max_size=least + 60))
    ids = family.encode_target([ReplyChunk(text=words, codes=tuple(spoken))])
    assert regex.fullmatch("(T{13}A{26})*(T{1,13}A+)?E|(T{13}A{26})*T{13}A+E", family.channels.to_letters(ids))
    reply = family.parse_reply(ids)
    assert (reply.text, reply.codes, reply.well_formed) == (words, tuple(spoken), True)
    cut = ids[: data.draw(st.integers(0, len(ids) - 1))]
    part = family.parse_reply(cut)
    assert not part.well_formed and tuple(spoken)[: len(part.codes)] == part.codes


# -- numbers


def test_the_module_computes_what_the_remote_code_computes(family: Family) -> None:
    module = load_language_model(family).double()
    ids = torch.arange(5, 45)[None] * 7 % family.channels.vocab
    with torch.no_grad():
        actual = module(ids).logits[0]
    expected = naive_chatglm(family.path, ids[0])
    assert float((actual - expected).abs().max()) < 1e-5  # norms and angles are float32 there


def naive_chatglm(folder: Path, ids_T: Tensor) -> Tensor:
    """ChatGLM as a sum of its parts, in float64, one head at a time; tensors under the remote code's names."""
    config = json.loads((folder / "config.json").read_text())
    w = {
        name.removeprefix("transformer."): tensor.double()
        for file in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }
    heads, groups, size = (
        config["num_attention_heads"],
        config["multi_query_group_num"],
        config["kv_channels"],
    )

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + config["layernorm_epsilon"]).sqrt() * weight

    def rotate(x_TD: Tensor) -> Tensor:
        """Pairs (0, 1), (2, 3), ... of the first half of a head turn with the position; the rest stays."""
        turned = x_TD.clone()
        for pair in range(size // 4):
            angle = torch.arange(len(x_TD)).double() / (10_000 * config["rope_ratio"]) ** (4 * pair / size)
            a, b = x_TD[:, 2 * pair], x_TD[:, 2 * pair + 1]
            turned[:, 2 * pair] = a * angle.cos() - b * angle.sin()
            turned[:, 2 * pair + 1] = b * angle.cos() + a * angle.sin()
        return turned

    x = w["embedding.word_embeddings.weight"][ids_T]
    future = torch.ones(len(ids_T), len(ids_T)).triu(1).bool()
    for n in range(config["num_layers"]):
        layer = {name.removeprefix(f"encoder.layers.{n}."): one for name, one in w.items()}
        mixed = norm(x, layer["input_layernorm.weight"]) @ layer["self_attention.query_key_value.weight"].T
        parts = (mixed + layer["self_attention.query_key_value.bias"]).split(size, -1)
        queries, keys, values = parts[:heads], parts[heads : heads + groups], parts[heads + groups :]
        seen = []
        for head in range(heads):
            group = head * groups // heads
            scores = rotate(queries[head]) @ rotate(keys[group]).T / size**0.5
            seen.append(scores.masked_fill(future, -torch.inf).softmax(-1) @ values[group])
        x = x + torch.cat(seen, -1) @ layer["self_attention.dense.weight"].T
        gate, up = (norm(x, layer["post_attention_layernorm.weight"]) @ layer["mlp.dense_h_to_4h.weight"].T).chunk(
            2, -1
        )
        x = x + (F.silu(gate) * up) @ layer["mlp.dense_4h_to_h.weight"].T
    return norm(x, w["encoder.final_layernorm.weight"]) @ w["output_layer.weight"].T
