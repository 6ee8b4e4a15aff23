#!/usr/bin/env python3
"""Adds a NextN block to the headers of an architecture archive: make_nextn.py FOLDER OUT (needs the Python package gguf).

FOLDER holds the files of architectures.tar.xz, OUT gets the same models with one more block that drafts. The weights are a hole.
The block is a copy of the last one with attention and of the last one with experts, and the tensors that `graph_mtp` of each
architecture reads (llama.cpp b11434, src/models)."""
import os
import struct
import sys
from gguf import GGUFReader, GGUFValueType, GGMLQuantizationType
from gguf.constants import GGML_QUANT_SIZES
from hole import text, write

MODELS = """bailingmoe3-moe cohere2moe-moe deepseek2-moe deepseek32-moe deepseek4-moe glm-dsa-moe glm4moe-moe hy_v3-moe mimo2-moe
qwen35-dense qwen35moe-moe qwen3next-moe qwen4exp-moe""".split()

FORMATS = {GGUFValueType.UINT8: 'B', GGUFValueType.INT8: 'b', GGUFValueType.UINT16: 'H', GGUFValueType.INT16: 'h', GGUFValueType.UINT32: 'I', GGUFValueType.INT32: 'i', GGUFValueType.FLOAT32: 'f', GGUFValueType.BOOL: '?', GGUFValueType.UINT64: 'Q', GGUFValueType.INT64: 'q', GGUFValueType.FLOAT64: 'd'}

def value(ty, item):
    return text(item) if ty == GGUFValueType.STRING else struct.pack('<' + FORMATS[ty], item)

def convert(path, out):
    reader = GGUFReader(path)
    fields = {name: (field.types, field.contents()) for name, field in reader.fields.items() if not name.startswith('GGUF.')}
    arch = fields['general.architecture'][1]
    blocks = fields[f'{arch}.block_count'][1]
    tensors = [(t.name, [int(n) for n in t.shape], t.tensor_type) for t in reader.tensors]
    embd = fields[f'{arch}.embedding_length'][1]
    own = {}
    is_ffn = lambda rest: rest.startswith(('ffn_', 'exp_probs')) or rest.startswith('hc_ffn')
    for il in range(blocks):
        mine = [(n.split('.', 2)[2], s, t) for n, s, t in tensors if n.startswith(f'blk.{il}.')]
        names = [n for n, _, _ in mine]
        recurrent = any(n.startswith('ssm_') for n in names)
        if any(n.startswith('attn_output') for n in names) and not recurrent:
            own = {k: v for k, v in own.items() if is_ffn(k)} | {n: (s, t) for n, s, t in mine if not is_ffn(n)}
        if any('ffn_up' in n for n in names):
            own = {k: v for k, v in own.items() if not is_ffn(k)} | {n: (s, t) for n, s, t in mine if is_ffn(n)}
    f32 = GGMLQuantizationType.F32
    own = {name: what for name, what in own.items() if not (name.endswith(('.scale', '.input_scale')) or 'compressor' in name or name.startswith('indexer') and arch == 'deepseek4')}
    own |= {'nextn.eh_proj.weight': ([2 * embd, embd], f32), 'nextn.enorm.weight': ([embd], f32), 'nextn.hnorm.weight': ([embd], f32), 'nextn.shared_head_norm.weight': ([embd], f32)}
    if arch == 'bailingmoe3':
        own['layer_output_norm.weight'] = own.pop('nextn.shared_head_norm.weight')
    if arch == 'qwen4exp':
        streams = fields[f'{arch}.hyper_connection.count'][1]
        own['nextn.hnorm.weight'] = ([embd, streams], f32)
        del own['nextn.shared_head_norm.weight']
        own |= {f'nextn.hc_head_{part}.weight': own[f'hc_attn_{part}.weight'] for part in ('norm', 'down', 'up')}
    if arch == 'mimo2':
        width = sum(own.pop(f'attn_{part}.weight')[0][1] for part in 'qkv')
        own = {name: what for name, what in own.items() if not name.startswith(('ffn_', 'exp_probs')) or name == 'ffn_norm.weight'}
        dense = fields[f'{arch}.feed_forward_length'][1]
        dense = dense[-1] if isinstance(dense, list) else dense
        own |= {'attn_qkv.weight': ([embd, width], f32), 'ffn_up.weight': ([embd, dense], f32), 'ffn_gate.weight': ([embd, dense], f32), 'ffn_down.weight': ([dense, embd], f32)}
    new = tensors + [(f'blk.{blocks}.{name}', shape, ty) for name, (shape, ty) in own.items()]
    fields[f'{arch}.block_count'] = (fields[f'{arch}.block_count'][0], blocks + 1)
    fields[f'{arch}.nextn_predict_layers'] = (fields[f'{arch}.nextn_predict_layers'][0], 1)
    for name, (types, items) in fields.items():
        if name.startswith(arch + '.') and isinstance(items, list) and len(items) == blocks and types[-1] != GGUFValueType.STRING:
            last = [i for i in items if i] or items
            fields[name] = (types, items + ([type(items[0])(0)] if name.endswith(('recurrent_layers', 'compress_ratios')) else last[-1:]))
    keys = []
    for name, (types, item) in fields.items():
        raw = struct.pack('<I', types[0])
        if types[0] == GGUFValueType.ARRAY:
            inner = types[1] if len(types) > 1 else GGUFValueType.STRING  # An empty array has lost its type; all that are empty here are of text.
            raw += struct.pack('<IQ', inner, len(item)) + b''.join(value(inner, i) for i in item)
        else:
            raw += value(types[0], item)
        keys.append((name, raw))
    write(out, keys, new, GGML_QUANT_SIZES)

for model in MODELS:
    convert(os.path.join(sys.argv[1], model + '.gguf'), os.path.join(sys.argv[2], model + '.gguf'))
