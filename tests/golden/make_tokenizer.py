"""Writes tests/golden/tokenizer: a small byte-level BPE, ids and texts by `tokenizers`, conversations by `transformers`.

Made with tokenizers 0.23.3, transformers 5.23.0, jinja2 3.1.6; seed 5. Run in the whole environment: make_tokenizer.py
"""

import json
import random
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

HERE = Path(__file__).resolve().parent
OUT = HERE / "tokenizer"
STORIES = HERE.parents[1] / "share" / "models" / "stories260K" / "tokenizer.json"
TEXT = [
    "Once upon a time there was a small fox. The fox liked to run, and it ran 12 miles; it didn't stop until 1,024 stars shone.",
    "Il était une fois un renard naïf. Größe und Übermut. 日本語のテキスト。 Привет, мир! 🦊🦊",
    "def f(x):\n    return x + 1\n\n\nprint(f(41))\t# forty-two",
]
TEXTS = ["", "a", " ", "  two  spaces ", "\n\n\n", "It didn't stop; WE'LL see.", "1234567890 3.14", "naïve e\u0301 Größe", "日本語 🦊 👩‍👩‍👧‍👦 \u200b\ufeff",
         "<s>not<sep>special</s>", "<se", "a\u0000b\u001f", "\ue000 private \U0010ffff", "The fox ran.\r\nThe end"]
TEMPLATES = {
    "chatml": "{% for m in messages %}{% if loop.first and m.role != 'system' %}<sep>system\nYou help.</s>\n{% endif %}"
    "<sep>{{ m['role'] }}\n{{ m.content }}</s>\n{% endfor %}{% if add_generation_prompt %}<sep>assistant\n{% endif %}",
    "trimming": "{{ bos_token }}{%- for m in messages -%}\n    {%- if m.role not in ['user', 'assistant'] %}\n        "
    "{{- raise_exception('Only user and assistant roles: ' ~ m.role) }}\n    {%- endif %}\n"
    "    {{- '[' + m['role'].upper() + '] ' + m['content'].strip() }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}\n{% endfor %}",
    "blocks": "{% set ns = namespace(last=-1) %}\n{% for m in messages %}\n  {% if m.role == 'user' %}\n    {% set ns.last = loop.index0 %}\n"
    "  {% endif %}\n{% endfor %}\n{% for m in messages %}\n  {% if m.role == 'assistant' %}\n"
    "    {% generation %}\n{{ m.content.split('</think>')[-1] | trim if loop.index0 < ns.last else m.content }}</s>\n    {% endgeneration %}\n"
    "  {% elif m.role == 'system' %}\n    {% continue %}\n  {% else %}\n<sep>{{ m.content }}\n  {% endif %}\n{% endfor %}",
    "values": "{% for m in messages[::-1] %}{{ m | tojson }} {{ m | tojson(indent=2) }} {{ tools }} {{ tools is defined }} {{ documents is none }}"
    "{{ m.get('name', 'x') }}{% for k, v in m.items() %}{{ k }}={{ v | length }},{% endfor %}{% if loop.index > 1 %}{% break %}{% endif %}{% endfor %}\n",
}
CONVERSATIONS = [
    [("user", "Hello <b>\"you\"</b> & me")],
    [("system", "Be brief."), ("user", "2 + 2?"), ("assistant", "4"), ("user", "Sure?"), ("assistant", "Yes, 4.")],
    [("user", " spaced \n"), ("assistant", "\n  spaced answer \n"), ("user", "日本語 🦊")],
    [("user", "Think"), ("assistant", "<think>hm</think>\n\n42"), ("user", "More"), ("assistant", "<think>ha</think>43")],
]


def make_tokenizer():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"),
                             behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=340, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
                                  special_tokens=["<s>", "</s>", "<sep>"], show_progress=False)
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False, special=False)])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)])
    return tokenizer


def cases(path):
    tokenizer = Tokenizer.from_file(str(path))
    dice = random.Random(5)
    texts = TEXTS + ["".join(chr(dice.choice([dice.randint(1, 0x2FF), dice.randint(0x3000, 0x9FFF), dice.randint(0x1F300, 0x1FAFF)]))
                             for _ in range(dice.randrange(1, 12))) for _ in range(40)] + ["<tool>" + TEXT[1]]
    rows = []
    for text in texts:
        row = {"text": text, "ids": tokenizer.encode(text, add_special_tokens=False).ids, "with_special": tokenizer.encode(text).ids}
        tokenizer.encode_special_tokens = True
        row["plain"] = tokenizer.encode(text, add_special_tokens=False).ids
        tokenizer.encode_special_tokens = False
        row["decoded"] = tokenizer.decode(row["with_special"], skip_special_tokens=False)
        row["decoded_skipping"] = tokenizer.decode(row["with_special"], skip_special_tokens=True)
        rows.append(row)
    return rows


def chats(path):
    rows = []
    for name, template in TEMPLATES.items():
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path), bos_token="<s>", eos_token="</s>", chat_template=template)
        for turns in CONVERSATIONS:
            messages = [{"role": role, "content": content} for role, content in turns]
            for prompt in (False, True):
                row = {"template": name, "messages": messages, "add_generation_prompt": prompt}
                try:
                    row["text"] = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
                except Exception as error:  # the template's own refusal
                    row["error"] = str(error)
                rows.append(row)
    return rows


OUT.mkdir(exist_ok=True)
make_tokenizer().save(str(OUT / "tokenizer.json"), pretty=False)
write = {"byte_level": cases(OUT / "tokenizer.json"), "stories260K": cases(STORIES), "templates": TEMPLATES,
         "chats": chats(OUT / "tokenizer.json")}
(OUT / "cases.json").write_text(json.dumps(write, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
