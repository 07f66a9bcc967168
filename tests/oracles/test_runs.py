"""Runs by the program itself: its TensorBoard file read by TensorBoard, its checkpoints by `safetensors`, and a killed run against one that was not."""

import functools
import json
import math
import os
import pathlib
import random
import signal
import subprocess
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("DISTIL_XLSTM_BUILD", ROOT / "build" / "release"))
PROGRAM = BUILD / "distil-xlstm"
FOLDER = tempfile.TemporaryDirectory()


@functools.cache
def text():
    path = pathlib.Path(FOLDER.name) / "text.jsonl"
    generator = random.Random(1)
    words = "Once upon a time there was a little girl who liked to play with her dog .".split()
    with open(path, "w") as file:
        for _ in range(40):
            file.write(json.dumps({"text": " ".join(generator.choices(words, k=60))}) + "\n")
    return path


def command(name, **changes):
    settings = {
        "teacher.model": "stories260K", "output": pathlib.Path(FOLDER.name) / name, "data.train": text(), "data.context_length": 32,
        "data.validation_fraction": 0.2, "student.num_blocks": 2, "student.num_heads": 4, "train.micro_batch_size": 2,
        "train.device": "cpu", **changes,
    }
    return [PROGRAM, "distill"] + [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]


@functools.cache
def resumed_run():
    settings = {"train.max_steps": 7, "eval.every_steps": 3}
    subprocess.run([*command("resumed", **settings), "--stop-after", "4"], check=True, capture_output=True)
    run = pathlib.Path(FOLDER.name) / "resumed"
    subprocess.run([PROGRAM, "distill", "--resume", "--output", run], check=True, capture_output=True)
    return run


def records_of(run):
    return [json.loads(line) for line in open(run / "metrics.jsonl")]


def test_events_equal_metrics():
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(resumed_run()))
    events.Reload()
    expected = {}
    for record in records_of(resumed_run()):
        for key, value in record.items():
            if key not in ("kind", "step") and isinstance(value, (int, float)) and not isinstance(value, bool):
                expected.setdefault(f"{record['kind']}/{key}", []).append((record["step"], value))
    assert set(events.Tags()["scalars"]) == set(expected)
    assert len(expected["train/loss"]) == 7 and len(expected["validation/perplexity"]) == 4
    for tag, values in expected.items():
        found = [(event.step, event.value) for event in events.Scalars(tag)]
        assert [step for step, _ in found] == [step for step, _ in values], tag
        for (_, actual), (_, wanted) in zip(found, values):
            assert math.isclose(actual, wanted, rel_tol=1e-6, abs_tol=1e-30), tag


def test_one_event_file_after_a_resume():
    assert len(list(resumed_run().glob("events.out.tfevents.*"))) == 1


def test_checkpoints_open_in_python():
    from safetensors.numpy import load_file

    run = resumed_run()
    last = run / "checkpoints" / (run / "checkpoints" / "last").read_text().strip()
    model, optimizer = load_file(last / "model.safetensors"), load_file(last / "optimizer.safetensors")
    assert set(optimizer) == {f"{part}.{name}" for name in model for part in ("exp_avg", "exp_avg_sq")}
    assert load_file(run / "frozen.safetensors")["token_embedding.weight"].shape == (512, 64)


def wait_for_records(child, run, count):
    for _ in range(60000):
        if (run / "metrics.jsonl").exists() and len(open(run / "metrics.jsonl").readlines()) >= count:
            return
        assert child.poll() is None, child.stderr.read()
        time.sleep(0.001)


def test_a_killed_run_ends_with_the_same_bits():
    settings = {"train.num_epochs": 2, "train.save_every_steps": 5, "eval.every_steps": 10}
    subprocess.run(command("whole", **settings), check=True, capture_output=True)
    whole, run = pathlib.Path(FOLDER.name) / "whole", pathlib.Path(FOLDER.name) / "killed"
    count = len(records_of(whole))
    resume = [PROGRAM, "distill", "--resume", "--output", run]
    for arguments, part, sent, code in [
        (command("killed", **settings), 0.25, signal.SIGKILL, -signal.SIGKILL),
        (resume, 0.5, signal.SIGTERM, 128 + signal.SIGTERM),
        (resume, 0.75, signal.SIGINT, 128 + signal.SIGINT),
    ]:
        child = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        wait_for_records(child, run, int(count * part))
        child.send_signal(sent)
        child.communicate()
        assert child.returncode == code
    subprocess.run(resume, check=True, capture_output=True)
    last = (whole / "checkpoints" / "last").read_text()
    assert (run / "checkpoints" / "last").read_text() == last
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (run / "checkpoints" / last.strip() / name).read_bytes() == (whole / "checkpoints" / last.strip() / name).read_bytes(), name
    assert len(records_of(run)) == count


def test_exit_codes_and_messages():
    wrong = subprocess.run(command("wrong", **{"train.precision": "fp8", "optimizer.learning_rat": 1}), capture_output=True, text=True)
    assert wrong.returncode == 2
    assert "--set: unknown key 'optimizer.learning_rat' (did you mean 'optimizer.learning_rate'?)" in wrong.stderr
    assert '--set: train.precision = "fp8": must be "auto", "fp32", "bf16" or "fp16"' in wrong.stderr
    assert not (pathlib.Path(FOLDER.name) / "wrong").exists()
    again = subprocess.run(command("resumed", **{"train.max_steps": 7}), capture_output=True, text=True)
    assert resumed_run() and again.returncode == 2 and "--overwrite replaces it" in again.stderr
    missing = subprocess.run([PROGRAM, "distill", "--resume", "--output", "/nowhere"], capture_output=True, text=True)
    assert missing.returncode == 1 and "there is no run to resume" in missing.stderr


def test_plan_prints_the_papers_figures():
    config = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
              "num_attention_heads": 12, "num_key_value_heads": 2, "vocab_size": 151936, "max_position_embeddings": 131072, "rms_norm_eps": 1e-6,
              "rope_theta": 1000000.0, "hidden_act": "silu", "tie_word_embeddings": True}
    path = pathlib.Path(FOLDER.name) / "config.json"
    path.write_text(json.dumps(config))
    arguments = [PROGRAM, "plan", "--preset", "paper", "--teacher", path, "--teacher-precision", "bf16", "--tflops", "312"]
    page = subprocess.run([*arguments, "--memory", "4GiB"], check=True, capture_output=True, text=True).stdout
    for figure in ("551.1 M", "317.7 M", "84.36 M", "31250 steps", "312500 steps", "does not fit into 4GiB"):
        assert figure in page, figure
    assert "fits into 80GiB" in subprocess.run([*arguments, "--memory", "80GiB"], check=True, capture_output=True, text=True).stdout
