"""Writes the small GGUF files of this directory with llama.cpp's Python package: pip install gguf==0.* numpy."""

import pathlib

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFEndian, GGUFValueType, GGUFWriter

HERE = pathlib.Path(__file__).parent
# Ids that the package knows but ggml has removed.
REMOVED = {4, 5, 31, 32, 33, 36, 37, 38}


def add(writer, name, shape, ty):
    """A tensor of zeros; `shape` as ggml writes it, contiguous dimension first."""
    block, size = GGML_QUANT_SIZES[ty]
    rows = list(reversed(shape))
    rows[-1] = rows[-1] // block * size
    writer.add_tensor(name, np.zeros(rows, dtype=np.uint8), raw_shape=rows, raw_dtype=ty)


def close(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def values(writer):
    """One key of each type, and arrays."""
    writer.add_uint8("x.u8", 200)
    writer.add_int8("x.i8", -100)
    writer.add_uint16("x.u16", 60000)
    writer.add_int16("x.i16", -30000)
    writer.add_uint32("x.u32", 4_000_000_000)
    writer.add_int32("x.i32", -2_000_000_000)
    writer.add_float32("x.f32", 0.25)
    writer.add_uint64("x.u64", 2**63 + 5)
    writer.add_int64("x.i64", -(2**62))
    writer.add_key_value("x.f64", 1e300, GGUFValueType.FLOAT64)
    writer.add_bool("x.bool", True)
    writer.add_string("x.text", "naïve 漢字")
    writer.add_array("x.ints", [1, 2, 3])
    writer.add_array("x.bools", [True, False])
    writer.add_array("x.texts", ["a", "", "ccc"])
    writer.add_array("tokenizer.ggml.tokens", ["<s>", "a", "b"])


def moe(writer, up, down):
    writer.add_block_count(2)
    writer.add_embedding_length(256)
    writer.add_expert_count(2)
    writer.add_expert_used_count(1)
    add(writer, "token_embd.weight", [256, 3], GGMLQuantizationType.Q6_K)
    for block in range(2):
        add(writer, f"blk.{block}.ffn_gate_inp.weight", [256, 2], GGMLQuantizationType.F32)
        add(writer, f"blk.{block}.ffn_up_exps.weight", [256, 2, 2], up)
        add(writer, f"blk.{block}.ffn_down_exps.weight", [256, 2, 2], down)
    add(writer, "output_norm.weight", [256], GGMLQuantizationType.F32)


def main():
    types = GGUFWriter(HERE / "every-type.gguf", "llama")
    for ty, (block, _) in GGML_QUANT_SIZES.items():
        if ty.value not in REMOVED and ty.value < 43:
            add(types, f"{ty.name.lower()}.weight", [block, 1], ty)
    close(types)
    for name, endian in [("every-value", GGUFEndian.LITTLE), ("big-endian", GGUFEndian.BIG)]:
        writer = GGUFWriter(HERE / f"{name}.gguf", "llama", endianess=endian)
        values(writer)
        add(writer, "token_embd.weight", [32, 3], GGMLQuantizationType.F16)
        close(writer)
    for name, up, down in [("moe-mxfp4", "MXFP4", "MXFP4"), ("moe-q4_k", "Q4_K", "Q6_K")]:
        writer = GGUFWriter(HERE / f"{name}.gguf", "gpt-oss" if "MX" in up else "qwen3moe")
        moe(writer, GGMLQuantizationType[up], GGMLQuantizationType[down])
        close(writer)
    wide = GGUFWriter(HERE / "alignment-128.gguf", "qwen3moe")
    wide.add_custom_alignment(128)
    moe(wide, GGMLQuantizationType.IQ4_XS, GGMLQuantizationType.Q5_K)
    close(wide)
    version = bytearray((HERE / "moe-q4_k.gguf").read_bytes())
    version[4] = 2
    (HERE / "version-2.gguf").write_bytes(version)
    split = GGUFWriter(HERE / "split.gguf", "qwen3moe", split_max_tensors=5)
    moe(split, GGMLQuantizationType.Q4_K, GGMLQuantizationType.Q6_K)
    close(split)


main()
