//! Random weights: valid blocks of every type a recipe writes, independent for each tensor and each expert.
//!
//! Block layouts: `ggml/src/ggml-common.h`; values: `ggml/src/ggml-quants.c` (`dequantize_row_*`), llama.cpp b11434.
//!
//! Scales are chosen for a standard deviation of `1/√n` over a row of `n` (0.016 for 4096, 0.022 for 2048), so that a
//! matrix keeps the size of what it multiplies, and their signs are random, so that no type has a mean: a common
//! component would grow from block to block until every token chose the same experts. For the same reason the output
//! of attention and of recurrent layers is damped and embeddings are larger: what is a token's own must outweigh what its
//! context shares.
//! Embeddings that are the output as well would repeat the last token; there the output norm has random signs.

use crate::gguf::GgmlType;
use crate::gguf::writer::NewTensor;

/// xoshiro256++ (Blackman and Vigna, public domain).
struct Random([u64; 4]);

impl Random {
    /// A stream of its own for each seed, by splitmix64.
    fn new(mut seed: u64) -> Self {
        Self(std::array::from_fn(|_| {
            seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
            mix(seed)
        }))
    }

    fn next(&mut self) -> u64 {
        let s = &mut self.0;
        let result = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }

    fn fill(&mut self, out: &mut [u8]) {
        let mut words = out.chunks_exact_mut(8);
        for word in &mut words {
            word.copy_from_slice(&self.next().to_le_bytes());
        }
        let rest = words.into_remainder();
        let last = self.next().to_le_bytes();
        rest.copy_from_slice(&last[..rest.len()]);
    }
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The seed of one stretch of one tensor (FNV-1a of its name, mixed with the rest).
fn stream(seed: u64, name: &str, offset: u64) -> u64 {
    let name =
        name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, b| (hash ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    mix(mix(seed ^ name).wrapping_add(offset))
}

/// Entries of a table of normals: one 16-bit draw picks one.
const NORMALS: usize = 1 << 16;

/// Weights of a model: tables shared by all threads.
pub struct Weights {
    seed: u64,
    tied: bool,
    n_expert: usize,
    /// What the rows of a skewed router are multiplied by, for each of [`CLASSES`].
    skew: Option<[f32; 3]>,
    /// Standard normals, in pairs of opposite sign.
    normals: Vec<f32>,
}

/// Share of the experts and share of the choices, of the popular, the common and the rare experts of a skewed router.
const CLASSES: [(f64, f64); 3] = [(1.0 / 16.0, 0.65), (3.0 / 16.0, 0.22), (0.75, 0.13)];
/// No expert is chosen by more tokens than this: a random row is below any bound for half of them.
const MOST_CHOSEN: f64 = 0.42;

impl Weights {
    /// The weights of a seed. `tied`: the embeddings are the output matrix as well; `n_expert`: what whole numbers are below, as experts
    /// that a table gives each token; `skewed`: the share of its experts that a token uses, where some are to be used more than others.
    pub fn new(seed: u64, tied: bool, n_expert: usize, skewed: Option<f64>) -> Self {
        let mut random = Random::new(0x6d6f_6570_6c61_6e00);
        let mut unit = || {
            #[expect(clippy::cast_precision_loss, reason = "53 bits are exact")]
            let x = ((random.next() >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
            x
        };
        let mut normals = Vec::with_capacity(NORMALS);
        while normals.len() < NORMALS {
            let (radius, angle) = ((-2.0 * unit().ln()).sqrt(), std::f64::consts::TAU * unit());
            for x in [radius * angle.cos(), radius * angle.sin()] {
                #[expect(clippy::cast_possible_truncation, reason = "a weight is an f32 at most")]
                normals.extend([x as f32, -x as f32]);
            }
        }
        let skew = skewed.map(|used| skew(used, &normals));
        Self { seed, tied, n_expert: n_expert.max(1), skew, normals }
    }

    /// A writer of the data of one tensor.
    pub fn of(&self, tensor: &NewTensor) -> TensorWeights {
        let name = tensor.name.as_str();
        let deviation = deviation(tensor);
        let normals = self.normals.iter().map(|x| x * deviation);
        let is_constant = name.ends_with("norm.weight") || name.starts_with("rope_");
        let kind = match tensor.ty.name {
            "f32" if is_constant && self.tied && name == "output_norm.weight" => {
                Kind::F32([1_f32, -1.0].map(f32::to_le_bytes).repeat(NORMALS / 2))
            }
            "f32" if is_constant => Kind::F32(vec![1_f32.to_le_bytes(); NORMALS]),
            // The logarithm of a decay: a state would grow without end by a positive one.
            "f32" if name.ends_with("ssm_a") => {
                Kind::F32(self.normals.iter().map(|x| (-(1.0 + 0.2 * x).abs()).to_le_bytes()).collect())
            }
            "i32" => {
                let experts = (0..NORMALS).map(|i| i % self.n_expert);
                Kind::F32(experts.map(|expert| u32::try_from(expert).unwrap_or_default().to_le_bytes()).collect())
            }
            "f32" => Kind::F32(normals.map(f32::to_le_bytes).collect()),
            "f16" => Kind::Half(normals.map(|x| f16_bits(x).to_le_bytes()).collect()),
            "bf16" => Kind::Half(normals.map(|x| ((x.to_bits() >> 16) as u16).to_le_bytes()).collect()),
            _ => Kind::Blocks(Blocks::new(tensor.ty, deviation)),
        };
        let skew = self.skew.filter(|_| name.ends_with("ffn_gate_inp.weight") && tensor.ty.name == "f32");
        let rows = skew.map(|by_class| {
            let n = tensor.shape.get(1).map_or(0, |n| usize::try_from(*n).unwrap_or(0));
            let mut order: Vec<usize> = (0..n).collect();
            order.sort_by_cached_key(|expert| mix(stream(self.seed, name, *expert as u64)));
            let mut by_expert = vec![by_class[2]; n];
            #[expect(
                clippy::cast_precision_loss,
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a count of experts"
            )]
            let count = |share: f64| (share * n as f64).ceil() as usize;
            let popular = count(CLASSES[0].0);
            for (rank, expert) in order.into_iter().take(popular + count(CLASSES[1].0)).enumerate() {
                by_expert[expert] = by_class[usize::from(rank >= popular)];
            }
            Rows { bytes: tensor.shape[0] * 4, by_expert }
        });
        TensorWeights { seed: self.seed, name: tensor.name.clone(), kind, rows }
    }
}

/// What rows of a router are multiplied by so that each class of experts gets its share of the choices, where a token uses `used` of all
/// (0 to 1). Logits of a row are normal, and what exceeds a common bound is chosen: a row of twice the size is chosen as often as a value
/// beyond half the bound is drawn.
fn skew(used: f64, normals: &[f32]) -> [f32; 3] {
    let mut sorted = normals.to_vec();
    sorted.sort_by(f32::total_cmp);
    let mut left = 1.0;
    let mut asked: f64 = CLASSES.iter().map(|class| class.1).sum();
    let bounds = CLASSES.map(|(experts, choices)| {
        // What the classes before could not take, the others share.
        let share = choices * left / asked;
        let chosen = (share * used / experts).min(MOST_CHOSEN);
        left -= chosen * experts / used;
        asked -= choices;
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "an index"
        )]
        let at = ((1.0 - chosen) * sorted.len() as f64) as usize;
        sorted[at.min(sorted.len() - 1)]
    });
    // The largest is 2, so that no gate saturates.
    bounds.map(|bound| 2.0 * bounds[0] / bound)
}

fn deviation(tensor: &NewTensor) -> f32 {
    let has = |part: &str| tensor.name.contains(part);
    #[expect(clippy::cast_precision_loss, reason = "a row's length")]
    let row = tensor.shape[0] as f32;
    let base = if has(".bias") || tensor.shape.len() < 2 { 0.02 } else { row.sqrt().recip() };
    match () {
        () if has("exp_probs_b") => 0.002,
        () if has("token_embd") => 0.5,
        () if ["attn_output.weight", "attn_output_b.weight", "ssm_out.weight"].iter().any(|name| has(name)) => {
            0.15 * base
        }
        () => base,
    }
}

/// How the data of one tensor is made: from a table, or by blocks.
enum Kind {
    /// `f32` or `i32`.
    F32(Vec<[u8; 4]>),
    /// `f16` or `bf16`.
    Half(Vec<[u8; 2]>),
    Blocks(Blocks),
}

pub struct TensorWeights {
    seed: u64,
    name: String,
    kind: Kind,
    rows: Option<Rows>,
}

/// Factors for the rows of an `f32` matrix.
struct Rows {
    /// Of one row.
    bytes: u64,
    by_expert: Vec<f32>,
}

impl TensorWeights {
    /// Fills the stretch that begins `offset` bytes into the tensor; both ends are ends of blocks. The same stretch
    /// always gets the same bytes.
    pub fn fill(&self, offset: u64, out: &mut [u8]) {
        let mut random = Random::new(stream(self.seed, &self.name, offset));
        match &self.kind {
            Kind::F32(table) => pick(&mut random, table, out),
            Kind::Half(table) => pick(&mut random, table, out),
            Kind::Blocks(blocks) => blocks.fill(&mut random, out),
        }
        let Some(rows) = &self.rows else { return };
        for (at, value) in (offset..).step_by(4).zip(out.chunks_exact_mut(4)) {
            let expert = usize::try_from(at / rows.bytes).expect("a row of the tensor");
            let skewed = f32::from_le_bytes(value.try_into().expect("four bytes")) * rows.by_expert[expert];
            value.copy_from_slice(&skewed.to_le_bytes());
        }
    }
}

/// Fills `out` with entries of a table, four of them a draw.
fn pick<const N: usize>(random: &mut Random, table: &[[u8; N]], out: &mut [u8]) {
    for four in out.chunks_mut(4 * N) {
        let draw = random.next();
        for (j, to) in four.chunks_exact_mut(N).enumerate() {
            to.copy_from_slice(&table[(draw >> (16 * j) & 0xffff) as usize]);
        }
    }
}

/// Quantized blocks: random quants, and scales that are written over them.
struct Blocks {
    block_bytes: usize,
    /// Offset of the scale, and of the minimum with its ratio to the scale.
    scale_at: usize,
    minimum: Option<(usize, f32)>,
    /// Scales to draw from, both signs; for MXFP4 an exponent each.
    scales: Vec<f32>,
    is_mxfp4: bool,
}

type BlockRow = (&'static str, usize, Option<(usize, f32)>, f32);

/// Type, offset of the scale, offset of the minimum and its ratio to the scale, deviation at scale 1.
///
/// Deviations for uniform quants: of `q` in `0..2^b` about its middle `√((4^b-1)/12)`; 6-bit sub-scales have a root
/// mean square of 36.6 from 0 and 18.5 from 32, 8-bit ones 73.9.
const BLOCKS: &[BlockRow] = &[
    ("q4_0", 0, None, 4.64),
    ("q4_1", 0, Some((2, -7.5)), 4.61),
    ("q5_0", 0, None, 9.25),
    ("q5_1", 0, Some((2, -15.5)), 9.23),
    ("q8_0", 0, None, 73.9),
    ("q2_K", 80, Some((82, 1.5)), 13.9),
    ("q3_K", 108, None, 43.4),
    ("q4_K", 0, Some((2, 7.5)), 259.0),
    ("q5_K", 0, Some((2, 15.5)), 528.0),
    ("q6_K", 208, None, 1366.0),
    ("iq4_nl", 0, None, 66.9),
    ("iq4_xs", 0, None, 1237.0),
    ("mxfp4", 0, None, 2.93),
];

/// Whether there are random weights of a type.
pub fn is_made(ty: &str) -> bool {
    matches!(ty, "f32" | "f16" | "bf16") || BLOCKS.iter().any(|row| row.0 == ty)
}

impl Blocks {
    fn new(ty: GgmlType, deviation: f32) -> Self {
        let (_, scale_at, minimum, unit) =
            BLOCKS.iter().find(|row| row.0 == ty.name).unwrap_or_else(|| panic!("no random blocks of {ty}"));
        let scale = deviation / unit;
        let is_mxfp4 = ty.name == "mxfp4";
        // 64 scales from 0.8 to 1.2 times the wanted one, or powers of two with the wanted mean square.
        let scales = (0..64_u8)
            .map(|i| {
                if is_mxfp4 {
                    let exponent = scale.log2().floor();
                    let share = ((scale / exponent.exp2()).powi(2) - 1.0) / 3.0;
                    return 127.0 + exponent + if f32::from(i) < share * 64.0 { 1.0 } else { 0.0 };
                }
                let size = scale * (0.8 + 0.4 * f32::from(i / 2) / 31.0);
                if i % 2 == 0 { size } else { -size }
            })
            .collect();
        let block_bytes = usize::try_from(ty.block_bytes).expect("a block is small");
        Self { block_bytes, scale_at: *scale_at, minimum: *minimum, scales, is_mxfp4 }
    }

    fn fill(&self, random: &mut Random, out: &mut [u8]) {
        random.fill(out);
        let bits: Vec<[u8; 2]> = self.scales.iter().map(|x| f16_bits(*x).to_le_bytes()).collect();
        let minima: Vec<[u8; 2]> =
            self.scales.iter().map(|x| f16_bits(x * self.minimum.map_or(0.0, |(_, r)| r)).to_le_bytes()).collect();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an exponent of 0 to 255")]
        let exponents: Vec<u8> = self.scales.iter().map(|x| *x as u8).collect();
        let mut draw = 0;
        for (i, block) in out.chunks_exact_mut(self.block_bytes).enumerate() {
            draw = if i % 10 == 0 { random.next() } else { draw >> 6 };
            let pick = (draw & 63) as usize;
            if self.is_mxfp4 {
                block[self.scale_at] = exponents[pick];
                continue;
            }
            block[self.scale_at..self.scale_at + 2].copy_from_slice(&bits[pick]);
            if let Some((at, _)) = self.minimum {
                block[at..at + 2].copy_from_slice(&minima[pick]);
            }
        }
    }
}

/// IEEE half precision, rounded to nearest, ties away from zero; the values here are far below its maximum.
fn f16_bits(x: f32) -> u16 {
    let sign = ((x.to_bits() >> 16) & 0x8000) as u16;
    // 2^-24 is the smallest step below 2^-14; above, the exponent's own step.
    let exponent = ((x.to_bits() >> 23) & 0xff).cast_signed() - 127;
    if exponent < -14 {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most 1024")]
        return sign | (x.abs() * 16_777_216.0).round() as u16;
    }
    assert!(exponent <= 14, "{x} is not a weight");
    let mantissa = (x.to_bits() & 0x7f_ffff) + 0x1000;
    let biased = u16::try_from(exponent + 15).expect("1 to 29") << 10;
    sign | (biased + u16::try_from(mantissa >> 13).expect("at most 1024"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(name: &str, ty: &str, shape: &[u64]) -> NewTensor {
        NewTensor { name: name.into(), ty: GgmlType::from_name(ty).unwrap(), shape: shape.to_vec() }
    }

    fn data(seed: u64, tensor: &NewTensor) -> Vec<u8> {
        let mut out = vec![0; usize::try_from(tensor.bytes().unwrap()).unwrap()];
        Weights::new(seed, false, 0, None).of(tensor).fill(0, &mut out);
        out
    }

    /// The value of a half-precision number, finite or not.
    fn f16_value(bits: u16) -> f32 {
        let (exponent, mantissa) = (i32::from(bits >> 10 & 31), f32::from(bits & 0x3ff));
        let size = match exponent {
            0 => mantissa * 2f32.powi(-24),
            31 => f32::INFINITY,
            _ => (1024.0 + mantissa) * 2f32.powi(exponent - 25),
        };
        if bits & 0x8000 == 0 { size } else { -size }
    }

    #[test]
    fn half_precision_rounds_to_nearest() {
        for (x, bits) in [(1.0, 0x3c00), (-2.0, 0xc000), (0.1, 0x2e66), (1e-5, 0x00a8), (0.0, 0), (0.999_99, 0x3c00)] {
            assert_eq!(f16_bits(x), bits, "{x}");
        }
        for bits in 0..0x7800 {
            assert_eq!(f16_bits(f16_value(bits)), bits);
        }
    }

    #[test]
    fn every_quantized_type_gets_finite_scales_of_both_signs() {
        for (ty, scale_at, minimum, _) in BLOCKS.iter().filter(|row| row.0 != "mxfp4") {
            let bytes = data(1, &tensor("blk.0.ffn_down.weight", ty, &[4096, 8]));
            let block = usize::try_from(GgmlType::from_name(ty).unwrap().block_bytes).unwrap();
            let at = |block: &[u8], at: usize| f16_value(u16::from_le_bytes([block[at], block[at + 1]]));
            let scales: Vec<f32> = bytes.chunks_exact(block).map(|block| at(block, *scale_at)).collect();
            assert!(scales.iter().all(|x| x.is_finite() && *x != 0.0 && x.abs() < 0.1), "{ty}");
            assert!(scales.iter().any(|x| *x > 0.0) && scales.iter().any(|x| *x < 0.0), "{ty}");
            if let Some((minimum, _)) = minimum {
                assert!(bytes.chunks_exact(block).all(|block| at(block, *minimum).is_finite()), "{ty}");
            }
        }
        let mxfp4 = data(1, &tensor("blk.0.ffn_down_exps.weight", "mxfp4", &[4096, 8]));
        assert!(mxfp4.chunks_exact(17).all(|block| (116..=121).contains(&block[0])));
    }

    #[test]
    fn a_seed_gives_the_same_bytes_and_tensors_and_experts_differ() {
        let [up, gate] =
            ["up", "gate"].map(|name| tensor(&format!("blk.0.ffn_{name}_exps.weight"), "q4_K", &[256, 64, 4]));
        let bytes = data(1, &up);
        assert!(bytes == data(1, &up) && bytes != data(2, &up) && bytes != data(1, &gate));
        let experts: Vec<&[u8]> = bytes.chunks_exact(bytes.len() / 4).collect();
        assert!((1..4).all(|i| experts[0] != experts[i]));
    }

    /// Of 800 states of unit size, as a norm makes them: the hits of least-recently-used caches of an eighth and a quarter of the experts,
    /// and the share of the experts that 512 of the states use.
    #[test]
    #[expect(clippy::cast_precision_loss, reason = "small counts")]
    fn skewed_routers_use_experts_as_unevenly_as_documented() {
        const WIDTH: usize = 256;
        for (n_expert, used, expected) in
            [(512, 10, [0.62, 0.78, 0.86]), (128, 8, [0.35, 0.6, 1.0]), (64, 6, [0.22, 0.5, 1.0])]
        {
            let router = tensor("blk.0.ffn_gate_inp.weight", "f32", &[WIDTH as u64, n_expert as u64]);
            let mut bytes = vec![0; WIDTH * n_expert * 4];
            let weights = Weights::new(1, false, n_expert, Some(used as f64 / n_expert as f64));
            weights.of(&router).fill(0, &mut bytes);
            let rows: Vec<f32> = bytes.chunks_exact(4).map(|x| f32::from_le_bytes(x.try_into().unwrap())).collect();
            let mut random = Random::new(7);
            let choices: Vec<Vec<usize>> = (0..800)
                .map(|_| {
                    let state: Vec<f32> =
                        (0..WIDTH).map(|_| weights.normals[(random.next() & 0xffff) as usize]).collect();
                    let logit = |row: &[f32]| -> f32 { row.iter().zip(&state).map(|(w, x)| w * x).sum() };
                    let logits: Vec<f32> = rows.chunks_exact(WIDTH).map(logit).collect();
                    let mut order: Vec<usize> = (0..n_expert).collect();
                    order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
                    order.truncate(used);
                    order
                })
                .collect();
            let hits = |slots: usize| {
                let (mut cached, mut hits) = (Vec::new(), 0);
                for (at, expert) in
                    choices.iter().enumerate().flat_map(|(at, chosen)| chosen.iter().map(move |e| (at, e)))
                {
                    let hit = cached.iter().position(|of| of == expert);
                    hits += usize::from(hit.is_some() && at >= 200);
                    if let Some(at) = hit.or((cached.len() == slots).then_some(0)) {
                        cached.remove(at);
                    }
                    cached.push(*expert);
                }
                hits as f64 / (600 * used) as f64
            };
            let touched: std::collections::BTreeSet<&usize> = choices[..512].iter().flatten().collect();
            let found = [hits(n_expert / 8), hits(n_expert / 4), touched.len() as f64 / n_expert as f64];
            let close = found.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 0.03);
            assert!(close, "{used} of {n_expert}: {found:.2?}");
        }
    }
}
