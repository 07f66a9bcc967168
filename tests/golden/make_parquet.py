"""Small Parquet files for tests/unit/data/reader_test.cpp, in FineWeb's layout: a text column among others, several row groups.

Made with pyarrow 26.0.1: python tests/golden/make_parquet.py
"""
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
