"""`distil-xlstm tokenize` against the Python packages `tokenizers` and `transformers`: ids, decoding, chat templates, speed.

DISTIL_XLSTM_BUILD names the build folder (build/release), DISTIL_XLSTM_DATA the folder with tokenizers, configs and texts.
"""

import functools
import json
import os
import random
import shutil
import struct
import subprocess
import tempfile
import time
import unittest
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
from tokenizers import Tokenizer  # noqa: E402
from transformers import AutoTokenizer, PreTrainedTokenizerFast  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(os.environ.get("DISTIL_XLSTM_BUILD", ROOT / "build" / "release")) / "distil-xlstm"
SHIPPED = ROOT / "share" / "models" / "stories260K"
CASES = ROOT / "tests" / "cases"
DATA = Path(os.environ["DISTIL_XLSTM_DATA"]) if "DISTIL_XLSTM_DATA" in os.environ else None
TOKENIZERS = ["gpt-neox-20b", "gpt2", "llama3", "mistral-7b-instruct-v0.2", "phi-2", "qwen2.5", "qwen2.5-legacy", "smollm2"]
WITH_SHIPPED = ["stories260K"] + (TOKENIZERS if DATA else [])
SCRATCH = tempfile.TemporaryDirectory(prefix="distil_xlstm_tokenizer_")


def need_data():
    if DATA is None:
        raise unittest.SkipTest("DISTIL_XLSTM_DATA is not set: it names the folder with tokenizers/, configs/ and train/")


def run(arguments, lines=None, check=True):
    text = None if lines is None else "".join(json.dumps(line) + "\n" for line in lines)
    done = subprocess.run([str(PROGRAM), "tokenize", *arguments], input=text, capture_output=True, text=True, encoding="utf-8")
    if check:
        assert done.returncode == 0, done.stderr
    return done


def rows(arguments, lines):
    return [json.loads(line) for line in run(arguments if "--json" in arguments else [*arguments, "--json"], lines).stdout.split("\n") if line]


def unpack(source, target):
    """Copies a file, without .zst."""
    if source.suffix == ".zst":
        with open(target / source.stem, "wb") as out:
            subprocess.run(["zstd", "-qdc", str(source)], stdout=out, check=True)
    else:
        shutil.copy(source, target / source.name)


@functools.cache
def folder(name):
    """A directory with tokenizer.json and what lies beside it."""
    if name == "stories260K":
        return SHIPPED
    target = Path(SCRATCH.name) / name
    target.mkdir()
    for source in sorted((DATA / "tokenizers" / name.removesuffix("-legacy")).iterdir()):
        if source.suffix in (".json", ".jsonl", ".zst", ".jinja"):
            unpack(source, target)
    if name.endswith("-legacy"):
        (target / "tokenizer.legacy.json").replace(target / "tokenizer.json")
    return target


def random_texts(count, specials, seed):
    """Texts of every kind of character, with special tokens, whole and broken, among them."""
    ranges = [(0x20, 0x7E), (0x20, 0x7E), (0x00, 0x1F), (0xA0, 0x24F), (0x300, 0x36F), (0x370, 0x52F), (0x590, 0x6FF), (0x900, 0xD7F),
              (0x1100, 0x11FF), (0x2000, 0x206F), (0x2070, 0x2BFF), (0x3000, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3),
              (0xE000, 0xE0FF), (0xFB00, 0xFFFD), (0x1F300, 0x1FAFF), (0x10000, 0x10FFFF)]
    words = ["the", " and", " I'm", "don't", "WE'LL", "123", "3.14", " 1,000", "\n\n", "\r\n", "\t", "   ", "é", "e\u0301", "ﬁ", "👩‍👩‍👧‍👦", "🇩🇪"]
    dice = random.Random(seed)

    def piece():
        kind = dice.random()
        if kind < 0.4:
            return dice.choice(words)
        if kind < 0.5 and specials:
            special = dice.choice(specials)
            return special if dice.random() < 0.7 else special[: dice.randrange(1, len(special) + 1)]
        low, high = dice.choice(ranges)
        return "".join(chr(dice.randint(low, high)) for _ in range(dice.randrange(1, 8)))

    return ["".join(piece() for _ in range(dice.randrange(0, 25))) for _ in range(count)]


def test_ids_of_random_texts_equal_the_package():
    for name in WITH_SHIPPED:
        package = Tokenizer.from_file(str(folder(name) / "tokenizer.json"))
        package.no_padding()
        package.no_truncation()
        specials = [token.content for token in package.get_added_tokens_decoder().values()]
        texts = random_texts(3000, specials, seed=2026)
        model = ["--model", str(folder(name)), "--jsonl"]

        ours = [row["ids"] for row in rows(model, texts)]
        expected = [encoding.ids for encoding in package.encode_batch(texts, add_special_tokens=False)]
        assert len(ours) == len(texts)
        wrong = [(text, a, b) for text, a, b in zip(texts, ours, expected) if a != b]
        assert not wrong, f"{name}: {len(wrong)} of {len(texts)} differ, the first: {wrong[0]}"

        decoded = [row["text"] for row in rows(["--model", str(folder(name)), "--decode"], expected)]
        assert decoded == package.decode_batch(expected, skip_special_tokens=False)

        package.encode_special_tokens = True
        plain = [row["ids"] for row in rows([*model, "--plain"], texts)]
        assert plain == [encoding.ids for encoding in package.encode_batch(texts, add_special_tokens=False)]


def test_special_tokens_are_added_as_transformers_does():
    for name in WITH_SHIPPED:
        package = PreTrainedTokenizerFast.from_pretrained(str(folder(name)))
        texts = ["", "a", " Once upon a time,\nthere was 1 fox.", "naïve 日本語 🦊"] + random_texts(200, [], seed=7)
        ours = [row["ids"] for row in rows(["--model", str(folder(name)), "--jsonl", "--add-special-tokens"], texts)]
        assert ours == [package(text).input_ids for text in texts]


def command(name, *arguments):
    done = subprocess.run([str(PROGRAM), name, *map(str, arguments)], capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, (name, arguments, done.stderr)
    return done.stdout


def documents_of(shards):
    """The ids of each document, by docs/formats/token-shard.md; the shards here have one file."""
    data = (shards / "train-00000.dxts").read_bytes()
    id_size, num_tokens, num_borders = (struct.unpack_from(kind, data, at)[0] for kind, at in (("<I", 16), ("<Q", 48), ("<Q", 56)))
    tokens, borders = (struct.unpack_from("<Q", data, at)[0] for at in (168, 192))
    ids = struct.unpack_from(f"<{num_tokens}{'H' if id_size == 2 else 'I'}", data, tokens)
    begins = [*struct.unpack_from(f"<{num_borders}Q", data, borders), num_tokens]
    return [list(ids[a:b]) for a, b in zip(begins, begins[1:])]


def prepared(model, rows, *arguments):
    target = Path(tempfile.mkdtemp(dir=SCRATCH.name))
    (target / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    command("prepare", target / "text.jsonl", "--model", model, "--output", target / "shards", "--context-length", "64",
            "--validation-fraction", "0", *arguments)
    return documents_of(target / "shards")


def auto_tokenizer(directory, model_type="llama"):
    """AutoTokenizer of a copy: it wants a config.json."""
    target = Path(tempfile.mkdtemp(dir=SCRATCH.name))
    for source in directory.iterdir():
        if source.suffix in (".json", ".jinja"):
            shutil.copy(source, target / source.name)
    if not (target / "config.json").exists():
        (target / "config.json").write_text(json.dumps({"model_type": model_type}))
    return AutoTokenizer.from_pretrained(str(target))


MODEL_TYPES = {"gpt-neox-20b": "gpt_neox", "gpt2": "gpt2", "mistral-7b-instruct-v0.2": "mistral", "phi-2": "phi", "qwen2.5": "qwen2",
               "qwen2.5-legacy": "qwen2"}
WORDS = ["a b c d", "because h", "a", "g f e d c b a"]


def test_real_tokenizers_give_the_ids_of_auto_tokenizer_in_every_command():
    texts = [" Once upon a time,\nthere was 1 fox.", "naïve 日本語 🦊", "a", "12 don't  WE'LL"]
    for name in WITH_SHIPPED:
        package = auto_tokenizer(folder(name), MODEL_TYPES.get(name, "llama"))
        wanted = [package(text).input_ids for text in texts]
        assert [row["ids"] for row in rows(["--model", str(folder(name)), "--jsonl", "--add-special-tokens"], texts)] == wanted, name
        assert prepared(folder(name), [{"text": text} for text in texts]) == wanted, name


def conversation_rows():
    return [{"messages": [{"role": "user", "content": "a b"}, {"role": "assistant", "content": "c d"}]}]


def test_cases_give_the_ids_of_auto_tokenizer_in_every_command():
    names = ["add-bos-flag", "add-eos-drops-bos", "added-tokens-of-the-config", "bos-from-the-post-processor", "bos-twice-in-a-prompt",
             "student-forgets-stop-ids"]
    for name in names:
        model = CASES / name / "m"
        package = auto_tokenizer(model)
        wanted = [package(text).input_ids for text in WORDS]
        assert [row["ids"] for row in rows(["--model", str(model), "--jsonl", "--add-special-tokens"], WORDS)] == wanted, name
        assert prepared(model, [{"text": text} for text in WORDS]) == wanted, name
        with tempfile.TemporaryDirectory() as folder_name:
            text = Path(folder_name) / "text.jsonl"
            text.write_text("".join(json.dumps({"text": text}) + "\n" for text in WORDS))
            figures = json.loads(command("eval", "--model", model, "--text", text, "--json", "-", "--precision", "fp32"))
        assert figures["files"][str(text)]["target_tokens"] == sum(len(ids) - 1 for ids in wanted), name
        for prompt, ids in zip(WORDS, wanted):
            result = json.loads(command("generate", "--model", model, "-p", prompt, "-n", "1", "--precision", "fp32", "--json", "-", "-q"))
            assert result["prompt_tokens"] == len(ids), name
        messages = conversation_rows()[0]["messages"]
        assert prepared(model, conversation_rows()) == [package.apply_chat_template(messages, return_dict=False)], name
        result = json.loads(command("generate", "--model", model, "--chat", "-p", "a b", "-n", "1", "--json", "-", "-q"))
        assert result["prompt_tokens"] == len(package.apply_chat_template(messages[:1], add_generation_prompt=True, return_dict=False))


def token(content, **flags):
    return {"content": content, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True, **flags}


# tokenizer_config.json, special_tokens_map.json and added_tokens.json, each alone and against each other.
ADDING = [
    {"config": {"eos_token": "<end>"}},
    {"config": {"eos_token": "<end>", "pad_token": "<pad>", "additional_special_tokens": ["<tool>", "<x>"]}},
    {"config": {"additional_special_tokens": ["<tool>"], "extra_special_tokens": ["<x>"]}},
    {"config": {"additional_special_tokens": ["<tool>"], "extra_special_tokens": []}},
    {"config": {"extra_special_tokens": {"image_token": "<image>", "audio_token": "<audio>"}, "tool_token": "<tool>"}},
    {"config": {"eos_token": {**token("<end>", lstrip=True), "__type": "AddedToken"}}},
    {"config": {"added_tokens_decoder": {"18": token("<late>"), "16": token("<x>", special=False), "17": token("<tool>", lstrip=True)},
                "eos_token": "<x>", "additional_special_tokens": ["<tool>", "<more>"]}},
    {"config": {"added_tokens_decoder": {"1": token("<s>", lstrip=True), "7": token("a", special=False)}}},
    {"config": {"added_tokens_decoder": {"30": token("<x>", normalized=True, single_word=True)}},
     "map": {"eos_token": "<end>", "pad_token": "<pad>"}, "added": {"<tool>": 16}},
    {"config": {"eos_token": "</s>"}, "map": {"eos_token": "<end>", "pad_token": token("<pad>")}},
    {"config": {}, "added": {"<tool>": 17, "<x>": 16, "<end>": 18}, "map": {"eos_token": "<end>", "additional_special_tokens": ["<x>"]}},
    {"config": {"additional_special_tokens": ["<tool>"]}, "map": {"additional_special_tokens": ["<x>"]}},
    {"added": {"<tool>": 16, "b": 8}},
]


def test_tokens_that_the_other_files_add():
    texts = ["a <tool> b <end>", "<x> <x>a b <pad>", "<image> <audio> c", "<late> a <more>", "<s> a <s> b", "a<end>b  <tool>", "b </s> b"]
    for case in ADDING:
        directory = Path(tempfile.mkdtemp(dir=SCRATCH.name))
        shutil.copy(CASES / "added-tokens-of-the-config" / "m" / "tokenizer.json", directory)
        for key, name in (("config", "tokenizer_config.json"), ("map", "special_tokens_map.json"), ("added", "added_tokens.json")):
            if key in case:
                content = {"tokenizer_class": "PreTrainedTokenizerFast", **case[key]} if key == "config" else case[key]
                (directory / name).write_text(json.dumps(content))
        package = auto_tokenizer(directory)
        wanted = [package(text).input_ids for text in texts]
        ours = rows(["--model", str(directory), "--jsonl", "--add-special-tokens"], texts)
        assert [row["ids"] for row in ours] == wanted, case
        assert prepared(directory, [{"text": text} for text in texts]) == wanted, case


def test_recorded_ids():
    """Files made with the npm and PyPI packages of `tokenizers` 0.23."""
    need_data()
    for name in TOKENIZERS:
        records = [json.loads(line) for line in (folder(name) / "parity_hf_tokenizers.jsonl").read_text(encoding="utf-8").split("\n") if line]
        assert len(records) > 200
        model = ["--model", str(folder(name))]
        texts = [record["text"] for record in records]
        assert [row["ids"] for row in rows([*model, "--jsonl"], texts)] == [record["ids"] for record in records]
        with_special = [row["ids"] for row in rows([*model, "--jsonl", "--add-special-tokens"], texts)]
        assert with_special == [record.get("ids_with_special", record["ids"]) for record in records]
        decoded = [row["text"] for row in rows([*model, "--decode"], [record["ids"] for record in records])]
        assert decoded == [record["decoded"] for record in records]


CONVERSATIONS = [
    [("user", "Hello, who are you?")],
    [("system", "You are terse.\nAnswer in one line."), ("user", "2 + 2?")],
    [("user", "Hi"), ("assistant", "Hello! How can I help?"), ("user", "Sing <b>a</b> song & \"quote\" it")],
    [("system", "S"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")],
    [("user", "  spaces around \n"), ("assistant", " \n answer with spaces  \n"), ("user", "ünïcödé 日本語 🦊\n\n")],
    [("user", "Think."), ("assistant", "<think>\nhm, 6 times 7\n</think>\n\n42"), ("user", "Sure?"), ("assistant", "Yes.")],
    [("user", "Think."), ("assistant", "<think>\nhm, 6 times 7\n</think>\n\n42")],
    [("system", "/no_think Be kind."), ("user", "Hi"), ("assistant", "Hello")],
    [("user", "one"), ("user", "two")],
    [("assistant", "I begin."), ("user", "ok")],
    [("user", "")],
]


def template_sources():
    found = [*(DATA / "configs").rglob("*tokenizer_config.json"), *(DATA / "configs").rglob("*chat_template.jinja")]
    found += [DATA / "tokenizers" / name / "tokenizer_config.json" for name in ("llama3", "mistral-7b-instruct-v0.2", "qwen2.5", "smollm2")]
    return [path for path in sorted(found) if template_of(path)[1]]


def template_of(path):
    """(tokenizer_config, chat template) that belong to a file of either kind."""
    if path.suffix == ".jinja":
        beside = path.with_name(path.name.replace("chat_template.jinja", "tokenizer_config.json"))
        config = json.loads(beside.read_text(encoding="utf-8")) if beside.exists() else {}
        return config, path.read_text(encoding="utf-8")
    config = json.loads(path.read_text(encoding="utf-8"))
    beside = path.with_name(path.name.replace("tokenizer_config.json", "chat_template.jinja"))
    return config, beside.read_text(encoding="utf-8") if beside.exists() else config.get("chat_template")


def test_chat_templates_equal_transformers():
    need_data()
    for path in template_sources():
        config, template = template_of(path)
        names = {key: config[key] for key in ("bos_token", "eos_token", "unk_token", "pad_token") if config.get(key)}
        names = {key: value["content"] if isinstance(value, dict) else value for key, value in names.items()}
        target = Path(tempfile.mkdtemp(dir=SCRATCH.name))
        shutil.copy(SHIPPED / "tokenizer.json", target / "tokenizer.json")
        tokens = {key: config[key] for key in ("added_tokens_decoder",) if key in config}
        (target / "tokenizer_config.json").write_text(json.dumps({**names, **tokens, "chat_template": template}), encoding="utf-8")
        package = PreTrainedTokenizerFast(tokenizer_file=str(SHIPPED / "tokenizer.json"), chat_template=template, **names)

        for prompt in (False, True):
            arguments = ["--model", str(target), "--chat", "--jsonl", "--json"] + (["--add-generation-prompt"] if prompt else [])
            accepted, expected = [], []
            for turns in CONVERSATIONS:
                messages = [{"role": role, "content": content} for role, content in turns]
                try:
                    expected.append(package.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt))
                    accepted.append((turns, messages))
                except Exception as error:  # the template refuses: so must we, with its message
                    if prompt:
                        continue
                    ours = run(arguments, [messages], check=False)
                    assert ours.returncode == 1 and str(error).split("\n")[0] in ours.stderr, (path, error, ours)
            assert len(accepted) >= 2, path
            results = rows(arguments, [messages for _, messages in accepted])
            assert [result["text"] for result in results] == expected, path
            for result, (turns, _) in zip(results, accepted):
                check_spans(result, turns, prompt)


def check_spans(result, turns, prompt):
    spans = result["spans"]
    if not prompt:
        assert "".join(span["text"] for span in spans) == result["text"]
    answers = [span["text"] for span in spans if span["is_answer"]]
    contents = [content for role, content in turns if role == "assistant"]
    assert len(answers) == len(contents)
    for answer, content in zip(answers, contents):
        final = content.split("</think>")[-1].strip()
        assert final in answer, (answer, content)
    for span in spans:
        assert span["is_answer"] or not any(role == "assistant" and content in span["text"] for role, content in turns if len(content) > 8)


TOOLS = [{"type": "function", "function": {"name": "weather", "description": "Tells the weather é.", "parameters": {
    "type": "object", "properties": {"city": {"type": "string", "description": "Where"}, "days": {"type": "integer", "description": "How long"}},
    "required": ["city"]}}}]
CALL = {"type": "function", "id": "abcdefghi", "function": {"name": "weather", "arguments": {"city": "Zürich", "days": 2, "x": 0.5, "y": None, "z": [True]}}}
ROWS = [
    dict(messages=[{"role": "user", "content": "Weather?"}, {"role": "assistant", "content": "", "tool_calls": [CALL]},
                   {"role": "tool", "name": "weather", "tool_call_id": "abcdefghi", "content": "{\"sun\": 1}"}, {"role": "assistant", "content": "Sunny."}],
         tools=TOOLS),
    dict(messages=[{"role": "user", "content": "Weather?"}, {"role": "assistant", "content": None, "tool_calls": [CALL, CALL]},
                   {"role": "tool", "content": "rain"}, {"role": "tool", "content": "sun"}, {"role": "assistant", "content": "Both.", "name": None}]),
    dict(messages=[{"role": "user", "content": "6 * 7?"}, {"role": "assistant", "content": "42", "reasoning_content": "hm\n6 times 7"}]),
    dict(messages=[{"role": "user", "content": "6 * 7?"}, {"role": "assistant", "content": "42", "thinking": "hm"}, {"role": "user", "content": "Sure?"},
                   {"role": "assistant", "content": "Yes", "reasoning": "once more"}]),
    dict(messages=[{"role": "system", "content": "S"}, {"role": "user", "content": "U"}, {"role": "assistant", "content": "A"}],
         chat_template_kwargs={"enable_thinking": False, "custom_instructions": "C"}),
    dict(messages=[{"role": "user", "content": "U"}], documents=[{"title": "T", "text": "X"}], chat_template_kwargs={"enable_thinking": False}),
    dict(messages=[{"role": "user", "content": [{"type": "text", "text": "part"}]}, {"role": "assistant", "content": [{"type": "text", "text": "other"}]}]),
    dict(messages=[{"role": "user", "content": "U"}, {"role": "assistant", "content": ""}, {"role": "user", "content": "V"}, {"role": "assistant", "content": "W"}]),
]


def applied(package, row, **options):
    return package.apply_chat_template(row["messages"], tools=row.get("tools"), documents=row.get("documents"), **row.get("chat_template_kwargs", {}), **options)


def test_every_key_of_a_row_equals_transformers():
    """Tools, tool calls, reasoning, documents, further variables: the text that real templates make of them, or both refuse."""
    need_data()
    for path in template_sources():
        config, template = template_of(path)
        if isinstance(template, list):
            continue
        names = {key: config[key] for key in ("bos_token", "eos_token", "unk_token", "pad_token") if config.get(key)}
        names = {key: value["content"] if isinstance(value, dict) else value for key, value in names.items()}
        target = Path(tempfile.mkdtemp(dir=SCRATCH.name))
        shutil.copy(SHIPPED / "tokenizer.json", target / "tokenizer.json")
        (target / "tokenizer_config.json").write_text(json.dumps({**names, "chat_template": template}), encoding="utf-8")
        package = PreTrainedTokenizerFast(tokenizer_file=str(SHIPPED / "tokenizer.json"), chat_template=template, **names)
        same = 0
        for row in ROWS:
            ours = run(["--model", str(target), "--chat", "--jsonl"], [row], check=False)
            try:
                expected = applied(package, row, tokenize=False)
            except Exception as error:
                assert ours.returncode == 1, (path, row, error, ours.stdout)
                continue
            if "[{'type': 'text'" in expected:  # the template prints a list as Python does: an error of ours
                assert ours.returncode == 1 and "list of parts" in ours.stderr, (path, ours)
                continue
            assert ours.returncode == 0 and ours.stdout == expected, (path, row, ours.stderr, ours.stdout, expected)
            same += 1
        assert same >= 4, (path, same)


def marked(template, replacements):
    """A real template with generation marks around the assistant's turns, from behind their header to their end."""
    for old, new in replacements:
        assert old in template, old
        template = template.replace(old, new)
    return template


MARKS_OF_REAL_TEMPLATES = {
    "Qwen3-4B": [
        ("{{- '<|im_start|>' + message.role + '\\n<think>\\n' +", "{{- '<think>\\n' +"),
        ("{{- '<|im_start|>' + message.role + '\\n' + content }}", "{{- content }}"),
        ("{%- if loop.index0 > ns.last_query_index %}",
         "{{- '<|im_start|>' + message.role + '\\n' }}{%- generation %}{%- if loop.index0 > ns.last_query_index %}"),
        ("{{- '<|im_end|>\\n' }}\n    {%- elif message.role == \"tool\"",
         "{{- '<|im_end|>' }}{%- endgeneration %}{{- '\\n' }}\n    {%- elif message.role == \"tool\""),
    ],
    "Qwen2.5-1.5B-Instruct": [
        ("or (message.role == \"assistant\" and not message.tool_calls) %}", "%}"),
        ("{{- '<|im_start|>' + message.role }}\n        {%- if message.content %}\n            {{- '\\n' + message.content }}",
         "{{- '<|im_start|>' + message.role + '\\n' }}{%- generation %}\n        {%- if message.content %}\n            {{- message.content }}"),
        ("{{- '\\n<tool_call>\\n{\"name\": \"' }}",
         "{{- '\\n<tool_call>\\n{\"name\": \"' if message.content or not loop.first else '<tool_call>\\n{\"name\": \"' }}"),
        ("{{- '<|im_end|>\\n' }}\n    {%- elif message.role == \"tool\"",
         "{{- '<|im_end|>' }}{%- endgeneration %}{{- '\\n' }}\n    {%- elif message.role == \"tool\""),
    ],
}


def test_turns_of_real_templates_equal_those_of_marks_put_into_them():
    """Without marks in a template: the assistant's turns are the ids that transformers' mask has with marks around them."""
    need_data()
    user, call, result = {"role": "user", "content": "Weather?"}, {"role": "assistant", "content": "", "tool_calls": [CALL, CALL]}, {"role": "tool", "content": "7"}
    both = {"role": "assistant", "content": "I look.", "reasoning_content": "hm\n", "tool_calls": [CALL]}
    conversations = [
        [user, call], [user, call, result], [user, call, result, call], [user, both], [user, both, result, {"role": "assistant", "content": "Sunny."}],
        [user, both, result, both, result, user, {"role": "assistant", "content": "A", "reasoning_content": "R"}],
        [user, {"role": "assistant", "content": "<think>\nR\n</think>\n\nA"}, user, {"role": "assistant", "content": "B"}],
        [user, {"role": "assistant", "content": ""}], [user, {"role": "assistant", "content": ""}, user, {"role": "assistant", "content": "B"}],
    ]
    target = folder("qwen2.5")
    for name, replacements in MARKS_OF_REAL_TEMPLATES.items():
        config, template = template_of(DATA / "configs" / name / "tokenizer_config.json")
        with_marks = marked(template, replacements)
        plain = Path(tempfile.mkdtemp(dir=SCRATCH.name))
        shutil.copy(target / "tokenizer.json", plain / "tokenizer.json")
        (plain / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>", "chat_template": template}), encoding="utf-8")
        package = PreTrainedTokenizerFast(tokenizer_file=str(plain / "tokenizer.json"), chat_template=with_marks, eos_token="<|im_end|>")
        for tools in (None, TOOLS):
            results = rows(["--model", str(plain), "--chat", "--jsonl"], [{"messages": messages, "tools": tools} for messages in conversations])
            for messages, ours in zip(conversations, results, strict=True):
                expected = package.apply_chat_template(messages, tools=tools, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
                assert ours["ids"] == expected["input_ids"], (name, messages)
                assert ours["counts"] == expected["assistant_masks"], (name, messages, ours["spans"])
                assert "missing_answers" not in ours


MARKED = {
    "chatml": "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}{% generation %}{{ m.content + '<|im_end|>' }}"
              "{% endgeneration %}{{ '\n' }}{% else %}{{ m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}",
    "reasoning": "{% for m in messages %}\n{%- if m.role == 'assistant' %}\n  {%- generation -%}\n<think>{{ m.reasoning_content }}</think>"
                 "{{ m.content }}{{ eos_token }}\n  {%- endgeneration -%}\n{% else %}[INST] {{ m.content }} [/INST]{% endif %}\n{% endfor %}",
    "words": "{% for m in messages %}{% if m.role == 'assistant' %} {% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}"
             "{% endif %}{% endfor %}",
}


def test_generation_marks_equal_the_assistant_mask_of_transformers():
    need_data()
    conversations = [
        [{"role": "user", "content": "é?"}, {"role": "assistant", "content": "\n\n- 1\n"}, {"role": "user", "content": "and?"}, {"role": "assistant", "content": "Yes."}],
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "日本語 🦊 naïve", "reasoning_content": "hm"}, {"role": "assistant", "content": "b"}],
        [{"role": "user", "content": "none"}],
    ]
    for name in ["stories260K", "qwen2.5", "smollm2", "llama3", "gpt2", "mistral-7b-instruct-v0.2"]:
        for kind, template in MARKED.items():
            target = Path(tempfile.mkdtemp(dir=SCRATCH.name))
            shutil.copy(folder(name) / "tokenizer.json", target / "tokenizer.json")
            (target / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>", "chat_template": template}), encoding="utf-8")
            package = PreTrainedTokenizerFast(tokenizer_file=str(target / "tokenizer.json"), chat_template=template, eos_token="</s>")
            rows_of = rows(["--model", str(target), "--chat", "--jsonl"], conversations)
            for result, messages in zip(rows_of, conversations):
                if kind == "words" and messages[-1]["role"] != "assistant":
                    continue
                expected = package.apply_chat_template(messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
                assert result["ids"] == expected["input_ids"], (name, kind)
                wanted = expected["assistant_masks"]
                if kind == "words" and "🦊" in messages[1]["content"]:
                    continue  # a mark behind a character of several tokens: transformers counts the first of them alone
                assert result["counts"] == wanted, (name, kind, result["ids"], result["counts"], wanted)


def test_batches_are_as_fast_as_the_package():
    """Best of interleaved rounds on the same texts and cores: at least 0.9 of the package's speed."""
    need_data()
    for name in ["gpt2", "qwen2.5"]:
        source = DATA / "train" / "prose" / "prose_valid.jsonl.zst"
        unpack(source, Path(SCRATCH.name))
        lines = (Path(SCRATCH.name) / source.stem).read_text(encoding="utf-8").split("\n")
        texts = [json.loads(line)["text"] for line in lines if line]
        package = Tokenizer.from_file(str(folder(name) / "tokenizer.json"))
        ours, theirs = [], []
        for _ in range(3):
            done = run(["--model", str(folder(name)), "--jsonl", "--count", "--json"], texts)
            result = json.loads(done.stdout)
            ours.append(result["seconds"])
            start = time.monotonic()
            encodings = package.encode_batch(texts, add_special_tokens=False)
            theirs.append(time.monotonic() - start)
            assert result["tokens"] == sum(len(encoding.ids) for encoding in encodings)
        print(f"{name}: {result['bytes'] / 1e6:.1f} MB, ours {min(ours):.2f} s, package {min(theirs):.2f} s")
        assert min(ours) <= min(theirs) / 0.9