"""`prepare` against the Python packages: ids of real texts, masks of conversations, the documented bytes, interruptions, speed.

The shards are read here by docs/formats/token-shard.md alone, with none of the program's code.
"""

import functools
import json
import os
import pathlib
import random
import re
import signal
import struct
import subprocess
import sys
import tempfile
import time
import unittest

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import transformers
import zstandard
from tokenizers import Tokenizer

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("DISTIL_XLSTM_BUILD", ROOT / "build" / "release"))
SHARED = pathlib.Path(os.environ.get("DISTIL_XLSTM_DATA", ROOT.parent / "shared" / "data"))
PROGRAM = BUILD / "distil-xlstm"


def text_of(path):
    data = path.read_bytes()
    return zstandard.ZstdDecompressor(max_window_size=2**31).decompress(data, max_output_size=2**30) if path.suffix == ".zst" else data


def rows_of(path):
    return [json.loads(line) for line in text_of(path).decode().split("\n") if line.strip()]


def fresh_directory():
    """Removed when the program ends."""
    _directories.append(tempfile.TemporaryDirectory(prefix="dx-prepare-"))
    return pathlib.Path(_directories[-1].name)


_directories = []


@functools.cache
def tokenizer_of(name):
    """Its directory, and the Python package's tokenizer."""
    if name == "stories260K":
        directory = SHARED / "models" / "stories260K-hf"
    else:
        directory, source = fresh_directory(), SHARED / "tokenizers" / name
        (directory / "tokenizer.json").write_bytes(text_of(source / "tokenizer.json.zst"))
        for extra in ("tokenizer_config.json", "chat_template.jinja"):
            if (source / extra).exists():
                (directory / extra).write_bytes((source / extra).read_bytes())
    return directory, Tokenizer.from_file(str(directory / "tokenizer.json"))


def prepare(output, *arguments, inputs, model, check=True):
    command = [str(PROGRAM), "prepare", *map(str, inputs), "--model", str(model), "--output", str(output), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True)
    if check:
        assert result.returncode == 0, result.stderr
    return result


def read_shard(path):
    data = path.read_bytes()
    magic, version, header_size, id_size, flags, context, vocab, rows, tokens, documents, bos, end, index, split = struct.unpack_from(
        "<8s4I5Q2i2I", data)
    assert magic == b"DXTOKENS" and version == 1 and header_size == 256
    sections = [struct.unpack_from("<3Q", data, 144 + 24 * i) for i in range(4)]
    part = [data[offset:offset + size] for offset, size, _ in sections]
    assert sections[3][0] + sections[3][1] == len(data)
    json.loads(part[0])
    ids = np.frombuffer(part[1], "<u2" if id_size == 2 else "<u4")
    assert len(ids) == rows * context + 1 and (id_size == 2) == (vocab <= 65536) and not ids[tokens:].any()
    mask = np.unpackbits(np.frombuffer(part[3], np.uint8), bitorder="little")[:tokens] if flags & 2 else np.ones(tokens, np.uint8)
    return dict(ids=ids[:tokens].astype(np.int64), borders=np.frombuffer(part[2], "<u8"), mask=mask, continues=bool(flags & 4),
                context=context, index=index, bos=bos, end=end)


def read_split(directory, split="train"):
    """Documents as (ids, mask), in order."""
    ids, masks, borders, length = [], [], [], 0
    for number, path in enumerate(sorted(directory.glob(f"{split}-*.dxts"))):
        shard = read_shard(path)
        assert shard["index"] == number and shard["continues"] == (number > 0)
        skip = int(shard["continues"])
        borders += [int(b) - skip + length for b in shard["borders"] if b >= skip]
        ids.append(shard["ids"][skip:])
        masks.append(shard["mask"][skip:])
        length += len(ids[-1])
    ids, masks = np.concatenate(ids), np.concatenate(masks)
    return [(ids[a:b].tolist(), masks[a:b].tolist()) for a, b in zip(borders, borders[1:] + [length])]


def test_memory_does_not_grow_with_the_corpus():
    """Peak resident memory of 24 MB and of 96 MB of stories: what is kept for a corpus, its text or its ids, would show."""
    directory, _ = tokenizer_of("stories260K")
    rows = [row["text"] for row in rows_of(SHARED / "train" / "stories" / "tinystories_train.jsonl")]
    peaks = {}
    for megabytes in (24, 96):
        tmp_path, rng, size = fresh_directory(), random.Random(megabytes), 0
        with open(tmp_path / "text.jsonl", "w") as out:
            while size < megabytes * 1e6:
                size += out.write(json.dumps({"text": f"{rng.choice(rows)} {rng.random()}"}) + "\n")
        command = [PROGRAM, "prepare", tmp_path / "text.jsonl", "--model", directory, "--output", tmp_path / "out", "--context-length", "256",
                   "--shard-size", "2M"]
        # From a small interpreter: a new process's peak begins with the memory of the one that started it.
        starter = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL); " \
                  "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
        run = subprocess.run([sys.executable, "-I", "-S", "-c", starter, *map(str, command)], capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        peaks[megabytes] = int(run.stdout) / 1024
    print("  peak memory: " + ", ".join(f"{peak:.0f} MiB for {megabytes} MB" for megabytes, peak in peaks.items()))
    assert peaks[96] - peaks[24] < 32, peaks


def test_tinystories_with_stories260k():
    directory, tokenizer = tokenizer_of("stories260K")
    tmp_path = fresh_directory()
    source = SHARED / "train" / "stories" / "tinystories_train.jsonl"
    prepare(tmp_path / "out", "--context-length", 128, "--normalize-newlines", "--validation-fraction", 0, inputs=[source], model=directory)
    texts = [re.sub(r"\n+", "\n", row["text"]) for row in rows_of(source)]
    wanted = [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=True)]
    assert wanted[0][0] == 1
    assert [ids for ids, _ in read_split(tmp_path / "out")] == wanted


def check_web_text(name, end):
    directory, tokenizer = tokenizer_of(name)
    tmp_path = fresh_directory()
    source = SHARED / "train" / "web" / "web_train.jsonl.zst"
    prepare(tmp_path / "out", "--context-length", 512, "--document-end", end, "--validation-fraction", 0.1, "--shard-size", "1M",
            inputs=[source], model=directory)
    last = [] if end == "none" else [tokenizer.token_to_id(end)]
    wanted = [encoding.ids + last for encoding in tokenizer.encode_batch([row["text"] for row in rows_of(source)])]
    train = [ids for ids, _ in read_split(tmp_path / "out")]
    validation = [ids for ids, _ in read_split(tmp_path / "out", "validation")]
    assert 0.05 < len(validation) / len(wanted) < 0.15
    assert sorted(train + validation) == sorted(wanted)
    held_out = set(map(tuple, validation))
    assert train == [ids for ids in wanted if tuple(ids) not in held_out]  # in the order of the text
    assert len(list((tmp_path / "out").glob("train-*.dxts"))) > 1


def test_web_text_with_smollm2():
    check_web_text("smollm2", "<|endoftext|>")


def test_web_text_with_qwen():
    check_web_text("qwen2.5", "none")


def test_a_text_file_is_one_document():
    directory, tokenizer = tokenizer_of("smollm2")
    tmp_path = fresh_directory()
    source = SHARED / "eval" / "wikitext2_test.raw.txt"
    prepare(tmp_path / "out", "--validation-fraction", 0, inputs=[source], model=directory)
    (ids, _), = read_split(tmp_path / "out")
    assert ids == tokenizer.encode(source.read_text()).ids and len(ids) == 303415


def test_parquet_equals_jsonl():
    directory, _ = tokenizer_of("smollm2")
    tmp_path = fresh_directory()
    rows = rows_of(SHARED / "train" / "web" / "web_valid.jsonl")
    table = pa.table({"id": [str(row["id"]) for row in rows], "text": [row["text"] for row in rows]})
    pq.write_table(table, tmp_path / "web.parquet", row_group_size=37, compression="zstd")
    (tmp_path / "web.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for kind in ("parquet", "jsonl"):
        prepare(tmp_path / kind, inputs=[tmp_path / f"web.{kind}"], model=directory)
    assert read_split(tmp_path / "parquet") == read_split(tmp_path / "jsonl")


def test_conversations():
    directory, _ = tokenizer_of("smollm2")
    tmp_path = fresh_directory()
    reference = transformers.PreTrainedTokenizerFast(tokenizer_file=str(directory / "tokenizer.json"))
    reference.chat_template = (directory / "chat_template.jinja").read_text()
    source = SHARED / "train" / "instruct" / "gsm8k_train.jsonl.zst"
    rows = rows_of(source)[:500]
    more = [[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "é?"}, {"role": "assistant", "content": "\n\n- 1\n"},
             {"role": "user", "content": " and?"}, {"role": "assistant", "content": "Yes. "}]]
    lines = [json.dumps(row) for row in rows] + [json.dumps({"messages": messages}) for messages in more]
    (tmp_path / "chat.jsonl").write_text("\n".join(lines))
    prepare(tmp_path / "out", "--validation-fraction", 0, inputs=[tmp_path / "chat.jsonl"], model=directory)
    conversations = [[{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}] for row in rows] + more
    documents = read_split(tmp_path / "out")
    assert len(documents) == len(conversations)
    for messages, (ids, mask) in zip(conversations, documents):
        assert ids == reference.apply_chat_template(messages, tokenize=True, return_dict=False)
        counted = reference.decode([i for i, m in zip(ids, mask) if m])
        answers = "".join(m["content"] + "<|im_end|>" for m in messages if m["role"] == "assistant")
        # The header's newline and an answer that begins with one are a single token: it belongs to the answer.
        assert counted == ("\n" + answers if answers.startswith("\n") else answers)


def test_masks_of_generation_marks():
    """Rows of a real data set through a template that marks its answers: ids and masks are those of transformers."""
    source, _ = tokenizer_of("smollm2")
    directory = fresh_directory()
    (directory / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
    template = ("{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}{% generation %}"
                "{% if m.reasoning_content %}{{ '<think>' + m.reasoning_content + '</think>' }}{% endif %}{{ m.content + '<|im_end|>' }}"
                "{% endgeneration %}{{ '\n' }}{% else %}{{ m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}")
    (directory / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    reference = transformers.PreTrainedTokenizerFast(tokenizer_file=str(directory / "tokenizer.json"), chat_template=template)
    rows = []
    for number, row in enumerate(rows_of(SHARED / "train" / "instruct" / "gsm8k_train.jsonl.zst")[:300]):
        answer = {"role": "assistant", "content": row["answer"] if number % 7 else "", "weight": None}
        if number % 3 == 0:
            answer["reasoning"] = row["answer"][:20]
        rows.append([{"role": "user", "content": row["question"]}, answer])
    output = fresh_directory()
    (output / "chat.jsonl").write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in rows))
    prepare(output / "out", "--validation-fraction", 0, inputs=[output / "chat.jsonl"], model=directory)
    documents = read_split(output / "out")
    assert len(documents) == len(rows)
    for messages, (ids, mask) in zip(rows, documents):
        expected = reference.apply_chat_template(messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
        assert ids == expected["input_ids"] and mask == expected["assistant_masks"]


def test_conversations_in_parquet_equal_jsonl():
    """Messages as lists of structs: every row has every key, null where it has none; as JSONL, nulls are as keys that are not there."""
    directory, _ = tokenizer_of("smollm2")
    tmp_path = fresh_directory()
    rows = [{"messages": [{"role": "user", "content": "é?"}, {"role": "assistant", "content": "A", "reasoning_content": "R",
                                                             "tool_calls": [{"name": "f", "arguments": {"x": 1, "y": [0.5]}}]}],
             "tools": [{"name": "f", "parameters": {"x": "int"}}]},
            {"messages": [{"role": "user", "content": "b"}, {"role": "assistant", "content": "c"}], "tools": None}]
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, tmp_path / "chat.parquet")
    pq.write_table(table.cast(pa.schema([field.with_type(pa.large_list(field.type.value_type)) for field in table.schema])), tmp_path / "large.parquet")
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "nulls.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    (tmp_path / "array.json").write_text(json.dumps(rows, indent=2))
    for name in ("chat.parquet", "large.parquet", "chat.jsonl", "nulls.jsonl", "array.json"):
        prepare(tmp_path / "out" / name, "--validation-fraction", 0, "--context-length", 32, inputs=[tmp_path / name], model=directory)
    wanted = read_split(tmp_path / "out" / "chat.jsonl")
    assert len(wanted) == 2
    for name in ("chat.parquet", "large.parquet", "nulls.jsonl", "array.json"):
        assert read_split(tmp_path / "out" / name) == wanted, name


def contents(directory):
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def test_threads_and_interruptions_do_not_change_a_byte():
    directory, _ = tokenizer_of("smollm2")
    tmp_path = fresh_directory()
    inputs = [SHARED / "train" / "web_edu" / "web_edu_train.jsonl.zst", SHARED / "train" / "wiki" / "wikipedia_train.jsonl.zst"]
    arguments = ["--shard-size", "500k", "--document-end", "<|endoftext|>"]
    for threads in (1, 2):
        prepare(tmp_path / f"threads{threads}", *arguments, "--threads", threads, inputs=inputs, model=directory)
    wanted = contents(tmp_path / "threads1")
    assert contents(tmp_path / "threads2") == wanted
    for kind in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL):
        output = tmp_path / kind.name
        command = [str(PROGRAM), "prepare", *map(str, inputs), "--model", str(directory), "--output", str(output), *arguments]
        stopped = 0
        for attempt in range(50):
            process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
            if attempt < 4:
                deadline = time.monotonic() + 60
                while not list(output.glob("train-*")) and process.poll() is None and time.monotonic() < deadline:
                    time.sleep(0.02)
                time.sleep(0.2 * (attempt + 1))
                process.send_signal(kind)
            process.communicate()
            if process.returncode == 0:
                break
            # The first time it is surely at work, and saves; later the signal may come before it listens.
            saved = kind != signal.SIGKILL and process.returncode == 128 + kind
            assert saved or process.returncode == -kind and (attempt > 0 or kind == signal.SIGKILL)
            stopped += 1
        assert stopped > 0 and contents(output) == wanted


def test_speed_is_that_of_the_python_package():
    if os.environ.get("DISTIL_XLSTM_SLOW") != "1":
        raise unittest.SkipTest("minutes on an idle machine: set DISTIL_XLSTM_SLOW=1")
    directory, tokenizer = tokenizer_of("smollm2")
    tmp_path = fresh_directory()
    source = SHARED / "train" / "prose" / "prose_train-00000-of-00004.jsonl.zst"
    texts = [row["text"] for row in rows_of(source)]
    size = sum(len(text.encode()) for text in texts)
    python, ours = [], []
    for attempt in range(3):
        begin = time.perf_counter()
        tokenizer.encode_batch(texts)
        python.append(size / (time.perf_counter() - begin) / 1e6)
        report = prepare(tmp_path / f"out{attempt}", inputs=[source], model=directory).stdout
        ours.append(float(re.search(r"([\d.]+) MB/s", report).group(1)))
    print(f"prose, {size / 1e6:.1f} MB: tokenizers.encode_batch {max(python):.2f} MB/s, prepare with reading and writing {max(ours):.2f} MB/s")
    assert max(ours) >= 0.9 * max(python)
