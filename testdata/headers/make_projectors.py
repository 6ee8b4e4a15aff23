#!/usr/bin/env python3
"""Writes a projector of each type that llama.cpp b11434 knows: make_projectors.py FOLDER. The shapes are like those of published files, with
fewer blocks; the weights are a hole. `testdata/truth/projectors.tsv` holds what llama.cpp takes for them."""
import os
import struct
import sys
from hole import text, write

F32, F16, Q8_0, BF16 = 0, 1, 8, 30
SIZES = {F32: (1, 4), F16: (1, 2), Q8_0: (32, 34), BF16: (1, 2)}

class Signed(int):
    """A number that llama.cpp reads as a signed one."""

def value(item):
    if isinstance(item, Signed):
        return struct.pack('<Ii', 5, item)
    if isinstance(item, bool):
        return struct.pack('<I?', 7, item)
    if isinstance(item, int):
        return struct.pack('<II', 4, item)
    if isinstance(item, float):
        return struct.pack('<If', 6, item)
    if isinstance(item, str):
        return struct.pack('<I', 8) + text(item)
    if isinstance(item[0], float):
        return struct.pack('<IIQ', 9, 6, len(item)) + struct.pack(f'<{len(item)}f', *item)
    return struct.pack('<IIQ', 9, 5, len(item)) + struct.pack(f'<{len(item)}i', *item)

class File:
    def __init__(self, name):
        self.name, self.keys, self.tensors = name, {'general.architecture': 'clip', 'general.type': 'mmproj', 'general.name': name}, []

    def key(self, **keys):
        self.keys |= {'clip.' + name.replace('__', '.'): item for name, item in keys.items()}
        return self

    def add(self, name, *shape, ty=None):
        wide = len([n for n in shape if n > 1]) > 1
        self.tensors.append((name, shape, ty if ty is not None else F16 if wide and name.endswith('weight') else F32))
        return self

    def w(self, name, *shape, ty=None):
        return self.add(name + '.weight', *shape, ty=ty)

    def b(self, name, n):
        return self.add(name + '.bias', n)

    def wb(self, name, *shape, bias=None):
        return self.w(name, *shape).b(name, bias or shape[-1])

    def vision(self, kind, d, heads, ff, layers, size, patch, **more):
        self.key(has_vision_encoder=True, projector_type=kind, vision__image_size=size, vision__patch_size=patch, vision__image_mean=[0.5] * 3, vision__image_std=[0.5] * 3)
        return self.encoder('vision', d, heads, ff, layers, **more)

    def audio(self, kind, d, heads, ff, layers, mel=128, **more):
        self.key(has_audio_encoder=True, projector_type=kind, audio__num_mel_bins=mel)
        return self.encoder('audio', d, heads, ff, layers, **more)

    def encoder(self, part, d, heads, ff, layers, out=2560, act='gelu', **more):
        self.keys |= {f'clip.{part}.{k}': v for k, v in {'embedding_length': d, 'attention.head_count': heads, 'feed_forward_length': ff, 'block_count': layers, 'projection_dim': out, 'attention.layer_norm_epsilon': 1e-6}.items()}
        self.keys |= {f'clip.{part}.{k.replace("__", ".")}': v for k, v in more.items()}
        if act:
            self.keys[f'clip.use_{act}'] = True
        self.d, self.heads, self.ff, self.layers, self.out = d, heads, ff, layers, out
        return self

    def patch(self, patch, bias=True, channels=3):
        self.w('v.patch_embd', patch, patch, channels, self.d)
        return self.b('v.patch_embd', self.d) if bias else self

    def blocks(self, p='v', bias=True, ln_bias=True, fused=False, gate=False, head=None, kv=None, k_bias=True, qk_norm=0, extra=(), ln=True, ffn=True, o_bias=None):
        d = self.d
        head = head or d // self.heads
        kv = kv or self.heads
        for i in range(self.layers):
            at = f'{p}.blk.{i}.'
            if ln:
                for n in ('ln1', 'ln2'):
                    self.w(at + n, d)
                    if ln_bias:
                        self.b(at + n, d)
            if fused:
                n = head * (self.heads + 2 * kv)
                self.w(at + 'attn_qkv', d, n)
                if bias:
                    self.b(at + 'attn_qkv', n)
            else:
                for n, width in (('attn_q', head * self.heads), ('attn_k', head * kv), ('attn_v', head * kv)):
                    self.w(at + n, d, width)
                    if bias and (k_bias or n != 'attn_k'):
                        self.b(at + n, width)
            self.w(at + 'attn_out', head * self.heads, d)
            if bias if o_bias is None else o_bias:
                self.b(at + 'attn_out', d)
            if qk_norm:
                self.w(at + 'attn_q_norm', qk_norm).w(at + 'attn_k_norm', qk_norm)
            if ffn:
                self.w(at + 'ffn_up', d, self.ff).w(at + 'ffn_down', self.ff, d)
                if gate:
                    self.w(at + 'ffn_gate', d, self.ff)
                if bias:
                    self.b(at + 'ffn_up', self.ff).b(at + 'ffn_down', d)
                    if gate:
                        self.b(at + 'ffn_gate', self.ff)
            for n in extra:
                self.w(at + n, d)
        return self

    def norm(self, *names, n=None, bias=True):
        for name in names:
            self.w(name, n or self.d)
            if bias:
                self.b(name, n or self.d)
        return self

    def retyped(self, name, ty):
        """The same with its F16 matrices in another type; kernels of convolutions stay as they are where they have to."""
        other = File(name)
        other.keys = self.keys | {'general.name': name}
        fits = lambda shape: len(shape) == 2 and shape[0] % SIZES[ty][0] == 0 or ty == BF16
        other.tensors = [(n, shape, ty if old == F16 and fits(shape) else old) for n, shape, old in self.tensors]
        return other

    def save(self, folder):
        keys = [(name, value(item)) for name, item in self.keys.items()]
        write(os.path.join(folder, self.name + '.gguf'), keys, self.tensors, SIZES)

def siglip(name, kind, size=896, patch=14, d=1152, heads=16, ff=4304, out=2560, **more):
    f = File(name).vision(kind, d, heads, ff, 3, size, patch, out=out, **more).patch(patch)
    n = (size // patch) ** 2
    return f.add('v.position_embd.weight', d, n, ty=F32).blocks().norm('v.post_ln')

FILES = []
def made(function):
    made_files = function()
    FILES.extend(made_files if isinstance(made_files, list) else [made_files])

@made
def gemma3():
    one = lambda name, **more: siglip(name, 'gemma3', **more).w('mm.input_projection', 2560, 1152).w('mm.soft_emb_norm', 1152)
    small = siglip('gemma3-scaled', 'gemma3', size=224, projector__scale_factor=2).w('mm.input_projection', 2560, 1152).w('mm.soft_emb_norm', 1152)
    return [one('gemma3'), small]

@made
def siglips():
    return [
        siglip('idefics3', 'idefics3', size=512, patch=16, d=768, heads=12, ff=3072, projector__scale_factor=4, preproc_image_size=2048).w('mm.model.fc', 12288, 960),
        siglip('lfm2', 'lfm2', size=256, patch=16, d=768, heads=12, ff=3072, projector__scale_factor=2).norm('mm.input_norm', n=3072).wb('mm.1', 3072, 2560).wb('mm.2', 2560, 1024),
        siglip('lfm2-plain', 'lfm2', size=256, patch=16, projector__scale_factor=2).wb('mm.1', 4608, 2560).wb('mm.2', 2560, 2048),
        siglip('janus_pro', 'janus_pro', size=384, patch=16, d=1024, ff=4096).wb('mm.0', 1024, 2048).wb('mm.1', 2048, 2048),
        siglip('phi4', 'phi4', size=448, image_min_pixels=200704, image_max_pixels=1003520).wb('mm.0', 1152, 3072).wb('mm.2', 3072, 3072),
    ]

def llava(name, kind='mlp', size=336, d=1024, pre=True, cls=True, post=False, **more):
    f = File(name).vision(kind, d, d // 64, 4 * d, 4, size, 14, out=4096, act=None, **more).patch(14, bias=False)
    n = (size // 14) ** 2 + cls
    f.add('v.position_embd.weight', d, n, ty=F32).blocks()
    if cls: f.add('v.class_embd', d)
    if pre: f.norm('v.pre_ln')
    if post: f.norm('v.post_ln')
    return f

@made
def llavas():
    ldp = llava('ldp', 'ldp').wb('mm.model.mlp.1', 1024, 2048).wb('mm.model.mlp.3', 2048, 2048)
    for i in (1, 2):
        at = f'mm.model.mb_block.{i}.block.'
        ldp.w(at + '0.0', 3, 3, 1, 2048).norm(at + '0.1', at + '2.1', n=2048).wb(at + '1.fc1', 2048, 512).wb(at + '1.fc2', 512, 2048).w(at + '2.0', 2048, 2048)
    ldpv2 = llava('ldpv2', 'ldpv2').wb('mm.model.mlp.0', 1024, 2048).wb('mm.model.mlp.2', 2048, 2048).w('mm.model.peg.0', 3, 3, 1, 2048).b('mm.model.peg.0', 2048)
    edge = llava('glm-edge', 'adapter', size=672, d=1152, pre=False, cls=False, post=True).w('adapter.conv', 2, 2, 1152, 2048).b('adapter.conv', 2048)
    edge.heads = 18
    edge.w('adapter.linear.linear', 2048, 2048).norm('adapter.linear.norm1', n=2048).w('adapter.linear.dense_h_to_4h', 2048, 6912).w('adapter.linear.gate', 2048, 6912).w('adapter.linear.dense_4h_to_h', 6912, 2048)
    edge.add('adapter.boi', 2048).add('adapter.eoi', 2048)
    granite = llava('granite-vision', size=384, d=1152, pre=False, cls=False, post=True, feature_layer=[1, 3, 4]).wb('mm.0', 3456, 2048).wb('mm.2', 2048, 2048)
    yi = llava('llava-yi').wb('mm.0', 1024, 4096).norm('mm.1', n=4096).wb('mm.3', 4096, 4096).norm('mm.4', n=4096)
    return [llava('llava').wb('mm.0', 1024, 4096).wb('mm.2', 4096, 4096).add('v.image_newline', 4096), ldp, ldpv2, edge, granite, yi]

@made
def fixed():
    intern = File('internvl').vision('internvl', 1024, 16, 4096, 3, 448, 14, projector__scale_factor=2).patch(14).add('v.class_embd', 1024).add('v.position_embd.weight', 1024, 1025, ty=F32)
    intern.blocks(extra=('ls1', 'ls2')).norm('mm.model.mlp.0', n=4096).wb('mm.model.mlp.1', 4096, 3584).wb('mm.model.mlp.3', 3584, 3584)
    big = File('internvl-6b').vision('internvl', 3200, 25, 12800, 2, 448, 14, projector__scale_factor=2).patch(14).add('v.class_embd', 3200).add('v.position_embd.weight', 3200, 1025, ty=F32)
    big.blocks(extra=('ls1', 'ls2'), qk_norm=3200, fused=False, ln_bias=False).norm('mm.model.mlp.0', n=12800).wb('mm.model.mlp.1', 12800, 3584).wb('mm.model.mlp.3', 3584, 3584)
    nemotron = File('nemotron_v2_vl').vision('nemotron_v2_vl', 1280, 16, 5120, 3, 512, 16, projector__scale_factor=2).patch(16, bias=False).add('v.class_embd', 1280, 10).add('v.position_embd.weight', 1280, 1024, ty=F32)
    nemotron.blocks(fused=True).w('mm.model.mlp.0', 5120).w('mm.model.mlp.1', 5120, 2048).w('mm.model.mlp.3', 2048, 4480)
    llama4 = File('llama4').vision('llama4', 1408, 16, 5632, 3, 336, 14, projector__scale_factor=2).w('v.patch_embd', 588, 1408).add('v.class_embd', 1408).add('v.position_embd.weight', 1408, 577, ty=F32)
    llama4.blocks().norm('v.pre_ln', 'v.post_ln').w('mm.model.mlp.1', 5632, 4096).w('mm.model.mlp.2', 4096, 4096).w('mm.model.fc', 4096, 5120)
    cog = File('cogvlm').vision('cogvlm', 1792, 16, 15360, 2, 490, 14).patch(14).add('v.class_embd', 1792).add('v.position_embd.weight', 1792, 1226, ty=F32)
    cog.blocks(fused=True).w('mm.model.fc', 1792, 4096).norm('mm.post_fc_norm', n=4096).w('mm.up', 4096, 14336).w('mm.gate', 4096, 14336).w('mm.down', 14336, 4096).add('v.boi', 4096).add('v.eoi', 4096)
    return [intern, big, nemotron, llama4, cog]

@made
def minicpm():
    f = File('minicpmv').vision('resampler', 1152, 16, 4304, 3, 448, 14).key(minicpmv_version=Signed(3)).patch(14).add('v.position_embd.weight', 1152, 4900, ty=F32).blocks().norm('v.post_ln')
    d = 3584
    f.add('resampler.pos_embed_k', d, 4900).add('resampler.query', d, 64).w('resampler.proj', d, d).w('resampler.kv', 1152, d)
    for n in 'qkv': f.wb('resampler.attn.' + n, d, d)
    f.wb('resampler.attn.out', d, d).norm('resampler.ln_q', 'resampler.ln_kv', 'resampler.ln_post', n=d)
    def unified(name, merge):
        g = File(name).vision('minicpmv4_6', 1152, 16, 4304, 4, 448, 14, projector__scale_factor=merge, wa_layer_indexes=[1]).patch(14).add('v.position_embd.weight', 1152, 4900, ty=F32).blocks().norm('v.post_ln')
        if merge == 4:
            at = 'v.vit_merger.'
            g.norm(at + 'ln1')
            for n in ('attn_q', 'attn_k', 'attn_v', 'attn_out'): g.wb(at + n, 1152, 1152)
            g.norm(at + 'ds_ln', n=4608).wb(at + 'ds_ffn_up', 4608, 4304).wb(at + 'ds_ffn_down', 4304, 1152)
        return g.norm('mm.input_norm', n=4608).wb('mm.up', 4608, 4608).wb('mm.down', 4608, 2560)
    return [f, unified('minicpmv4_6', 4), unified('minicpmv4_6-4x', 2)]

@made
def tiles():
    def pixtral(name, kind, **more):
        return File(name).vision(kind, 1024, 16, 4096, 3, 1540, 14, act='silu', **more).patch(14, bias=False).blocks(bias=False, ln_bias=False, gate=True).w('v.pre_ln', 1024)
    plain = pixtral('pixtral', 'pixtral').wb('mm.1', 1024, 5120).wb('mm.2', 5120, 5120).add('v.token_embd.img_break', 5120)
    small = pixtral('mistral-small', 'pixtral', spatial_merge_size=2).w('mm.input_norm', 1024).w('mm.patch_merger', 4096, 1024).w('mm.1', 1024, 5120).w('mm.2', 5120, 5120).add('v.token_embd.img_break', 5120)
    light = pixtral('lightonocr', 'lightonocr', spatial_merge_size=2).w('mm.input_norm', 1024).w('mm.patch_merger', 4096, 1024).w('mm.1', 1024, 1024).w('mm.2', 1024, 1024)
    g4 = File('gemma4v').vision('gemma4v', 1152, 16, 4304, 3, 224, 16).patch(16, bias=False).add('v.position_embd.weight', 1152, 10240, 2, ty=F32)
    g4.blocks(bias=False, ln_bias=False, gate=True, qk_norm=72, extra=('attn_post_norm', 'ffn_post_norm')).w('mm.input_projection', 1152, 2816).add('v.std_bias', 1152).add('v.std_scale', 1152)
    for i in range(3): g4.add(f'v.blk.{i}.attn_q.input_max', 1).add(f'v.blk.{i}.attn_q.input_min', 1)
    g4u = File('gemma4u').key(has_vision_encoder=True, has_audio_encoder=True, vision__projector_type='gemma4uv', audio__projector_type='gemma4ua', vision__image_size=224, vision__patch_size=16, vision__image_mean=[0.5] * 3, vision__image_std=[0.5] * 3, audio__num_mel_bins=128)
    g4u.encoder('audio', 640, 0, 0, 0, act=None).encoder('vision', 2816, 0, 0, 0, act=None)
    g4u.w('v.patch_embd', 6912, 2816).b('v.patch_embd', 2816).add('v.position_embd.weight', 2816, 1120, 2, ty=F32).norm('v.patch_norm.1', n=6912).norm('v.patch_norm.2', 'v.patch_norm.3', n=2816).w('mm.input_projection', 2816, 2816).w('mm.a.input_projection', 640, 2816)
    kimi = File('kimivl').vision('kimivl', 1152, 16, 4304, 3, 448, 14, projector__scale_factor=2).patch(14).add('v.position_embd.weight', 1152, 4096, ty=F32).blocks().norm('v.post_ln').norm('mm.input_norm').wb('mm.1', 4608, 4608).wb('mm.2', 4608, 2048)
    k25 = lambda name, **more: File(name).vision('kimik25', 1152, 16, 4304, 2, 448, 14, projector__scale_factor=2, **more).patch(14).add('v.position_embd.weight', 1152, 64, 64, ty=F32).blocks(fused=True).norm('v.post_ln').norm('mm.input_norm').wb('mm.1', 4608, 4608).wb('mm.2', 4608, 7168)
    step = File('step3vl').vision('step3vl', 1536, 16, 8960, 2, 728, 14).patch(14, bias=False).add('v.position_embd.weight', 1536, 2704, ty=F32).blocks(fused=True, extra=('ls1', 'ls2')).norm('v.pre_ln')
    step.w('mm.0', 3, 3, 1536, 3072).b('mm.0', 3072).w('mm.1', 3, 3, 3072, 6144).b('mm.1', 6144).w('mm.model.fc', 6144, 4096)
    hunyuan = File('hunyuanvl').vision('hunyuanvl', 1152, 16, 4304, 3, 2048, 16, spatial_merge_size=2).patch(16).add('v.position_embd.weight', 1152, 16385, ty=F32).blocks()
    hunyuan.w('mm.0', 2, 2, 1152, 2304).b('mm.0', 2304).w('mm.2', 1, 1, 2304, 4608).b('mm.2', 4608).wb('mm.model.fc', 4608, 1024).w('mm.pre_norm', 1152).w('mm.post_norm', 1024).add('mm.image_begin', 1024).add('mm.image_end', 1024).add('v.image_newline', 4608)
    ds4 = File('deepseek4v').vision('deepseek4v', 1024, 16, 4096, 3, 448, 14, act='silu', projector__scale_factor=3, image_min_pixels=3136).patch(14).blocks(bias=False, ln_bias=False, gate=True).w('v.post_ln', 1024)
    ds4.wb('mm.1', 9216, 4096).wb('mm.2', 4096, 4096)
    for n in ('v.image_newline', 'v.token_embd.img_start', 'v.token_embd.img_end', 'v.token_embd.img_pad'): ds4.add(n, 4096)
    muse = File('muse-glimmer').vision('muse-glimmer', 1536, 16, 8960, 5, 448, 14).patch(14).add('v.position_embd.weight', 1536, 1024, ty=F32).blocks().norm('v.pre_ln', 'v.post_ln').w('mm.0', 6144, 4096).w('mm.1', 4096, 4096).w('mm.2', 4096, 6656)
    return [plain, small, light, g4, g4u, kimi, k25('kimik25'), k25('kimik25-pixels', image_min_pixels=3136, image_max_pixels=1003520), step, hunyuan, ds4, muse]

@made
def merged():
    def qwen(name, kind, d=1280, out=3584, second=True, act='silu', **more):
        f = File(name).vision(kind, d, 16, 3420 if act == 'silu' else 4 * d, 4, 560, 14, act=act, out=out, **more).patch(14, bias=False)
        return f.add('v.patch_embd.weight.1', 14, 14, 3, d, ty=F16)
    q2 = qwen('qwen2vl', 'qwen2vl_merger', act=None).blocks().norm('v.post_ln').wb('mm.0', 5120, 5120).wb('mm.2', 5120, 3584)
    swapped = qwen('qwen2vl-old', 'qwen2vl_merger', act=None)
    swapped.blocks(ffn=False)
    for i in range(4): swapped.wb(f'v.blk.{i}.ffn_down', 1280, 5120).wb(f'v.blk.{i}.ffn_up', 5120, 1280)
    swapped.norm('v.post_ln').wb('mm.0', 5120, 5120).wb('mm.2', 5120, 3584)
    q25 = qwen('qwen2.5vl', 'qwen2.5vl_merger', n_wa_pattern=3).blocks(ln_bias=False, gate=True).w('v.post_ln', 1280).wb('mm.0', 5120, 5120).wb('mm.2', 5120, 3584)
    exa = qwen('exaone4_5', 'exaone4_5', n_wa_pattern=2, attention__head_count_kv=8, image_min_pixels=3136, image_max_pixels=12845056).blocks(ln_bias=False, gate=True, fused=True, kv=8).w('v.post_ln', 1280).wb('mm.0', 5120, 5120).wb('mm.2', 5120, 3584)
    def qwen3(name, d=1152, deep=(0, 2)):
        f = File(name).vision('qwen3vl_merger', d, 16, 4304, 4, 768, 16, out=4096, spatial_merge_size=2).patch(16).add('v.patch_embd.weight.1', 16, 16, 3, d, ty=F16).add('v.position_embd.weight', d, 2304, ty=F32)
        f.blocks(fused=True).norm('v.post_ln').wb('mm.0', 4 * d, 4 * d).wb('mm.2', 4 * d, 4096)
        for i in deep: f.norm(f'v.deepstack.{i}.norm', n=4 * d).wb(f'v.deepstack.{i}.fc1', 4 * d, 4 * d).wb(f'v.deepstack.{i}.fc2', 4 * d, 4096)
        return f
    ling = File('ling3vl').vision('ling3vl', 1152, 16, 4304, 3, 768, 16).patch(16).add('v.patch_embd.weight.1', 16, 16, 3, 1152, ty=F16).add('v.position_embd.weight', 1152, 2304, ty=F32).blocks(fused=True).norm('mm.input_norm').wb('mm.0', 4608, 4096).wb('mm.2', 4096, 4096)
    def glm(name, kind, **more):
        f = File(name).vision(kind, 1536, 12, 4096, 3, 336, 14, act='silu', **more).patch(14).add('v.patch_embd.weight.1', 14, 14, 3, 1536, ty=F16).add('v.position_embd.weight', 1536, 576, ty=F32).norm('v.norm_embd', bias=False)
        f.blocks(bias=False, ln_bias=False, gate=True, fused=True).w('v.post_ln', 1536).w('mm.patch_merger', 2, 2, 1536, 4096).b('mm.patch_merger', 4096).w('mm.model.fc', 4096, 4096).norm('mm.post_norm', n=4096)
        return f.w('mm.up', 4096, 10944).w('mm.gate', 4096, 10944).w('mm.down', 10944, 4096)
    paddle = File('paddleocr').vision('paddleocr', 1152, 16, 4304, 3, 384, 14, image_min_pixels=147384, image_max_pixels=2822400).patch(14).add('v.position_embd.weight', 1152, 729, ty=F32).blocks().norm('v.post_ln').norm('mm.input_norm').wb('mm.1', 4608, 4608).wb('mm.2', 4608, 1024)
    dots = File('dots_ocr').vision('dots_ocr', 1536, 12, 4224, 3, 448, 14, act='silu', projector__scale_factor=2, image_min_pixels=3136, image_max_pixels=11289600).patch(14).blocks(bias=False, ln_bias=False, gate=True, fused=True).w('mm.post_norm', 1536).norm('mm.input_norm').wb('mm.0', 6144, 6144).wb('mm.2', 6144, 1536)
    note = File('dots3note_v').vision('dots3note_v', 1536, 12, 4224, 2, 448, 14, act='silu', spatial_merge_size=2, image_min_pixels=3136, image_max_pixels=11289600, expert_used_count=2).patch(14).blocks(bias=False, ln_bias=False, gate=True, fused=True, ffn=False)
    for i in range(2):
        at = f'v.blk.{i}.'
        if i == 0: note.w(at + 'ffn_up', 1536, 4224).w(at + 'ffn_gate', 1536, 4224).w(at + 'ffn_down', 4224, 1536)
        else: note.add(at + 'ffn_gate_inp.weight', 1536, 8, ty=F32).w(at + 'ffn_gate_exps', 1536, 1024, 8).w(at + 'ffn_up_exps', 1536, 1024, 8).w(at + 'ffn_down_exps', 1024, 1536, 8).w(at + 'exp_probs_b', 8)
    note.w('mm.post_norm', 1536).norm('mm.input_norm').wb('mm.0', 6144, 6144).wb('mm.2', 6144, 1536)
    mimo = qwen('mimovl', 'mimovl', out=4096, attention__head_count_kv=4, window_size=64, wa_pattern_mode=[-1, 0, 1, 0], image_min_pixels=3136, image_max_pixels=12845056)
    mimo.blocks(ln_bias=False, gate=True, fused=True, head=64, kv=4)
    for i in range(4): mimo.add(f'v.blk.{i}.attn_sinks', 16)
    mimo.norm('v.post_ln').w('mm.0', 5120, 5120).w('mm.2', 5120, 4096)
    m3 = File('minimax_m3').vision('minimax_m3', 1280, 16, 5120, 3, 672, 14, spatial_merge_size=2).patch(14, bias=False).add('v.patch_embd.weight.1', 14, 14, 3, 1280, ty=F16).blocks().norm('v.pre_ln').wb('mm.1', 1280, 6144).wb('mm.2', 6144, 6144).wb('mm.merger.fc1', 24576, 6144).wb('mm.merger.fc2', 6144, 6144)
    youtu = File('youtuvl').vision('youtuvl', 1152, 16, 4304, 4, 512, 16, spatial_merge_size=2, window_size=256, wa_layer_indexes=[1, 3]).w('v.patch_embd', 768, 1152).b('v.patch_embd', 1152).blocks().norm('v.post_ln').w('mm.input_norm', 1152).wb('mm.0', 4608, 4608).wb('mm.2', 4608, 2048)
    return [q2, swapped, q25, exa, qwen3('qwen3vl'), qwen3('qwen3vl-plain', deep=()), ling, glm('glm4v', 'glm4v'), glm('glm5v', 'glm5v', swiglu_clamp=7.0, image_min_pixels=3136, image_max_pixels=2822400), paddle, dots, note, mimo, m3, youtu]

@made
def convolutions():
    f = File('gemma3nv').key(has_audio_encoder=True, audio__projector_type='gemma3na', audio__num_mel_bins=128).encoder('audio', 1536, 8, 0, 0, act=None).vision('x', 2048, 8, 0, 128, 768, 3, act=None)
    f.keys['clip.projector_type'] = ''
    f.key(vision__projector_type='gemma3nv')
    f.w('v.conv_stem.conv', 3, 3, 3, 64).b('v.conv_stem.conv', 64).w('v.conv_stem.bn', 64)
    # The bias is added as it is.
    f.tensors[-2] = ('v.conv_stem.conv.bias', (1, 1, 64), F32)
    def edge(at, c, mid, out): f.w(at + 'conv_exp', 3, 3, c, mid).w(at + 'bn1', mid).w(at + 'conv_pwl', 1, 1, mid, out).w(at + 'bn2', out)
    edge('v.blk.0.0.', 64, 256, 128); edge('v.blk.0.1.', 128, 512, 128)
    def uir(at, c, mid, out, start=0, middle=0):
        if start: f.w(at + 'dw_start.conv', start, start, 1, c).w(at + 'dw_start.bn', c)
        f.w(at + 'pw_exp.conv', 1, 1, c, mid).w(at + 'pw_exp.bn', mid)
        if middle: f.w(at + 'dw_mid.conv', middle, middle, 1, mid).w(at + 'dw_mid.bn', mid)
        f.w(at + 'pw_proj.conv', 1, 1, mid, out).w(at + 'pw_proj.bn', out).add(at + 'layer_scale.gamma', 1, 1, out)
    def attention(at, c, d, heads, down):
        f.w(at + 'norm', c).w(at + 'attn.query.proj', 1, 1, c, d * heads).w(at + 'attn.key.proj', 1, 1, c, d).w(at + 'attn.value.proj', 1, 1, c, d).w(at + 'attn.output.proj', 1, 1, d * heads, c).add(at + 'layer_scale.gamma', 1, 1, c)
        if down:
            for n in ('key', 'value'): f.w(at + f'attn.{n}.down_conv', 3, 3, 1, c).w(at + f'attn.{n}.norm', c)
    uir('v.blk.1.0.', 128, 768, 256, 3, 5); uir('v.blk.1.1.', 256, 1024, 256, 3)
    uir('v.blk.2.0.', 256, 1536, 640, 5, 5); uir('v.blk.2.1.', 640, 2560, 640, 5); attention('v.blk.2.2.', 640, 64, 12, True); uir('v.blk.2.3.', 640, 1280, 640)
    uir('v.blk.3.0.', 640, 3840, 1280, 5, 5); attention('v.blk.3.1.', 1280, 96, 16, False); uir('v.blk.3.2.', 1280, 2560, 1280)
    f.w('v.msfa.ffn.pw_exp.conv', 1, 1, 1920, 3840).w('v.msfa.ffn.pw_exp.bn', 3840).w('v.msfa.ffn.pw_proj.conv', 1, 1, 3840, 2048).w('v.msfa.ffn.pw_proj.bn', 2048).w('v.msfa.norm', 2048).w('mm.input_projection', 2048, 2048).w('mm.soft_emb_norm', 2048)
    f.w('a.conformer.0.q', 512, 512)
    y = File('yasa2').vision('yasa2', 352, 1, 0, 0, 512, 4).patch(4).norm('v.patch_ln').add('v.vision_pos_embed', 704, 1024)
    for s, c in ((0, 352), (1, 704)):
        if s: y.norm(f'v.stage.{s}.down.ln', n=352).w(f'v.stage.{s}.down.conv', 2, 2, 352, 704).b(f'v.stage.{s}.down.conv', 704)
        for b in range(2):
            at = f'v.stage.{s}.blk.{b}.'
            y.w(at + 'dw', 7, 7, 1, c).b(at + 'dw', c).norm(at + 'ln', n=c).wb(at + 'pw1', c, 4 * c).norm(at + 'grn', n=4 * c).wb(at + 'pw2', 4 * c, c)
    # Two stages halve the image to 64 patches a side: the positions do not fit and are left out by llama.cpp.
    y.wb('mm.0', 704, 2560).wb('mm.2', 2560, 2560)
    return [f, y]

@made
def ocr():
    def one(kind):
        second = kind == 'deepseekocr2'
        d = 896 if second else 1024
        f = File(kind).vision(kind, d, 14 if second else 16, 4864 if second else 4096, 2, 1024, 14, out=1280, sam__block_count=3, sam__head_count=12, sam__embedding_length=768, window_size=14, **({'attention__head_count_kv': 2} if second else {}))
        if second: f.blocks(ln_bias=False, gate=True, kv=2, bias=False).w('v.post_ln', d)
        else: f.add('v.class_embd', d).add('v.position_embd.weight', d, 257, ty=F32).blocks(fused=True).norm('v.pre_ln')
        f.add('v.sam.pos_embd.weight', 768, 64, 64, ty=F32).w('v.sam.patch_embd', 16, 16, 3, 768).b('v.sam.patch_embd', 768)
        for i in range(3):
            at = f'v.sam.blk.{i}.'
            side = 64 if i == 2 else 14
            f.wb(at + 'attn.qkv', 768, 2304).wb(at + 'attn.out', 768, 768).norm(at + 'pre_ln', at + 'post_ln', n=768).wb(at + 'mlp.lin1', 768, 3072).wb(at + 'mlp.lin2', 3072, 768)
            for n in 'hw': f.add(at + f'attn.pos_{n}.weight', 64, 2 * side - 1, ty=F32)
        f.w('v.sam.neck.0', 1, 1, 768, 256).norm('v.sam.neck.1', 'v.sam.neck.3', n=256).w('v.sam.neck.2', 3, 3, 256, 256).w('v.sam.net_2', 3, 3, 256, 512).w('v.sam.net_3', 3, 3, 512, d)
        f.add('v.view_seperator', 1280).wb('mm.model.fc', d if second else 2048, 1280)
        return f.w('v.resample_query_768', d, 144).w('v.resample_query_1024', d, 256) if second else f.add('v.image_newline', 1280)
    return [one('deepseekocr'), one('deepseekocr2')]

def qformer(f, p, bids, d, ff):
    for i in bids:
        at = f'{p}.proj_blk.{i}.'
        for kind in ('self_attn', 'cross_attn'):
            for n in 'qkv':
                f.wb(at + f'{kind}_{n}', getattr(f, 'enc', d) if kind == 'cross_attn' and n != 'q' else d, d)
            f.wb(at + f'{kind}_out', d, d).norm(at + f'{kind}_norm', n=d)
        f.wb(at + 'ffn_up', d, ff).wb(at + 'ffn_down', ff, d).norm(at + 'ffn_norm', n=d)
    return f

@made
def granite():
    v = siglip('granite4_vision', 'granite4_vision', size=384, patch=16, d=1152, out=2560, feature_layer=[0, 2], projector__spatial_offsets=[-1, 1], projector__query_side=4, projector__window_side=8)
    v.add('v.image_newline', 2560)
    for i in range(2):
        at = f'v.proj_blk.{i}.'
        v.add(at + 'img_pos', 1152, 64).add(at + 'query', 1152, 16).wb(at + 'linear', 1152, 2560).norm(at + 'norm', at + 'post_norm', n=1152)
    qformer(v, 'v', range(2), 1152, 3072)
    def speech(name, **more):
        s = File(name).audio('granite_speech', 1024, 8, 4096, 4, mel=160, out=2048, act=None, chunk_size=200, conv_kernel_size=15, max_pos_emb=512, projector__window_size=15, projector__downsample_rate=5, projector__head_count=16, **more)
        s.wb('a.input_projection', 160, 1024).wb('a.enc_ctc_out', 1024, 348).wb('a.enc_ctc_out_mid', 348, 1024)
        s.blocks(p='a', k_bias=False, bias=False, o_bias=True, ffn=False)
        for i in range(4):
            at = f'a.blk.{i}.'
            s.wb(at + 'ffn_up', 1024, 4096).wb(at + 'ffn_down', 4096, 1024).wb(at + 'ffn_up_1', 1024, 4096).wb(at + 'ffn_down_1', 4096, 1024).norm(at + 'ffn_norm', at + 'ffn_norm_1', at + 'norm_conv')
            s.add(at + 'attn_rel_pos_emb', 128, 1025).wb(at + 'conv_pw1', 1024, 4096).wb(at + 'conv_pw2', 2048, 1024).add(at + 'conv_dw.weight', 15, 2048, ty=F32).norm(at + 'conv_norm', n=2048)
        s.enc = 1024 * (1 + len(more.get('feature_layer', [])))
        s.add('a.proj_query', 1024, 3).norm('a.proj_norm', n=1024).wb('a.proj_linear', 1024, 2048)
        return qformer(s, 'a', range(2), 1024, 4096)
    return [v, speech('granite_speech'), speech('granite_speech-features', feature_layer=[0, 2])]

@made
def whispers():
    def one(kind, d=1280, mel=128, stack=0, out=3072, **more):
        if stack: more['projector__stack_factor'] = stack
        f = File(kind).audio(kind, d, 20, 4 * d, 3, mel=mel, out=out, act='gelu', **more)
        f.w('a.conv1d.1', 3, mel, d).add('a.conv1d.1.bias', 1, d).w('a.conv1d.2', 3, d, d).add('a.conv1d.2.bias', 1, d).add('a.position_embd.weight', d, 1500, ty=F32)
        return f.blocks(p='a', k_bias=False).norm('a.post_ln')
    ultra = one('ultravox', stack=8).w('mm.a.norm_pre', 10240).w('mm.a.mlp.1', 10240, 4096).w('mm.a.norm_mid', 2048).w('mm.a.mlp.2', 2048, 2048)
    vox = one('voxtral', stack=4).w('mm.a.mlp.1', 5120, 3072).w('mm.a.mlp.2', 3072, 3072)
    q2a = one('qwen2a').wb('mm.a.fc', 1280, 4096)
    mera = one('meralion', stack=15).norm('mm.a.norm_pre', n=1280 * 15).wb('mm.a.mlp.0', 19200, 6400).wb('mm.a.mlp.1', 6400, 6400).wb('mm.a.mlp.2', 6400, 6400).wb('mm.a.mlp.3', 6400, 3584)
    flamingo = one('musicflamingo').wb('mm.a.mlp.1', 1280, 3584).wb('mm.a.mlp.2', 3584, 3584)
    glma = one('glma', stack=4).norm('mm.a.norm_pre').wb('mm.a.mlp.1', 5120, 4096).wb('mm.a.mlp.2', 4096, 2048).add('v.boi', 2048).add('v.eoi', 2048)
    omni = one('qwen2.5o').wb('mm.a.fc', 1280, 3584)
    omni.name = 'qwen2.5-omni'
    omni.keys['general.name'] = omni.name
    omni.vision('qwen2.5o', 1280, 16, 3420, 3, 560, 14, act='silu', n_wa_pattern=2, out=3584).patch(14, bias=False).add('v.patch_embd.weight.1', 14, 14, 3, 1280, ty=F16)
    del omni.keys['clip.use_gelu']
    omni.blocks(ln_bias=False, gate=True).w('v.post_ln', 1280).wb('mm.0', 5120, 5120).wb('mm.2', 5120, 3584)
    return [ultra, vox, q2a, mera, flamingo, glma, omni]

@made
def sounds():
    def conv2d(f, c=480):
        for i, n in ((1, 1), (2, c), (3, c)): f.w(f'a.conv2d.{i}', 3, 3, n, c).b(f'a.conv2d.{i}', c)
        return f.w('a.conv_out', 16 * c, f.d)
    q3a = conv2d(File('qwen3a').audio('qwen3a', 1024, 16, 4096, 3)).add('a.position_embd.weight', 1024, 1500, ty=F32).blocks(p='a').norm('a.post_ln').wb('mm.a.mlp.1', 1024, 1024).wb('mm.a.mlp.2', 1024, 2048)
    d3 = conv2d(File('dots3note_a').audio('dots3note_a', 1280, 20, 5120, 3, act='silu')).blocks(p='a', bias=False, ln_bias=False, gate=True).w('a.post_ln', 1280).norm('mm.a.norm_pre').wb('mm.a.mlp.1', 1280, 2048).wb('mm.a.mlp.3', 2048, 2048)
    sizes = [1024, 1024, 256, 128]
    mimo = File('mimo_audio').audio('mimo_audio', 1280, 20, 5120, 4, mel=128, rvq__num_quantizers=4, rvq__codebook_size=sizes, window_size=128, wa_pattern_mode=[0, -1, 0, -1], local_block_count=2, local_group_size=4)
    mimo.w('a.conv1d.1', 3, 128, 1280).add('a.conv1d.1.bias', 1, 1280).w('a.conv1d.2', 3, 1280, 1280).add('a.conv1d.2.bias', 1, 1280).blocks(p='a').norm('a.post_ln')
    mimo.w('a.downsample.conv', 2, 1280, 1280).norm('a.downsample.norm').add('a.rvq.codebook.weight', 1280, 1024, 4, ty=F32).add('mm.a.code_embd.weight', 1280, 1280, 4, ty=F16)
    for i in range(2):
        at = f'mm.a.local_blk.{i}.'
        for n in 'qkv': mimo.wb(at + 'attn_' + n, 1280, 1280)
        mimo.w(at + 'attn_out', 1280, 1280).w(at + 'ffn_up', 1280, 4096).w(at + 'ffn_gate', 1280, 4096).w(at + 'ffn_down', 4096, 1280).w(at + 'ln1', 1280).w(at + 'ln2', 1280)
    mimo.w('mm.a.local_norm', 1280).w('mm.a.mlp.1', 5120, 4096).w('mm.a.mlp.2', 4096, 4096)
    g4 = File('gemma4a').audio('gemma4a', 1024, 8, 4096, 3, out=1536, act='silu').w('a.conv1d.0', 3, 3, 1, 128).w('a.conv1d.0.norm', 128).w('a.conv1d.1', 3, 3, 128, 32).w('a.conv1d.1.norm', 32).w('a.input_projection', 1024, 1024)
    g4.blocks(p='a', bias=False, ln_bias=False, extra=('attn_pre_norm', 'attn_post_norm', 'ffn_norm', 'ffn_post_norm', 'ffn_norm_1', 'ffn_post_norm_1', 'conv_norm', 'norm_conv'))
    for i in range(3):
        at = f'a.blk.{i}.'
        g4.w(at + 'attn_k_rel', 1024, 1024).w(at + 'per_dim_scale', 128).w(at + 'conv_pw1', 1024, 2048).w(at + 'conv_pw2', 1024, 1024).add(at + 'conv_dw.weight', 5, 1024, ty=F32).w(at + 'ffn_up_1', 1024, 4096).w(at + 'ffn_down_1', 4096, 1024)
    g4.wb('a.pre_encode.out', 1024, 1536).w('mm.a.soft_emb_norm', 1536).w('mm.a.input_projection', 1536, 2560)
    lfm = File('lfm2a').audio('lfm2a', 512, 8, 2048, 3, act=None).add('a.position_embd.weight', 2048, 5000, ty=F32)
    def front(f, name, bias):
        f.w('a.conv1d.0', 3, 3, 1, 256)
        for i in (2, 5): f.w(f'a.conv1d.{i}', 3, 3, 1, 256)
        for i in (3, 6): f.w(f'a.conv1d.{i}', 1, 1, 256, 256)
        for i in (0, 2, 3, 5, 6): f.add(f'a.conv1d.{i}.bias', 1, 1, 256)
        return f.wb('a.pre_encode.out', 4096, f.d)
    front(lfm, 'lfm2a', True).blocks(p='a')
    for i in range(3):
        at = f'a.blk.{i}.'
        lfm.norm(at + 'ffn_norm', at + 'ffn_norm_1', at + 'norm_conv', at + 'conv_norm').wb(at + 'ffn_up_1', 512, 2048).wb(at + 'ffn_down_1', 2048, 512).add(at + 'pos_bias_u', 64, 8).add(at + 'pos_bias_v', 64, 8).w(at + 'linear_pos', 512, 512)
        lfm.wb(at + 'conv_pw1', 512, 1024).wb(at + 'conv_pw2', 512, 512).add(at + 'conv_dw.weight', 9, 512, ty=F32).b(at + 'conv_dw', 512)
    lfm.norm('mm.a.mlp.0').wb('mm.a.mlp.1', 512, 2048).wb('mm.a.mlp.3', 2048, 2048)
    para = front(File('parakeet').audio('parakeet', 1024, 8, 4096, 3, act=None, subsampling_factor=8, conv_kernel_size=9), 'parakeet', True).blocks(p='a', bias=False)
    for i in range(3):
        at = f'a.blk.{i}.'
        para.norm(at + 'ffn_norm', at + 'ffn_norm_1', at + 'norm_conv', at + 'conv_norm').w(at + 'ffn_up_1', 1024, 4096).w(at + 'ffn_down_1', 4096, 1024).add(at + 'pos_bias_u', 128, 8).add(at + 'pos_bias_v', 128, 8).w(at + 'linear_pos', 1024, 1024)
        para.w(at + 'conv_pw1', 1024, 2048).w(at + 'conv_pw2', 1024, 1024).add(at + 'conv_dw.weight', 9, 1024, ty=F32).add(at + 'conv_norm_mean', 1024).add(at + 'conv_norm_var', 1024)
    para.w('mm.a.norm_pre', 1024).w('mm.a.mlp.1', 1024, 4096).w('mm.a.mlp.2', 4096, 2048).w('mm.model.mlp.0', 8, 8).w('mm.model.mlp.1', 8, 8).w('mm.model.mlp.3', 8, 8)
    tts = File('qwen3tts_spkenc').audio('qwen3tts_spkenc', 512, 1, 0, 3, act=None).w('a.conv1d.0', 5, 128, 512).b('a.conv1d.0', 512)
    for i in (1, 2, 3):
        at = f'a.blk.{i}.'
        for n in ('conv_pw1', 'conv_pw2'): tts.w(at + n, 1, 512, 512).b(at + n, 512)
        tts.w(at + 'se_conv1', 1, 512, 128).b(at + 'se_conv1', 128).w(at + 'se_conv2', 1, 128, 512).b(at + 'se_conv2', 512)
        for x in range(7): tts.w(at + f'res2.{x}', 3, 64, 64).b(at + f'res2.{x}', 64)
    tts.w('a.conv_out', 1, 1536, 1536).b('a.conv_out', 1536).w('a.asp_tdnn', 1, 4608, 128).b('a.asp_tdnn', 128).w('a.asp_attn', 1, 128, 1536).b('a.asp_attn', 1536).w('mm.a.fc', 1, 3072, 1024).b('mm.a.fc', 1024)
    pocket = File('pockettts_spkenc').audio('pockettts_spkenc', 512, 8, 2048, 2, mel=1, act=None).blocks(p='a', bias=False, extra=('ls1', 'ls2'))
    pocket.w('a.seanet.conv_in', 7, 1, 64).b('a.seanet.conv_in', 64)
    for i, (c, r) in enumerate(((64, 4), (128, 5), (256, 6))):
        at = f'a.seanet.blk.{i}.'
        pocket.w(at + 'res_conv1', 3, c, c // 2).b(at + 'res_conv1', c // 2).w(at + 'res_conv2', 1, c // 2, c).b(at + 'res_conv2', c).w(at + 'scale_conv', 2 * r, c, 2 * c).b(at + 'scale_conv', 2 * c)
    pocket.w('a.seanet.conv_out', 3, 512, 512).b('a.seanet.conv_out', 512).w('a.downsample.conv', 32, 512, 32).w('a.speaker_proj', 32, 1024)
    return [q3a, d3, mimo, g4, lfm, para, tts, pocket]

@made
def types():
    of = {file.name: file for file in FILES}
    return [of['gemma3'].retyped('gemma3-bf16', BF16), of['qwen2.5vl'].retyped('qwen2.5vl-q8_0', Q8_0), of['voxtral'].retyped('voxtral-bf16', BF16), of['deepseekocr'].retyped('deepseekocr-bf16', BF16)]

if __name__ == '__main__':
    for file in FILES:
        file.save(sys.argv[1])
