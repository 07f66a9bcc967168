"""Writes files with 100 000 tensors or metadata keys each into the current directory: for tests/cli/limits.txt."""
import json
import os
import shutil
import struct

count = 100000
names = [f"t{i:06}" for i in range(count)]


def write_safetensors(name, header, data):
    header = json.dumps(header).encode()
    with open(name, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header + data)


def text(value):
    return struct.pack("<Q", len(value)) + value.encode()


def write_gguf(name, tensors, keys, data):
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys)) + b"".join(keys) + b"".join(tensors)
    with open(name, "wb") as file:
        file.write(head + bytes(-len(head) % 32) + data)


write_safetensors("keys.safetensors", {"__metadata__": dict.fromkeys(names, "")}, b"")
write_gguf("many.gguf", [text(name) + struct.pack("<IQIQ", 1, 1, 0, 32 * i) for i, name in enumerate(names)], [], bytes(32 * count))
write_gguf("keys.gguf", [], [text(name) + struct.pack("<II", 4, 1) for name in names], b"")
shutil.copytree(os.environ["SHARE"] + "/models/stories260K", "sharded")
os.remove("sharded/model.safetensors")
write_safetensors("sharded/model-1.safetensors",
                  {name: {"dtype": "U8", "shape": [1], "data_offsets": [i, i + 1]} for i, name in enumerate(names)}, bytes(count))
with open("sharded/model.safetensors.index.json", "w") as file:
    json.dump({"weight_map": dict.fromkeys(names, "model-1.safetensors")}, file)
