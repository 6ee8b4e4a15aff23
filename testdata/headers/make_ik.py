#!/usr/bin/env python3
"""Headers of the first blocks of models, for ik_llama.cpp's oracle: make_ik.py OUT FILE:BLOCKS[:EXPERTS]… (files of `moeplan synth`).

Sizes are those of the model; a NextN block becomes the last one. The weights are a hole. MLA models get few experts, since the fork reads their
weights."""
import os
import struct
import sys

SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


class Reader:
    def __init__(self, path):
        self.file = open(path, 'rb')

    def take(self, form):
        return struct.unpack('<' + form, self.file.read(struct.calcsize('<' + form)))

    def text(self):
        return self.file.read(self.take('Q')[0])

    def value(self, ty):
        """Its bytes; an array's elements apart."""
        if ty == 8:
            return self.text()
        if ty == 9:
            inner, n = self.take('IQ')
            return inner, [self.value(inner) for _ in range(n)]
        return self.file.read(SIZES[ty])


def text(data):
    return struct.pack('<Q', len(data)) + data


def pack(ty, value):
    if ty == 8:
        return text(value)
    if ty == 9:
        return struct.pack('<IQ', value[0], len(value[1])) + b''.join(pack(value[0], item) for item in value[1])
    return value


def convert(path, out, blocks, experts):
    reader = Reader(path)
    _, version, n_tensors, n_keys = reader.take('4sIQQ')
    keys = {}
    for _ in range(n_keys):
        name = reader.text()
        ty = reader.take('I')[0]
        keys[name] = (ty, reader.value(ty))
    arch = keys[b'general.architecture'][1] + b'.'
    number = lambda name: int.from_bytes(keys.get(arch + name, (4, b'\0'))[1], 'little')
    total, nextn = number(b'block_count'), number(b'nextn_predict_layers')
    kept = list(range(blocks)) + list(range(total - nextn, total))
    tensors = []
    for _ in range(n_tensors):
        name, n = reader.text(), reader.take('I')[0]
        shape, (ty, offset) = reader.take(f'{n}Q'), reader.take('IQ')
        tensors.append([name, shape, ty, offset])
    alignment = 32
    end = os.path.getsize(path) - (reader.file.tell() + alignment - 1) // alignment * alignment
    offsets = sorted(t[3] for t in tensors) + [end]
    sizes = {a: b - a for a, b in zip(offsets, offsets[1:])}
    for name, (ty, value) in keys.items():
        if name.startswith(arch) and ty == 9 and len(value[1]) in (total, total - nextn):
            keys[name] = (ty, (value[0], [value[1][i] for i in kept if i < len(value[1])]))
        # The vocabulary's words are not needed, only how many they are.
        if name.startswith(b'tokenizer') and ty == 9 and value[0] == 8:
            keys[name] = (ty, (8, [b'%d' % i for i in range(len(value[1]))])) if name.endswith(b'.tokens') else (ty, (8, []))
    all_experts = number(b'expert_count')
    if experts:
        keys[arch + b'expert_count'] = (4, struct.pack('<I', experts))
    keys[arch + b'block_count'] = (4, struct.pack('<I', len(kept)))
    header, data, at = b'', [], 0
    for name, shape, ty, offset in tensors:
        if name.startswith(b'blk.'):
            _, block, rest = name.split(b'.', 2)
            if int(block) not in kept:
                continue
            name = b'blk.%d.%s' % (kept.index(int(block)), rest)
        size = sizes[offset]
        if experts and shape[-1] == all_experts and any(part in name for part in (b'_exps', b'ffn_gate_inp', b'exp_probs')):
            size, shape = size * experts // all_experts, (*shape[:-1], experts)
            size += -size % alignment
        header += text(name) + struct.pack(f'<I{len(shape)}QIQ', len(shape), *shape, ty, at)
        at += size
        data.append(name)
    head = struct.pack('<4sIQQ', b'GGUF', version, len(data), len(keys))
    head += b''.join(text(name) + struct.pack('<I', ty) + pack(ty, value) for name, (ty, value) in keys.items()) + header
    with open(out, 'wb') as file:
        file.write(head)
        file.truncate((len(head) + alignment - 1) // alignment * alignment + at)


for argument in sys.argv[2:]:
    path, blocks, *experts = argument.split(':')
    convert(path, os.path.join(sys.argv[1], os.path.basename(path)), int(blocks), int(experts[0]) if experts else 0)
