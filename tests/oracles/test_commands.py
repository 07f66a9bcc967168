"""What the commands print against the Python packages: an exported student opened by `xlstm`, and perplexities computed anew with `transformers`."""

import functools
import importlib.util
import json
import math
import os
import pathlib
import subprocess
import tempfile

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("DISTIL_XLSTM_BUILD", ROOT / "build" / "release"))
PROGRAM = BUILD / "distil-xlstm"
STORIES = ROOT / "share/models/stories260K"
HELD_OUT = ROOT / "share/demo/tinystories_valid.jsonl"
FOLDER = tempfile.TemporaryDirectory()
CONTEXT = 48


def program(*arguments):
    return subprocess.run([PROGRAM, *map(str, arguments)], check=True, capture_output=True, text=True).stdout


@functools.cache
def run_directory():
    run = pathlib.Path(FOLDER.name) / "run"
    settings = {"teacher.model": "stories260K", "output": run, "data.train": ROOT / "share/demo/tinystories_train.jsonl", "data.context_length": 64,
                "data.validation_fraction": 0.01, "student.num_blocks": 3, "student.num_heads": 4, "train.micro_batch_size": 8,
                "train.device": "cpu", "train.max_steps": 60, "eval.every_steps": 0, "optimizer.learning_rate": 0.01}
    program("distill", *[part for key, value in settings.items() for part in ("--set", f"{key}={value}")])
    return run


def load_student(directory, backend="vanilla"):
    spec = importlib.util.spec_from_file_location("load_student", pathlib.Path(directory) / "load_student.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load_student(directory, backend)


@functools.cache
def documents():
    """Token ids of some held-out stories, BOS first, and their bytes."""
    tokenizer = Tokenizer.from_file(str(STORIES / "tokenizer.json"))
    texts = [json.loads(line)["text"] for line in open(HELD_OUT)][:6] + ["Once upon a time there was a dog."]
    path = pathlib.Path(FOLDER.name) / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    ids = [[1] + tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    return path, ids, sum(len(text.encode()) for text in texts)


def windows(length, context, stride):
    """(first input, inputs, targets counted at the end) so that every token but the first is counted once."""
    counted = 0
    for begin in range(0, length - 1, stride):
        end = min(begin + context, length - 1)
        yield begin, end - begin, end - counted
        counted = end
        if end == length - 1:
            return


def log_probabilities(model, ids, context, stride):
    """One row for every target of every document, from windows of their own."""
    rows, targets = [], []
    for document in ids:
        for begin, size, new in windows(len(document), context, stride):
            with torch.no_grad():
                logits = model(torch.tensor([document[begin:begin + size]]))
            logits = getattr(logits, "logits", logits)[0, size - new:].double()
            rows.append(logits.log_softmax(-1))
            targets += document[begin + size - new + 1:begin + size + 1]
    rows = torch.cat(rows)
    return rows, torch.tensor(targets)


def expect_figures(figures, student, ids, size_bytes, context, stride, teacher=None):
    rows, targets = log_probabilities(student, ids, context, stride)
    nats = -rows.gather(1, targets[:, None]).mean().item()
    assert figures["target_tokens"] == len(targets) == sum(len(document) - 1 for document in ids)
    assert math.isclose(figures["nats_per_token"], nats, rel_tol=1e-5), (figures["nats_per_token"], nats)
    assert math.isclose(figures["perplexity"], math.exp(nats), rel_tol=1e-4)
    assert math.isclose(figures["bits_per_byte"], nats * len(targets) / math.log(2) / size_bytes, rel_tol=1e-4)
    if teacher is None:
        return
    teacher_rows, _ = log_probabilities(teacher, ids, context, stride)
    assert math.isclose(figures["teacher_nats_per_token"], -teacher_rows.gather(1, targets[:, None]).mean().item(), rel_tol=1e-5)
    kl = (teacher_rows.exp() * (teacher_rows - rows)).sum(1).mean().item()
    assert math.isclose(figures["mean_kl"], kl, rel_tol=1e-4), (figures["mean_kl"], kl)
    agreement = (rows.argmax(1) == teacher_rows.argmax(1)).double().mean().item()
    assert abs(figures["top1_agreement"] - agreement) <= 2 / len(targets)  # a tie may fall either way


def evaluate(model, path, *more):
    out = pathlib.Path(FOLDER.name) / "figures.json"
    program("eval", "--model", model, "--text", path, "--context-length", CONTEXT, "--precision", "fp32", "--device", "cpu", "--json", out, *more)
    return json.loads(out.read_text())["files"][str(path)]


def test_exported_students_open_in_the_package():
    path, ids, size_bytes = documents()
    figures = evaluate(run_directory(), path)
    for layout in ("cuda", "vanilla"):
        out = pathlib.Path(FOLDER.name) / f"export-{layout}"
        program("export", "--model", run_directory(), "--output", out, "--layout", layout)
        model, tokenizer = load_student(out)
        assert tokenizer.encode("Once upon a time", add_special_tokens=False).ids == [403, 407, 261, 378]
        expect_figures(figures, model, ids, size_bytes, CONTEXT, CONTEXT)
        again = evaluate(out, path)
        assert again["nats_per_token"] == figures["nats_per_token"], layout


def test_exports_in_half_precision_round_the_weights_only():
    path, ids, size_bytes = documents()
    for dtype in ("fp16", "bf16"):
        out = pathlib.Path(FOLDER.name) / f"export-{dtype}"
        program("export", "--model", run_directory(), "--output", out, "--dtype", dtype)
        model, _ = load_student(out)
        expect_figures(evaluate(out, path), model, ids, size_bytes, CONTEXT, CONTEXT)


def test_greedy_text_of_a_student_equals_the_packages():
    out = pathlib.Path(FOLDER.name) / "export-greedy"
    program("export", "--model", run_directory(), "--output", out)
    model, _ = load_student(out)
    figures = json.loads(program("generate", "--model", out, "--prompt", "Once upon a time", "--temperature", 0, "--max-new-tokens", 24, "--json", "-",
                                 "--precision", "fp32", "--device", "cpu", "--ignore-eos"))
    ids = [1, 403, 407, 261, 378]
    with torch.no_grad():
        for token in figures["tokens"]:
            logits = model(torch.tensor([ids]))[0, -1]
            best = logits.topk(2)
            if best.values[0] - best.values[1] > 1e-4:
                assert token == best.indices[0], ids
            ids.append(token)


def test_perplexities_of_teacher_and_student_side_by_side():
    path, ids, size_bytes = documents()
    teacher = AutoModelForCausalLM.from_pretrained(STORIES, dtype=torch.float32).eval()
    out = pathlib.Path(FOLDER.name) / "export-both"
    program("export", "--model", run_directory(), "--output", out)
    student, _ = load_student(out)
    expect_figures(evaluate(run_directory(), path, "--teacher", "stories260K"), student, ids, size_bytes, CONTEXT, CONTEXT, teacher)
    for stride in (7, 16):
        figures = evaluate(run_directory(), path, "--teacher", "stories260K", "--stride", stride)
        expect_figures(figures, student, ids, size_bytes, CONTEXT, stride, teacher)


def test_streams_as_the_references_measure_them():
    path, ids, size_bytes = documents()
    figures = evaluate("stories260K", path, "--stream", "--max-tokens", 500)
    stream = [token for document in ids for token in document]
    num_targets = min(500, len(stream) - 1) // CONTEXT * CONTEXT
    teacher = AutoModelForCausalLM.from_pretrained(STORIES, dtype=torch.float32).eval()
    rows, targets = log_probabilities(teacher, [stream[:num_targets + 1]], CONTEXT, CONTEXT)
    assert figures["target_tokens"] == num_targets == len(targets)
    assert math.isclose(figures["nats_per_token"], -rows.gather(1, targets[:, None]).mean().item(), rel_tol=1e-5)
