"""Small Parquet files for tests/unit/data/reader_test.cpp, in FineWeb's layout: a text column among others, several row groups;
strings of every kind; conversations.

Made with pyarrow 26.0.1: python tests/golden/make_parquet.py
"""
import json
import pathlib

import pyarrow as pa
import pyarrow.parquet as pq

here = pathlib.Path(__file__).parent
rows = 21
texts = [f"document {i}" + " café" * (1 + i // 10) for i in range(rows)]
texts[5] = None
table = pa.table({
    "id": [f"<urn:uuid:{i}>" for i in range(rows)],
    "text": pa.array(texts, pa.string()),
    "score": [i / 10 for i in range(rows)],
})
pq.write_table(table, here / "documents.parquet", row_group_size=7, compression="zstd")
pairs = pa.table({"prompt": pa.array(["p0", "p1"], pa.large_string()), "response": pa.array(["r0", "r1"], pa.string())})
pq.write_table(pairs, here / "pairs.parquet", compression="snappy")

kinds = pa.array(["a", "bé", "a"])
strings = pa.table({
    "string": kinds,
    "large_string": kinds.cast(pa.large_string()),
    "string_view": kinds.cast(pa.string_view()),
    "dictionary": kinds.dictionary_encode(),
    "large_dictionary": kinds.cast(pa.large_string()).dictionary_encode(),
    "binary": kinds.cast(pa.binary()),
    "number": pa.array([1, 2, 3]),
})
pq.write_table(strings, here / "strings.parquet")

call = pa.struct([("name", pa.string()), ("arguments", pa.struct([("x", pa.int64()), ("y", pa.list_(pa.bool_()))]))])
message = pa.struct([("role", pa.string()), ("content", pa.string()), ("tool_calls", pa.list_(call)), ("score", pa.float64())])
conversations = [
    [{"role": "user", "content": 'q "1"\n'},
     {"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"x": 1, "y": [True, None]}}], "score": 0.5}],
    [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a", "tool_calls": [], "score": 2.0}],
    None,
]
keys = ["role", "content", "tool_calls", "score"]
as_text = [row and json.dumps([{key: message.get(key) for key in keys} for message in row]) for row in conversations]
pq.write_table(pa.table({
    "messages": pa.array(conversations, pa.list_(message)),
    "large": pa.array(conversations, pa.large_list(message)),
    "text": pa.array(as_text, pa.string()),
    "tools": pa.array([[{"name": "f"}], None, None], pa.list_(pa.struct([("name", pa.string())]))),
}), here / "messages.parquet")
