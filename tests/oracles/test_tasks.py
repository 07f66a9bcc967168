"""`eval --tasks` against lm-evaluation-harness itself (PyPI package lm_eval): its own task definitions, the same rows, the same model through
`transformers`. Every item's log-likelihoods and answer are compared, then the scores.

Rows are in the form of the data sets on Hugging Face: written here from stories, or, with DISTIL_XLSTM_DATA, real ones from its eval folder.
"""

import contextlib
import functools
import io
import json
import logging
import math
import os
import pathlib
import random
import re
import subprocess
import tempfile

FOLDER = tempfile.TemporaryDirectory()
os.environ.setdefault("HF_DATASETS_CACHE", str(pathlib.Path(FOLDER.name) / "datasets"))
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")

import lm_eval.tasks  # noqa: E402 - the folder of its data sets is read while it is imported
import pyarrow.parquet  # noqa: E402
import torch  # noqa: E402
import zstandard  # noqa: E402
from lm_eval import evaluator  # noqa: E402
from lm_eval.api.task import ConfigurableTask  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks._yaml_loader import load_yaml  # noqa: E402
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("DISTIL_XLSTM_BUILD", ROOT / "build" / "release"))
DATA = pathlib.Path(os.environ["DISTIL_XLSTM_DATA"]) if "DISTIL_XLSTM_DATA" in os.environ else None
STORIES = ROOT / "share/models/stories260K"
logging.getLogger("lm_eval").setLevel(logging.ERROR)  # what its definitions leave to defaults
HARNESS = pathlib.Path(lm_eval.tasks.__file__).parent
ITEMS = 50

# Our name, the harness's file, the place of the rows below a folder with data.
TASKS = {
    "piqa": ("piqa/piqa.yaml", "piqa/validation.jsonl"),
    "arc_easy": ("arc/arc_easy.yaml", "ARC-Easy/test-00000-of-00001.parquet"),
    "arc_challenge": ("arc/arc_challenge.yaml", "ARC-Challenge/test.jsonl"),
    "openbookqa": ("openbookqa/openbookqa.yaml", "openbookqa/main/test-00000-of-00001.parquet"),
    "hellaswag": ("hellaswag/hellaswag.yaml", "hellaswag/data/validation.jsonl.zst"),
    "winogrande": ("winogrande/default.yaml", "winogrande_xl/validation.jsonl"),
    "lambada_openai": ("lambada/lambada_openai.yaml", "lambada_openai/data/lambada_test_en.jsonl"),
    "boolq": ("super_glue/boolq/default.yaml", "boolq/validation.parquet"),
    "copa": ("super_glue/copa/default.yaml", "copa/validation.jsonl"),
    "social_iqa": ("siqa/siqa.yaml", "siqa/validation.jsonl"),
    "blimp": ("blimp/adjunct_island.yaml", "blimp/train.jsonl"),
    "wikitext": ("wikitext/wikitext.yaml", "wikitext/test.jsonl"),
}


@functools.cache
def stories():
    return [json.loads(line)["text"] for line in open(ROOT / "share/demo/tinystories_valid.jsonl")]


class Writer:
    """Rows from stories, with what is odd in real ones: marks in brackets, spaces at ends, letters of two bytes, five choices, a second blank."""

    def __init__(self, task):
        self.random = random.Random(task)

    def sentence(self, least=4, most=25):
        words = self.random.choice(stories()).split()
        begin = self.random.randrange(max(1, len(words) - most))
        text = " ".join(words[begin:begin + self.random.randint(least, most)])
        return text + self.random.choice(["", "", "", "!", " café", " — „naïve“"])

    def row(self, task):
        s, pick = self.sentence, self.random
        if task == "piqa":
            return {"goal": s() + pick.choice(["", " ", "\n"]), "sol1": s(), "sol2": s(), "label": pick.randrange(2)}
        if task.startswith("arc") or task == "openbookqa":
            count = pick.choice([3, 4, 4, 5]) if task != "openbookqa" else 4
            labels = pick.choice(["ABCDE", "12345"])[:count]
            stem = "question_stem" if task == "openbookqa" else "question"
            answer = pick.choice(labels)
            return {stem: s(), "choices": {"text": [s(1, 9) for _ in labels], "label": list(labels)},
                    "answerKey": pick.choice(["", " "]) + answer if task == "openbookqa" else answer}
        if task == "hellaswag":
            ctx_b = pick.choice(["", "the Dog", s()])
            return {"activity_label": s(1, 3), "ctx_a": pick.choice(["", "[header] How to [title] "]) + s() + " [step] " + s() + "  x [a [b] c",
                    "ctx_b": ctx_b, "endings": [s() + pick.choice(["", " [substeps] " + s()]) for _ in range(4)], "label": str(pick.randrange(4))}
        if task == "winogrande":
            return {"sentence": s() + " _ " + s() + pick.choice(["", " _ again"]), "option1": s(1, 2), "option2": s(1, 3), "answer": pick.choice("12")}
        if task == "lambada_openai":
            return {"text": s(20, 60)}
        if task == "boolq":
            return {"question": s(), "passage": s(20, 80), "label": pick.randrange(2)}
        if task == "copa":
            return {"premise": s() + ". ", "question": pick.choice(["cause", "effect"]), "choice1": s(), "choice2": s(), "label": pick.randrange(2)}
        if task == "social_iqa":
            return {"context": s(), "question": s(), "answerA": s(1, 9), "answerB": s(1, 9), "answerC": s(1, 9), "label": pick.choice("123")}
        if task == "blimp":
            return {"sentence_good": s(), "sentence_bad": s(), "UID": "adjunct_island"}
        page = f" = {s(2, 3)} = \n \n " + " , ".join(s() for _ in range(pick.choice([3, 90]))) + " ( a ) @-@ \" b \" 's [ c ] 5 @,@ 000 . \n = = d = = \n"
        return {"page": page}


def stored(name):
    path = DATA / "eval" / name
    lines = io.TextIOWrapper(zstandard.open(path, "rb"), "utf-8") if path.suffix == ".zst" else open(path)
    return [json.loads(line) for line in lines]


def real_rows(task):
    """The items of the eval folder that are there, as the data sets have them."""
    if task == "piqa":
        return [{"goal": row["query"].removeprefix("Question: ").removesuffix("\n"), "sol1": row["choices"][0], "sol2": row["choices"][1],
                 "label": row["gold"]} for row in stored("piqa_val.jsonl")]
    if task in ("arc_easy", "arc_challenge", "openbookqa"):
        stem = "question_stem" if task == "openbookqa" else "question"
        return [{stem: row["query"].removeprefix("Question: "), "choices": {"text": row["choices"], "label": list("ABCDE"[:len(row["choices"])])},
                 "answerKey": "ABCDE"[row["gold"]]} for row in stored("arc_easy_test.jsonl") if len(row["choices"]) == 4]
    if task == "hellaswag":
        rows = []
        for row in stored("hellaswag_val_a.jsonl.zst"):
            label, text = row["ctx"].split(": ", 1)
            ctx_a, found, ctx_b = text.rpartition(". ")
            rows.append({"activity_label": label, "ctx_a": ctx_a + found.rstrip() if found else text, "ctx_b": ctx_b if found else "",
                         "endings": row["endings"], "label": str(row["label"])})
        return rows
    if task == "winogrande":
        rows = []
        for row in stored("winogrande_xl_val.jsonl"):
            shared = os.path.commonprefix(row["context_options"]).rpartition(" ")[0] + " "
            options = [context[len(shared):] for context in row["context_options"]]
            rows.append({"sentence": f"{shared}_ {row['continuation']}", "option1": options[0], "option2": options[1], "answer": str(row["gold"] + 1)})
        return rows
    if task == "lambada_openai":
        return [{"text": row["context"] + row["target"]} for row in stored("lambada_openai_test.jsonl")]
    if task == "boolq":
        rows = []
        for row in stored("boolq_val.jsonl"):
            passage, question = row["query"].removeprefix("Passage: ").rsplit("\nQuestion: ", 1)
            rows.append({"question": question.removesuffix("?"), "passage": passage, "label": row["gold"]})
        return rows
    if task == "copa":
        words = {"because": "cause", "therefore": "effect"}
        rows = []
        for row in stored("copa.jsonl"):
            premise, word = row["query"].rsplit(None, 1)
            rows.append({"premise": premise.rstrip(",") + ".", "question": words[word], "choice1": row["choices"][0].capitalize(),
                         "choice2": row["choices"][1].capitalize(), "label": row["gold"]})
        return rows
    if task == "social_iqa":
        rows = []
        for row in stored("siqa_val.jsonl"):
            context, question, a, b = re.fullmatch(r"Context: (.*)\nQuestion: (.*)\nChoices:\nA. (.*)\nB. (.*)\nAnswer:", row["query"], re.S).groups()
            rows.append({"context": context, "question": question, "answerA": a, "answerB": b, "answerC": "none of both", "label": str(row["gold"] + 1)})
        return rows
    if task == "blimp":
        return [row for row in stored("blimp_even.jsonl.zst") if row["UID"] == "adjunct_island"]
    pages = re.split(r"(?m)^(?= = [^=].* = $)", (DATA / "eval/wikitext2_test.raw.txt").read_text())
    return [{"page": page} for page in pages if page.strip()]


def write_rows(rows, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".zst":
        path.write_bytes(zstandard.compress(text.encode()))
    else:
        path.write_text(text)


@functools.cache
def data_of(kind):
    """A folder with the rows of all tasks, and for each task a JSONL file of the same rows."""
    folder = pathlib.Path(FOLDER.name) / kind
    plain = {}
    for task, (_, place) in TASKS.items():
        if kind == "real":
            rows = real_rows(task)
            rows = random.Random(0).sample(rows, min(len(rows), ITEMS if task != "wikitext" else 2))
        else:
            writer = Writer(task)
            rows = [writer.row(task) for _ in range(ITEMS if task != "wikitext" else 5)]
        write_rows(rows, folder / place)
        plain[task] = pathlib.Path(FOLDER.name) / f"{kind}-{task}.jsonl"
        write_rows(rows, plain[task])
    return folder, plain


def harness_task(name, rows):
    config = load_yaml(HARNESS / TASKS[name][0])
    split = config.get("test_split") or config["validation_split"]
    for key in ("training_split", "validation_split", "test_split", "tag", "group"):
        config.pop(key, None)
    config.update(dataset_path="json", dataset_name=None, dataset_kwargs={"data_files": {split: str(rows)}}, test_split=split)
    return ConfigurableTask(config=config)


def program_scores(model, data, *more):
    run = subprocess.run([BUILD / "distil-xlstm", "eval", "--model", model, "--tasks", ",".join(TASKS), "--tasks-data", data, "--json", "-",
                          "--log-samples", "--precision", "fp32", "--device", "cpu", *map(str, more)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)["tasks"]


def compare(model, lm, kind):
    folder, plain = data_of(kind)
    ours = program_scores(model, folder)
    tasks = {name: harness_task(name, rows) for name, rows in plain.items()}
    with contextlib.redirect_stderr(io.StringIO()):  # progress
        theirs = evaluator.evaluate(lm, {"tasks": {task.task_name: task for task in tasks.values()}}, bootstrap_iters=0, log_samples=True)
    for name, task in tasks.items():
        score, result = theirs["results"][task.task_name], ours[name]
        samples = sorted(theirs["samples"][task.task_name], key=lambda sample: sample["doc_id"])
        assert len(samples) == len(result["samples"]) == result["num_items"], name
        for sample, item in zip(samples, result["samples"]):
            responses = sample["filtered_resps"]
            expected = [response[0] if isinstance(response, (list, tuple)) else response for response in responses]
            found = item["model"]["log_likelihoods"]
            assert len(expected) == len(found), (name, sample["doc_id"])
            for a, b in zip(found, expected):
                assert math.isclose(a, b, rel_tol=1e-5, abs_tol=2e-4), (name, sample["doc_id"], found, expected)
            for metric in ("acc", "acc_norm"):
                if metric in sample and metric in item["model"]:
                    assert item["model"][metric] == sample[metric], (name, sample["doc_id"], metric, found, expected)
        metrics = [metric for metric in result["model"] if not metric.endswith("_stderr") and metric != "token_perplexity"]
        assert {f"{metric},none" for metric in metrics} <= set(score), (name, metrics, score)
        for metric in metrics:
            is_share = metric.startswith("acc")
            assert math.isclose(result["model"][metric], score[f"{metric},none"], rel_tol=1e-12 if is_share else 1e-4), (name, metric)
    return ours


def test_stories260k_scores_as_the_harness_does():
    """A tokenizer that puts BOS before every text."""
    lm = HFLM(pretrained=str(STORIES), device="cpu", dtype="float32", batch_size=8)
    compare("stories260K", lm, "written")
    if DATA is not None:
        compare("stories260K", lm, "real")


def test_a_model_without_bos_scores_as_the_harness_does():
    """Qwen2 with random weights: byte-level tokens, tied head, biases, EOS where a context is empty."""
    folder = pathlib.Path(FOLDER.name) / "qwen2"
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(ROOT / "tests/golden/tokenizer/tokenizer.json"), eos_token="</s>")
    if DATA is not None:
        text = zstandard.decompress((DATA / "tokenizers/qwen2.5/tokenizer.json.zst").read_bytes(), max_output_size=1 << 26)
        (pathlib.Path(FOLDER.name) / "tokenizer.json").write_bytes(text)
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(pathlib.Path(FOLDER.name) / "tokenizer.json"), eos_token="<|endoftext|>")
    torch.manual_seed(0)
    config = AutoConfig.for_model("qwen2", vocab_size=len(tokenizer) + 7, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
                                  num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=True,
                                  initializer_range=0.3)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    lm = HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=8)
    compare(folder, lm, "written" if DATA is None else "real")
