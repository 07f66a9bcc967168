"""Exports of converted students in transformers: the shipped modeling file against the program, generation by state, padding, training."""

import copy
import functools
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import warnings

import torch
from safetensors.torch import load_file, save_file
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

package = sys.modules.get("xlstm")
sys.modules["xlstm"] = None  # transformers' own code is tested, as where the package is not installed; other files of tests need the package
from transformers.models.xlstm import modeling_xlstm  # noqa: E402, F401
del sys.modules["xlstm"]
if package is not None:
    sys.modules["xlstm"] = package

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("DISTIL_XLSTM_BUILD", ROOT / "build/release"))
sys.path.insert(0, str(ROOT / "tests/golden"))
import make_teacher  # noqa: E402

PROGRAM = BUILD / "distil-xlstm"
STORIES = ROOT / "share/models/stories260K"
FOLDER = tempfile.TemporaryDirectory()
os.environ["HF_MODULES_CACHE"] = str(pathlib.Path(FOLDER.name) / "modules")
TINY = dict(vocab_size=512, hidden_size=32, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
            max_position_embeddings=256)
LLAMA3 = dict(rope_type="llama3", rope_theta=500.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=16)
YARN = dict(rope_type="yarn", rope_theta=1e4, factor=4.0, original_max_position_embeddings=64)
# The large block norms heads whose products may nearly cancel, which blows up rounding: a large eps keeps that within bounds.
TAME = dict(rms_norm_eps=1e-2)
# family, what its configuration has beside TINY, settings of the student
CASES = {
    "llama": ("llama", dict(tie_word_embeddings=True), dict(feature_factor=4)),
    "llama with biases": ("llama", dict(attention_bias=True, mlp_bias=True, rope_parameters=LLAMA3), dict(mixers=["gated-delta"])),
    "llama without convolution": ("llama", dict(rope_parameters=dict(rope_type="linear", rope_theta=1e4, factor=3.0)),
                                  dict(conv1d_kernel_size=0, chunk_size=48)),
    "qwen2": ("qwen2", dict(tie_word_embeddings=True, use_sliding_window=False, rope_parameters=YARN),
              dict(mixers=["mlstm", "gated-delta"], feature_factor=4)),
    "llama with norms": ("llama", dict(attention_bias=True, **TAME),
                         dict(mixers=["mlstm", "gated-delta", "xlstm-large"], normalizer="bounded", head_norm=True)),
    "qwen2 without positions": ("qwen2", dict(use_sliding_window=False), dict(rope=False, conv1d_kernel_size=1, mixers=["gated-delta"])),
    "qwen3": ("qwen3", dict(head_dim=6, attention_bias=True), dict(mixers=["gated-delta", "mlstm", "mlstm"], conv1d_kernel_size=3)),
    "llama hybrid": ("llama", dict(attention_bias=True, rope_parameters=LLAMA3), dict(mixers=["attention", "mlstm", "slstm"], rope_max_wavelength=30.0)),
    "qwen2 with a window": ("qwen2", dict(use_sliding_window=False),
                            dict(mixers=["mlstm", "attention"], attention_window=20, attention_sinks=3, rope=False)),
    "qwen3 sLSTM": ("qwen3", dict(head_dim=6, attention_bias=True),
                    dict(mixers=["slstm", "attention", "slstm"], attention_window=31, conv1d_kernel_size=0)),
    "qwen2 with the large block": ("qwen2", dict(use_sliding_window=False, **TAME), dict(mixers=["xlstm-large", "gated-delta"], chunk_size=48)),
    "qwen3 with the large block": ("qwen3", dict(head_dim=6, tie_word_embeddings=True, **TAME),
                                   dict(mixers=["mlstm", "xlstm-large", "xlstm-large"])),
}
# Of the large block alone: an export without code. Heads of 8 and of 6 need idle ones beside them.
LARGE = {
    "large llama": ("llama", dict(tie_word_embeddings=True, **TAME), dict(mixers="xlstm-large")),
    "large llama with biases": ("llama", dict(attention_bias=True, mlp_bias=True, hidden_size=48, intermediate_size=67, num_key_value_heads=1,
                                              **TAME), dict(mixers="xlstm-large", chunk_size=48)),
    "large llama of odd width": ("llama", dict(head_dim=6, mlp_bias=True, **TAME), dict(mixers="xlstm-large", chunk_size=17)),
    "large qwen2": ("qwen2", dict(use_sliding_window=False, hidden_size=64, tie_word_embeddings=True, **TAME), dict(mixers="xlstm-large")),
}
GROWING = ["llama hybrid"]  # whose states do
MIXED = "qwen2"
TOLERANCE = 1e-4  # of logits, relative to their scale; float32


def program(*arguments):
    return subprocess.run([PROGRAM, *map(str, arguments)], check=True, capture_output=True, text=True).stdout


@functools.cache
def run_directory(name):
    """Two steps of method convert on a random teacher."""
    family, settings, student = {**CASES, **LARGE}[name]
    folder = pathlib.Path(FOLDER.name) / name.replace(" ", "-")
    make_teacher.random_model(family, {**TINY, **settings}, seed=3).save_pretrained(folder / "teacher")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(STORIES / file, folder / "teacher")
    card = "---\nlicense: mit\nlanguage: en\n---\nlicense: not-this-one\n"
    (folder / "teacher/README.md").write_text(card)
    given = {"train.device": "cpu", "data.context_length": 64, "train.micro_batch_size": 2, "eval.max_tokens": 512,
             **{f"student.{key}": value for key, value in {"feature_factor": 2, **student}.items()}}
    program("distill", "--preset", "convert", "--teacher", folder / "teacher", "--train", ROOT / "share/demo/tinystories_valid.jsonl", "--output",
            folder / "run", "--max-steps", 2, *[part for key, value in given.items() for part in ("--set", f"{key}={json.dumps(value)}")])
    return folder / "run"


@functools.cache
def exported(name):
    """The run's export with noise in its weights, so that gates, features and convolutions are far from where they start."""
    directory = run_directory(name).parent / "export"
    program("export", "--model", run_directory(name), "--output", directory)
    weights = load_file(directory / "model.safetensors")
    generator = torch.Generator().manual_seed(11)
    for key, tensor in weights.items():
        if ".mixer." in key:
            scale = 0.2 if "conv" in key or "recurrent" in key else 0.3 if tensor.dim() == 2 else 0.7
            weights[key] = tensor + scale * torch.randn(tensor.shape, generator=generator)
        if ("gate_preact" in key and "ogate_preact.bias" not in key) or "multihead_norm.weight" in key:
            heads = {**TINY, **LARGE[name][1]}["num_attention_heads"]  # idle ones, behind these, stay so
            rows = heads if "igate" in key or "fgate" in key else heads * head_width(name)
            tensor[:rows] += 0.3 * torch.randn(tensor[:rows].shape, generator=generator)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def head_width(name):
    settings = {**TINY, **{**CASES, **LARGE}[name][1]}
    return settings.get("head_dim", settings["hidden_size"] // settings["num_attention_heads"])


@functools.cache
def opened_plain(name):
    """Without remote code."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, info = AutoModelForCausalLM.from_pretrained(exported(name), dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
    assert type(model) is transformers.xLSTMForCausalLM and not list(exported(name).glob("*.py"))
    return model.eval()


@functools.cache
def opened(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, info = AutoModelForCausalLM.from_pretrained(exported(name), trust_remote_code=True, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
    return model.eval()


def dump(model, tokens, *options):
    """What the program computes."""
    with tempfile.TemporaryDirectory() as folder:
        request, out = pathlib.Path(folder, "tokens.json"), pathlib.Path(folder, "out.safetensors")
        request.write_text(json.dumps({"tokens": tokens.tolist()}))
        subprocess.run([BUILD / "tests/model_dump", model, request, out, *map(str, options)], check=True)
        return load_file(out)


def on_one_thread(test):
    """For models so small that threads wait for each other."""
    @functools.wraps(test)
    def run():
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with torch.no_grad():
                test()
        finally:
            torch.set_num_threads(threads)
    return run


def random_tokens(*shape):
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    return torch.randint(3, TINY["vocab_size"], shape, generator=torch.Generator().manual_seed(seed))


def error(out, expected):
    return ((out - expected).abs().max() / expected.abs().max()).item()


def expect_equal(out, expected, what, tolerance=TOLERANCE):
    found = error(out.float(), expected)
    print(f"  {what}: {found:.1e}")
    assert out.shape == expected.shape and found <= tolerance, (what, found)


@functools.cache
def moved(name, unit):
    """The same student twice, each weight moved by up to a rounding."""
    models = []
    for seed in range(2):
        models.append(copy.deepcopy(opened_plain(name) if name in LARGE else opened(name)))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in models[-1].parameters():
                weight.mul_(1 + unit * (2 * torch.rand(weight.shape, generator=generator) - 1))
    return models


def tolerance_of(name, distance, least=TOLERANCE, unit=2.0**-23):
    """`least`, but for the large block, whose products may cancel: what `distance` (of a model from the student) makes of a rounding of the
    weights counts there."""
    if "xlstm-large" not in {**CASES, **LARGE}[name][2].get("mixers", ""):
        return least
    return max(least, 4 * max(distance(model) for model in moved(name, unit)))


def tolerance_of_logits(name, tokens):
    expected = (opened_plain(name) if name in LARGE else opened(name))(tokens).logits
    return tolerance_of(name, lambda model: error(model(tokens).logits, expected))


@torch.no_grad()
def test_logits_equal_the_programs():
    for name in CASES:
        tokens = random_tokens(2, 150)
        expect_equal(opened(name)(tokens).logits, dump(exported(name), tokens)["logits"], name, tolerance_of_logits(name, tokens))


def test_the_program_opens_what_it_exported():
    run, again = run_directory(MIXED), run_directory(MIXED).parent / "again"
    first, text = run.parent / "first", ROOT / "share/demo/tinystories_valid.jsonl"
    program("export", "--model", run, "--output", first)
    program("export", "--model", first, "--output", again)
    program("export", "--model", run, "--output", again, "--overwrite")
    for file in ("model.safetensors", "config.json", "README.md", "modeling_distil_xlstm.py"):
        assert (first / file).read_bytes() == (again / file).read_bytes(), file
    figures = [json.loads(program("eval", "--model", model, "--text", text, "--context-length", 64, "--max-tokens", 512, "--stream", "--json", "-"))
               for model in (run, first)]
    assert figures[0]["files"] == figures[1]["files"]
    tokens = random_tokens(1, 30)
    assert torch.equal(dump(run, tokens)["logits"], dump(first, tokens)["logits"])
    assert "model.layers.2.mixer.fgate.bias" in program("inspect", first)


@on_one_thread
def test_steps_equal_the_whole_text():
    for name in CASES:
        model, tokens = opened(name), random_tokens(2, 90)
        expected = model(tokens).logits
        for sizes in ([1] * 90, [40, 1, 1, 30, 18]):
            state, parts = None, []
            for part in tokens.split(sizes, dim=1):
                output = model(part, past_key_values=state, use_cache=True)
                state = output.past_key_values
                parts.append(output.logits)
            expect_equal(torch.cat(parts, 1), expected, f"{name}, parts of {sizes[0]}", tolerance_of_logits(name, tokens))


def expect_only_a_tie_parts(name, model, written, expected, prompt):
    differs = (written != expected).nonzero()
    if differs.numel() == 0:
        return
    read = torch.cat((prompt, written[:differs[0].item()]))[None]  # both went the same way up to here
    logits = model(read).logits
    best = logits[0, -1].topk(2).values
    assert best[0] - best[1] <= 2 * tolerance_of_logits(name, read) * logits[0, -1].abs().max(), (name, differs)


def expect_same_text(name, model, expected, tokens):
    written = model.generate(tokens, max_new_tokens=expected.shape[1], do_sample=False, eos_token_id=None, pad_token_id=0)[:, tokens.shape[1]:]
    for row in range(len(tokens)):
        expect_only_a_tie_parts(name, model, written[row], expected[row], tokens[row])


@on_one_thread
def test_generation_equals_the_programs():
    for name in CASES:
        tokens = random_tokens(2, 20)
        expect_same_text(name, opened(name), dump(exported(name), tokens, "--greedy", 40)["greedy"], tokens)


@on_one_thread
def test_the_large_block_is_the_class_of_transformers():
    for name in LARGE:
        for length in (1, 5, 63, 64, 65, 131):
            tokens = random_tokens(2, length)
            expect_equal(opened_plain(name)(tokens).logits, dump(exported(name), tokens)["logits"], f"{name}, {length} tokens",
                         tolerance_of_logits(name, tokens))
        untouched = run_directory(name).parent / "untouched"
        program("export", "--model", run_directory(name), "--output", untouched, "--overwrite")
        tokens = random_tokens(1, 77)
        expect_equal(dump(untouched, tokens)["logits"], dump(run_directory(name), tokens)["logits"], f"{name}, the run", 0.0)


@on_one_thread
def test_the_class_of_transformers_writes_what_the_program_does():
    for name in LARGE:
        expect_same_text(name, opened_plain(name), dump(exported(name), tokens := random_tokens(2, 20), "--greedy", 40)["greedy"], tokens)


@on_one_thread
def test_the_program_opens_what_the_class_of_transformers_saves():
    text = ROOT / "share/demo/tinystories_valid.jsonl"
    for name in LARGE:
        saved, again, tokens = run_directory(name).parent / "saved", run_directory(name).parent / "again", random_tokens(1, 30)
        opened_plain(name).save_pretrained(saved)
        expect_equal(dump(saved, tokens)["logits"], dump(exported(name), tokens)["logits"], name, 0.0)
        untouched = run_directory(name).parent / "untouched"
        program("export", "--model", run_directory(name), "--output", untouched, "--overwrite")
        program("export", "--model", untouched, "--output", again)
        for file in ("model.safetensors", "config.json", "generation_config.json", "README.md"):
            assert (untouched / file).read_bytes() == (again / file).read_bytes(), file
        figures = [json.loads(program("eval", "--model", model, "--text", text, "--context-length", 64, "--max-tokens", 512, "--stream", "--json", "-"))
                   for model in (run_directory(name), untouched)]
        assert figures[0]["files"] == figures[1]["files"]


def test_a_bias_that_the_program_has_no_place_for_is_named():
    folder = run_directory("large qwen2").parent / "biased"
    shutil.copytree(exported("large qwen2"), folder)
    weights = load_file(folder / "model.safetensors")
    weights["backbone.blocks.1.norm_ffn.bias"][3] = 1.0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    result = subprocess.run([PROGRAM, "export", "--model", folder, "--output", folder.parent / "not"], capture_output=True, text=True)
    assert result.returncode != 0 and "backbone.blocks.1.norm_ffn.bias" in result.stderr, result.stderr


@on_one_thread
def test_the_state_has_a_constant_size():
    for name in CASES:
        state, sizes = None, []
        for part in random_tokens(1, 300).split([5, 1, 294], dim=1):
            state = opened(name)(part, past_key_values=state).past_key_values
            sizes.append(state.size_bytes())
        assert (len(set(sizes)) == 1) == (name not in GROWING) and sizes[0] > 0, sizes
        assert state.get_seq_length() == 300


def padded(rows, side):
    width = max(len(row) for row in rows)
    tokens, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
    for index, row in enumerate(rows):
        columns = slice(width - len(row), None) if side == "left" else slice(0, len(row))
        if side == "holes":
            columns = torch.randperm(width)[:len(row)].sort().values
        tokens[index, columns], mask[index, columns] = row, 1
    return tokens, mask


@on_one_thread
def test_padding_enters_nothing():
    for name in CASES:
        model = opened(name)
        rows = [random_tokens(length) for length in (70, 1, 33)]
        more = random_tokens(3, 9)
        for side in ("left", "right", "holes"):
            tokens, mask = padded(rows, side)
            output = model(tokens, attention_mask=mask, use_cache=True)
            after = model(more, attention_mask=torch.cat((mask, torch.ones(3, 9, dtype=torch.long)), 1), past_key_values=output.past_key_values)
            for index, row in enumerate(rows):
                whole = torch.cat((row, more[index]))[None]
                found = torch.cat((output.logits[index][mask[index] == 1], after.logits[index]))
                expect_equal(found, model(whole).logits[0], f"{name}, {side} {len(row)}", tolerance_of_logits(name, whole))
            assert output.logits.isfinite().all()


@torch.no_grad()
def test_padding_between_carried_texts():
    model, first, second = opened(MIXED), random_tokens(2, 12), random_tokens(2, 8)
    mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1], [0] * 8])
    state = model(first, use_cache=True).past_key_values
    state = model(second, attention_mask=mask, past_key_values=state).past_key_values
    third = random_tokens(2, 7)
    output = model(third, past_key_values=state)
    for row, middle in enumerate((second[0, 3:], second[1, :0])):
        expect_equal(output.logits[row], model(torch.cat((first[row], middle, third[row]))[None]).logits[0, -7:], f"row {row}")


@on_one_thread
def test_batches_are_generated_as_their_rows():
    for name in CASES:
        model, rows = opened(name), [random_tokens(length) for length in (17, 3, 9)]
        tokens, mask = padded(rows, "left")
        options = dict(max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)
        together = model.generate(tokens, attention_mask=mask, **options)[:, tokens.shape[1]:]
        for index, row in enumerate(rows):
            alone = model.generate(row[None], **options)[0, len(row):]
            if "large" in name:
                expect_only_a_tie_parts(name, model, together[index], alone, row)
            else:
                assert torch.equal(together[index], alone), (name, index)


@on_one_thread
def test_beams_carry_their_states():
    for name in (MIXED, "qwen3", "llama hybrid", "qwen2 with a window", "qwen3 sLSTM"):
        tokens, options = random_tokens(2, 11), dict(max_new_tokens=10, num_beams=3, do_sample=False, eos_token_id=None, pad_token_id=0)
        assert torch.equal(opened(name).generate(tokens, **options), opened(name).generate(tokens, use_cache=False, **options))


@torch.no_grad()
def test_a_state_goes_on_in_generate():
    model, tokens = opened(MIXED), random_tokens(1, 30)
    options = dict(max_new_tokens=10, do_sample=False, eos_token_id=None, pad_token_id=0)
    state = model(tokens[:, :20], use_cache=True).past_key_values
    assert torch.equal(model.generate(tokens, past_key_values=state, **options), model.generate(tokens, **options))


def gradient_errors(out, expected):
    """Relative to each gradient's scale, those near 0 to a thousandth of the largest: the mLSTM's input gates may all rise together."""
    least = 1e-3 * max(grad.abs().max() for grad in expected.values())
    return {key: ((out[key] - grad).abs().max() / grad.abs().max().clamp_min(least)).item() for key, grad in expected.items()}


def expect_gradients(out, expected, tolerance, what):
    errors = gradient_errors(out, expected)
    worst = max(errors, key=errors.get)
    print(f"  {what}: {errors[worst]:.1e} ({worst})")
    assert errors[worst] <= tolerance, (what, worst, errors[worst])


def gradients(model, tokens, labels):
    model.zero_grad()
    loss = model(tokens, labels=labels, use_cache=False).loss
    loss.backward()
    return loss.item(), {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def fresh(name, **settings):
    config = AutoConfig.from_pretrained(exported(name), trust_remote_code=True)
    for key, value in settings.items():
        setattr(config, key, value)
    return AutoModelForCausalLM.from_pretrained(exported(name), config=config, trust_remote_code=True, dtype=torch.float32)


def test_it_trains():
    for name in CASES:
        model, tokens = fresh(name).train(), random_tokens(2, 70)
        labels = tokens.clone()
        labels[:, :5] = -100
        loss, grads = gradients(model, tokens, labels)
        expected = torch.nn.functional.cross_entropy(model(tokens).logits[:, 4:-1].flatten(0, 1), tokens[:, 5:].flatten())
        assert abs(loss - expected.item()) <= 1e-5 * loss
        assert all(grad.isfinite().all() and grad.abs().max() > 0 for grad in grads.values()), name
        other_loss, other = gradients(fresh(name, chunk_size=7).train(), tokens, labels)  # chunks change nothing
        assert abs(loss - other_loss) <= 1e-5 * loss
        rounding = lambda moved: max(gradient_errors(gradients(moved, tokens, labels)[1], grads).values())  # noqa: E731
        expect_gradients(other, grads, tolerance_of(name, rounding, least=1e-3), f"{name}, chunks of 7")
        model.activation_checkpointing_enable()
        expect_gradients(gradients(model, tokens, labels)[1], grads, 1e-5, f"{name}, checkpointed")
        optimizer = torch.optim.Adam(model.parameters(), 3e-3)
        for _ in range(15):
            model(tokens, labels=tokens).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        assert model(tokens, labels=labels).loss.item() < loss - 0.5, name


def test_a_directional_derivative_equals_differences():
    """Along the gradient itself."""
    model, tokens = fresh(MIXED), random_tokens(1, 40)
    loss, grads = gradients(model, tokens, tokens)
    squared = sum(grad.double().square().sum().item() for grad in grads.values())
    step, values = 2e-3 / squared**0.5, []
    for sign in (1, -1):
        moved = fresh(MIXED)
        with torch.no_grad():
            for name, parameter in moved.named_parameters():
                parameter.add_(grads[name], alpha=sign * step)
            values.append(moved(tokens, labels=tokens).loss.item())
    assert abs((values[0] - values[1]) / (2 * step) / squared - 1) <= 2e-2, (values, squared)


@torch.no_grad()
def test_half_precision_stays_near():
    for name in CASES:
        model, tokens = opened(name), random_tokens(1, 100)
        expected = model(tokens).logits
        half = AutoModelForCausalLM.from_pretrained(exported(name), trust_remote_code=True, dtype=torch.bfloat16).eval()
        assert half(tokens).logits.dtype == torch.bfloat16
        distance = lambda other: (torch.linalg.vector_norm(other(tokens).logits.float() - expected) / torch.linalg.vector_norm(expected)).item()  # noqa: E731
        allowed = tolerance_of(name, distance, least=0.06, unit=2.0**-8)
        print(f"  {name}: bfloat16 {distance(half):.1e} of {allowed:.1e}")
        assert distance(half) <= allowed, (name, distance(half), allowed)
        half.generate(tokens[:, :5], max_new_tokens=3, do_sample=False)
        with torch.autocast("cpu", torch.bfloat16):
            assert distance(model) <= allowed


@torch.no_grad()
def test_no_tensor_is_made_on_another_device():
    for name in CASES:
        model, tokens = fresh(name).to("meta"), torch.zeros(2, 70, dtype=torch.long, device="meta")
        state = model(tokens, use_cache=True).past_key_values
        assert model(tokens[:, :1], past_key_values=state).logits.device.type == "meta"
        assert all(tensor.device.type == "meta" for tensor in state.tensors())


@torch.no_grad()
def test_the_program_opens_what_transformers_saves():
    for name in (MIXED, "qwen3", "llama hybrid", "qwen2 with a window"):
        saved, tokens = run_directory(name).parent / "saved", random_tokens(1, 30)
        opened(name).save_pretrained(saved)
        assert (saved / "modeling_distil_xlstm.py").exists()
        expect_equal(dump(saved, tokens)["logits"], dump(exported(name), tokens)["logits"], name, 0.0)


def test_a_process_of_its_own_writes_the_same_text():
    """With the call of the model card, without the package xlstm, the program, or a network."""
    for name in (MIXED, "large llama", "large qwen2"):
        directory, prompt = run_directory(name).parent / "card", "Once upon a time"
        program("export", "--model", run_directory(name), "--output", directory)
        card = (directory / "README.md").read_text()
        code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
        assert prompt in code and (name == MIXED) == ("trust_remote_code" in code) and (name in LARGE) == ("Padding on the left" in card)
        code = code.replace("max_new_tokens=40", "max_new_tokens=24, do_sample=False, eos_token_id=None")
        block = "import sys\nsys.modules['xlstm'] = None\n"
        text = subprocess.run([sys.executable, "-c", block + code], cwd=directory, check=True, capture_output=True, text=True,
                              env={"PATH": "", "HF_HUB_OFFLINE": "1", "HOME": FOLDER.name}).stdout.strip()
        figures = json.loads(program("generate", "--model", directory, "--prompt", prompt, "--temperature", 0, "--max-new-tokens", 24, "--ignore-eos",
                                     "--precision", "fp32", "--device", "cpu", "--json", "-"))
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=True)
        assert text == tokenizer.decode(tokenizer(prompt).input_ids + figures["tokens"]).strip(), (text, figures)


def test_the_card_tells_what_the_run_reached():
    run, directory = run_directory(MIXED), run_directory(MIXED).parent / "carded"
    program("export", "--model", run, "--output", directory)
    card = (directory / "README.md").read_text()
    metadata = card.split("---\n")[1].splitlines()
    assert metadata[:3] == ["library_name: transformers", "pipeline_tag: text-generation", "license: mit"], metadata
    assert "not-this-one" not in card and str(run.parent) not in card, card
    best = json.loads((run / "run.json").read_text())["progress"]["best_validation"]
    for figure in (f"{best['perplexity']:.4g}", f"{best['teacher_perplexity']:.4g}", f"{best['perplexity_ratio']:.3f}"):
        assert f"| {figure} |" in card, (figure, card)
    assert 'distill.method = "convert"' in card and 'student.mixers = ["mlstm", "gated-delta"]' in card
    (directory / "README.md").write_text("mine\n")
    program("export", "--model", run, "--output", directory, "--overwrite")
    assert (directory / "README.md").read_text() == "mine\n"


def expect_refusal(part, call):
    try:
        call()
    except ValueError as refusal:
        assert part in str(refusal), refusal
    else:
        raise AssertionError(f"not refused: {part}")


def test_wrong_inputs_are_named():
    model, tokens = opened(MIXED), random_tokens(2, 6)
    expect_refusal("position_ids", lambda: model(tokens, position_ids=torch.arange(6)[None]))
    expect_refusal("attention_mask is [2, 4], the input [2, 6]", lambda: model(tokens, attention_mask=torch.ones(2, 4)))
    expect_refusal("RecurrentState", lambda: model(tokens, past_key_values=((tokens, tokens),)))
    state = model(tokens, use_cache=True).past_key_values
    expect_refusal("2 rows, the input has 1", lambda: model(tokens[:1], past_key_values=state))
    expect_refusal("input_ids or inputs_embeds", lambda: model())
    expect_refusal("stateful", lambda: model.generate(tokens[:1], assistant_model=model, max_new_tokens=2))
    config = json.loads((exported(MIXED) / "config.json").read_text())
    for change, part in (({"mixers": ["other"]}, "mixers = ['other']"), ({"rotary": {**config["rotary"], "rope_type": "other"}}, "'other'")):
        with tempfile.TemporaryDirectory() as folder:
            for file in ("model.safetensors", "modeling_distil_xlstm.py"):
                shutil.copy(exported(MIXED) / file, folder)
            pathlib.Path(folder, "config.json").write_text(json.dumps({**config, **change}))
            expect_refusal(part, lambda: AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)(tokens))


if __name__ == "__main__":
    for key, function in list(globals().items()):
        if key.startswith("test_"):
            function()
            print("ok", key)
