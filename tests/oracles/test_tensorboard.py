"""A run's TensorBoard file, read back by TensorBoard itself, holds what metrics.jsonl holds."""

import json
import math
import os
import pathlib
import random
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("DISTIL_XLSTM_BUILD", ROOT / "build" / "release"))


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tensorboard")
    generator = random.Random(1)
    words = "Once upon a time there was a little girl who liked to play with her dog .".split()
    with open(folder / "text.jsonl", "w") as file:
        for _ in range(40):
            file.write(json.dumps({"text": " ".join(generator.choices(words, k=60))}) + "\n")
    run = folder / "run"
    settings = {
        "teacher.model": "stories260K", "output": run, "data.train": folder / "text.jsonl", "data.context_length": 32,
        "data.validation_fraction": 0.2, "student.num_blocks": 2, "student.num_heads": 4, "train.micro_batch_size": 2,
        "train.max_steps": 7, "eval.every_steps": 3, "train.device": "cpu",
    }
    arguments = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    subprocess.run([BUILD / "distil-xlstm", "distill", "--stop-after", "4", *arguments], check=True)
    subprocess.run([BUILD / "distil-xlstm", "distill", "--resume", "--output", run], check=True)
    return run


def test_events_equal_metrics(run_directory):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_directory))
    events.Reload()
    records = [json.loads(line) for line in open(run_directory / "metrics.jsonl")]
    expected = {}
    for record in records:
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


def test_one_event_file_after_a_resume(run_directory):
    assert len(list(run_directory.glob("events.out.tfevents.*"))) == 1
