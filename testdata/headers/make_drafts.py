#!/usr/bin/env python3
"""Writes targets and draft models of every kind that llama.cpp b11434 knows: make_drafts.py NEXTN OUT.

NEXTN holds the files of nextn.tar.xz, of which OUT gets those blocks alone that draft, where llama.cpp loads such files. The others
are small, their weights are a hole. A draft `KIND-WHAT.gguf` is for `target-qwen3.gguf`, an assistant for `target-gemma4.gguf`."""
import glob
import os
import struct
import sys
from hole import text, write

F32, F16, I64 = 0, 1, 27
FORMATS = {0: 'B', 1: 'b', 2: 'H', 3: 'h', 4: 'I', 5: 'i', 6: 'f', 7: '?', 10: 'Q', 11: 'q', 12: 'd'}
SIZES = {F32: (1, 4), F16: (1, 2), I64: (1, 8)}
EMBD, VOCAB, DRAFT_VOCAB = 512, 3008, 1024

def value(item):
    if isinstance(item, list):
        inner = 7 if isinstance(item[0], bool) else 5
        return struct.pack('<IIQ', 9, inner, len(item)) + struct.pack(f'<{len(item)}{FORMATS[inner]}', *item)
    if isinstance(item, str):
        return struct.pack('<I', 8) + text(item)
    ty = 7 if isinstance(item, bool) else 4 if isinstance(item, int) else 6
    return struct.pack('<I' + FORMATS[ty], ty, item)

def model(name, arch, tensors, **keys):
    keys = {'general.architecture': arch, 'tokenizer.ggml.model': 'no_vocab'} | {f'{arch}.' + key.replace('__', '.'): item for key, item in keys.items()}
    keys[f'{arch}.vocab_size'] = VOCAB
    wide = lambda shape: len([n for n in shape if n > 1]) > 1
    typed = [(tensor, list(shape), ty[0] if ty else F16 if wide(shape) and 'norm' not in tensor else F32) for tensor, shape, *ty in tensors]
    write(os.path.join(sys.argv[2], name + '.gguf'), [(key, value(item)) for key, item in keys.items()], typed, SIZES)

def weights(il, shapes):
    return [(f'blk.{il}.{name}' + ('' if name.endswith(('_conv_base', '.bias')) else '.weight'), shape) for name, shape in shapes.items()]

HEADS, KV_HEADS, HEAD, FF = 8, 2, 64, 1408
plain_keys = dict(context_length=32768, embedding_length=EMBD, feed_forward_length=FF, attention__head_count=HEADS, attention__head_count_kv=KV_HEADS, attention__key_length=HEAD, attention__value_length=HEAD, attention__layer_norm_rms_epsilon=1e-6)
ffn = {'ffn_norm': [EMBD], 'ffn_gate': [EMBD, FF], 'ffn_up': [EMBD, FF], 'ffn_down': [FF, EMBD]}
def attention(width=EMBD):
    return {'attn_norm': [EMBD], 'attn_q': [width, HEADS * HEAD], 'attn_k': [width, KV_HEADS * HEAD], 'attn_v': [width, KV_HEADS * HEAD], 'attn_output': [HEADS * HEAD, EMBD]}
qk_norm = {'attn_q_norm': [HEAD], 'attn_k_norm': [HEAD]}
def blocks(n, shapes):
    return [tensor for il in range(n) for tensor in weights(il, shapes)]
embd, head, norm = ('token_embd.weight', [EMBD, VOCAB]), ('output.weight', [EMBD, VOCAB]), ('output_norm.weight', [EMBD])
d2t = ('d2t', [DRAFT_VOCAB], I64)

# Targets.
model('target-qwen3', 'qwen3', [embd, head, norm] + blocks(6, attention() | qk_norm | ffn), block_count=6, **plain_keys)
SWA_HEAD, FULL_HEAD = 64, 128
def gemma_block(il, is_swa, has_kv=True):
    n = SWA_HEAD if is_swa else FULL_HEAD
    shapes = {'attn_norm': [EMBD], 'attn_q': [EMBD, HEADS * n], 'attn_output': [HEADS * n, EMBD], 'attn_q_norm': [n], 'post_attention_norm': [EMBD], 'layer_output_scale': [1], 'post_ffw_norm': [EMBD]} | ffn
    if has_kv:
        shapes |= {'attn_k': [EMBD, KV_HEADS * n], 'attn_v': [EMBD, KV_HEADS * n], 'attn_k_norm': [n]}
    return weights(il, shapes)
gemma_keys = plain_keys | dict(attention__key_length=FULL_HEAD, attention__value_length=FULL_HEAD, attention__key_length_swa=SWA_HEAD, attention__value_length_swa=SWA_HEAD, attention__sliding_window=512, rope__dimension_count=FULL_HEAD, rope__dimension_count_swa=SWA_HEAD)
freqs = ('rope_freqs.weight', [FULL_HEAD // 2])
windows = [True, False, True, False, True, False]
for name, shared in [('target-gemma4', 0), ('target-gemma4-shared', 2)]:
    model(name, 'gemma4', [embd, norm, freqs] + [tensor for il, is_swa in enumerate(windows) for tensor in gemma_block(il, is_swa)], block_count=6, attention__sliding_window_pattern=windows, attention__shared_kv_layers=shared, embedding_length_per_layer_input=0, **gemma_keys)

# An assistant is narrower than its target.
SMALL, SMALL_FF = 256, 640
def assistant_block(il, is_swa):
    n = SWA_HEAD if is_swa else FULL_HEAD
    return weights(il, {'attn_norm': [SMALL], 'attn_q': [SMALL, 4 * n], 'attn_output': [4 * n, SMALL], 'attn_q_norm': [n], 'post_attention_norm': [SMALL], 'layer_output_scale': [1], 'ffn_norm': [SMALL], 'ffn_gate': [SMALL, SMALL_FF], 'ffn_up': [SMALL, SMALL_FF], 'ffn_down': [SMALL_FF, SMALL], 'post_ffw_norm': [SMALL]})
small_windows = [True, True, True, False]
assistant = gemma_keys | dict(embedding_length=SMALL, embedding_length_out=EMBD, feed_forward_length=SMALL_FF, attention__head_count=4)
model('assistant-gemma4', 'gemma4-assistant', [('token_embd.weight', [SMALL, VOCAB]), ('output_norm.weight', [SMALL]), freqs, ('nextn.pre_projection.weight', [2 * EMBD, SMALL]), ('nextn.post_projection.weight', [SMALL, EMBD])] + [tensor for il, is_swa in enumerate(small_windows) for tensor in assistant_block(il, is_swa)], block_count=4, nextn_predict_layers=4, attention__sliding_window_pattern=small_windows, attention__shared_kv_layers=4, **assistant)

# eagle3.
eagle = attention(2 * EMBD) | {'attn_norm_2': [EMBD]} | ffn
eagle_keys = plain_keys | dict(block_count=1, target_layers=[1, 3, 5], target_hidden_size=EMBD)
fc = ('fc.weight', [3 * EMBD, EMBD])
model('eagle3-shared', 'eagle3', [fc, norm] + weights(0, eagle), **eagle_keys)
model('eagle3-own', 'eagle3', [embd, ('output.weight', [EMBD, DRAFT_VOCAB]), d2t, fc, ('enc.output_norm.weight', [3 * EMBD]), norm, ('rope_freqs.weight', [HEAD // 2])] + weights(0, eagle), norm_before_fc=True, norm_before_residual=True, **eagle_keys)
model('eagle3-head', 'eagle3', [('output.weight', [EMBD, DRAFT_VOCAB]), d2t, fc, norm] + weights(0, eagle), **eagle_keys)

# dflash, and dspark with its chain.
enc = ('enc.output_norm.weight', [EMBD])
dflash = attention() | qk_norm | ffn
dflash_keys = plain_keys | dict(block_count=3, target_layers=[1, 3, 5], block_size=16, attention__causal=False)
markov = [('markov_w1.weight', [96, VOCAB]), ('markov_w2.weight', [96, VOCAB])]
model('dflash-shared', 'dflash', [fc, enc, norm] + blocks(3, dflash), **dflash_keys)
model('dflash-own', 'dflash', [embd, ('output.weight', [EMBD, DRAFT_VOCAB]), d2t, fc, enc, norm] + blocks(3, dflash), **dflash_keys)
model('dflash-tied', 'dflash', [embd, fc, enc, norm] + blocks(3, dflash), **dflash_keys)
model('dflash-windows', 'dflash', [fc, enc, norm] + blocks(3, dflash | {'attn_sinks': [HEADS]}), attention__sliding_window=512, attention__sliding_window_pattern=[True, True, False], **dflash_keys)
model('dflash-all-windows', 'dflash', [fc, enc, norm] + blocks(3, dflash), attention__sliding_window=256, attention__sliding_window_pattern=[True, True, True], **dflash_keys)
gelu = {name: shape for name, shape in dflash.items() if name != 'attn_v'} | {'post_attention_norm': [EMBD], 'post_ffw_norm': [EMBD], 'layer_output_scale': [1]}
model('dflash-gelu', 'dflash', [fc, enc, norm, ('rope_freqs.weight', [HEAD // 2])] + blocks(3, gelu), hidden_activation='gelu_pytorch_tanh', embedding_scale=22.6, attention__scale=1.0, attention__value_scale=0.5, **dflash_keys)
model('dflash-sections', 'dflash', [fc, enc, norm] + blocks(3, dflash), rope__dimension_sections=[32, 0, 0, 0], **dflash_keys)
model('dspark-shared', 'dflash', markov + [fc, enc, norm] + blocks(3, dflash), **dflash_keys)
model('dspark-own', 'dflash', [embd, ('output.weight', [EMBD, DRAFT_VOCAB]), d2t, markov[0], ('markov_w2.weight', [96, DRAFT_VOCAB]), ('conf_proj.weight', [EMBD + 96, 1]), ('conf_proj.bias', [1]), fc, enc, norm] + blocks(3, dflash), sample_from_anchor=False, **dflash_keys)
KERNEL, GROUP = 4, 64
convolved = dflash | {f'{part}_conv_base': [EMBD, KERNEL, 2] for part in ('attn', 'ffn')} | {f'{part}_conv_proj': [EMBD, 2 * KERNEL * EMBD // GROUP] for part in ('attn', 'ffn')}
model('dflash2-shared', 'dflash', [('selector_predecessor.weight', [64, VOCAB]), ('selector_successor.weight', [64, VOCAB]), ('selector_hidden.weight', [EMBD, 64]), fc, enc, norm] + blocks(3, convolved), conv_kernel_size=KERNEL, conv_group_size=GROUP, selector_rank=64, selector_top_k=8, logit_scale=0.5, final_logit_softcapping=30.0, **dflash_keys)
# Of deepseek4's layers.
STREAMS, EXPERTS, EXPERT_FF, GROUPS, RANK = 4, 16, 192, 4, 96
mix, wide = (2 + STREAMS) * STREAMS, STREAMS * EMBD
stage = {'attn_norm': [EMBD], 'attn_sinks': [HEADS], 'attn_q_a': [EMBD, 128], 'attn_q_a_norm': [128], 'attn_q_b': [128, HEADS * 128], 'attn_kv': [EMBD, 128], 'attn_kv_a_norm': [128], 'attn_output_a': [HEADS * 128 // GROUPS, RANK, GROUPS], 'attn_output_b': [GROUPS * RANK, EMBD], 'hc_attn_fn': [wide, mix], 'hc_attn_base': [mix], 'hc_attn_scale': [3], 'hc_ffn_fn': [wide, mix], 'hc_ffn_base': [mix], 'hc_ffn_scale': [3], 'ffn_gate_inp': [EMBD, EXPERTS], 'exp_probs_b.bias': [EXPERTS], 'ffn_norm': [EMBD], 'ffn_gate_exps': [EMBD, EXPERT_FF, EXPERTS], 'ffn_up_exps': [EMBD, EXPERT_FF, EXPERTS], 'ffn_down_exps': [EXPERT_FF, EMBD, EXPERTS], 'ffn_gate_shexp': [EMBD, EXPERT_FF], 'ffn_up_shexp': [EMBD, EXPERT_FF], 'ffn_down_shexp': [EXPERT_FF, EMBD]}
streams = dflash_keys | dict(attention__key_length=128, attention__value_length=128, attention__head_count_kv=1, rope__dimension_count=64, hyper_connection__count=STREAMS, hyper_connection__sinkhorn_iterations=4, hyper_connection__epsilon=1e-6, attention__q_lora_rank=128, attention__sliding_window=128, expert_feed_forward_length=EXPERT_FF, expert_shared_count=1, expert_count=EXPERTS, expert_used_count=4, expert_weights_scale=1.5, expert_weights_norm=True, expert_gating_func=4, swiglu_clamp_exp=10.0, attention__output_group_count=GROUPS, attention__output_lora_rank=RANK)
hc = [('output_hc_fn.weight', [wide, STREAMS]), ('output_hc_base.weight', [STREAMS]), ('output_hc_scale.weight', [1])]
model('dspark-streams', 'dflash', markov + hc + [('conf_proj.weight', [EMBD + 96, 1]), fc, enc, norm] + blocks(3, stage), **streams)

class Reader:
    """The header of a file, its values as they lie."""
    def __init__(self, path):
        self.raw, self.at, self.keys, self.tensors = open(path, 'rb').read(), 24, [], []
        n_tensors, n_keys = struct.unpack_from('<QQ', self.raw, 8)
        for _ in range(n_keys):
            name, start = self.text(), self.at
            self.skip(self.number('I'))
            self.keys.append((name, self.raw[start:self.at]))
        for _ in range(n_tensors):
            name, n = self.text(), self.number('I')
            shape, ty, _ = [self.number('Q') for _ in range(n)], self.number('I'), self.number('Q')
            self.tensors.append((name, shape, ty))

    def number(self, ty):
        found, = struct.unpack_from('<' + ty, self.raw, self.at)
        self.at += struct.calcsize('<' + ty)
        return found

    def text(self):
        n = self.number('Q')
        self.at += n
        return self.raw[self.at - n:self.at].decode()

    def skip(self, ty):
        if ty == 9:
            inner, n = self.number('I'), self.number('Q')
            for _ in range(n):
                self.skip(inner)
        elif ty == 8:
            self.text()
        else:
            self.number(FORMATS[ty])

for path in sorted(glob.glob(os.path.join(sys.argv[1], '*.gguf'))):
    file = Reader(path)
    n_layer = max(int(name.split('.')[1]) for name, _, _ in file.tensors if name.startswith('blk.'))
    kept = [tensor for tensor in file.tensors if not tensor[0].startswith('blk.') or tensor[0].startswith(f'blk.{n_layer}.')]
    write(os.path.join(sys.argv[2], 'nextn-' + os.path.basename(path)), file.keys, kept, SIZES)
