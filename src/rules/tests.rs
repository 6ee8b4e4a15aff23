//! Role rules against the tensor names of 128 headers and of `src/llama-arch.cpp`.

use super::*;

/// Every rule file with the architectures that ask it.
fn files() -> Vec<(&'static str, Vec<&'static str>)> {
    let mut files: Vec<(&str, Vec<&str>)> = vec![(GENERAL, Arch::ALL.iter().map(|arch| arch.name).collect())];
    for arch in Arch::ALL {
        let Some(text) = arch.roles else { continue };
        match files.iter_mut().find(|(known, _)| *known == text) {
            Some((_, names)) => names.push(arch.name),
            None => files.push((text, vec![arch.name])),
        }
    }
    files
}

#[test]
fn names_of_roles_and_blocks() {
    for role in Role::ALL {
        assert_eq!(serde_json::to_value(role).unwrap(), role.key());
    }
    for (name, block) in [
        ("blk.3.ffn_up.weight", Some(3)),
        ("enc.blk.11.attn_q.weight", Some(11)),
        ("blk.99999999999.x", None),
        ("blk.x.y", None),
        ("output.weight", None),
    ] {
        assert_eq!(block_of(name), block, "{name}");
    }
}

/// One kind of block (or the tensors outside blocks) of some architectures: full names, as of block 7.
struct Group {
    architectures: Vec<&'static str>,
    names: Vec<String>,
}

/// The tensor names of `testdata/headers/tensor-names.txt`, whose first lines explain it.
fn groups() -> Vec<Group> {
    let text = include_str!("../../testdata/headers/tensor-names.txt");
    let group = |line: &'static str| {
        let mut words = line.split(' ');
        let architectures = words.next().unwrap().split(',').collect();
        let prefix = if words.next() == Some("blk") { "blk.7." } else { "" };
        let names = words.flat_map(|word| {
            let (name, suffixes) = word.rsplit_once(':').unwrap();
            let ends: Vec<&str> = suffixes.chars().map(|c| SUFFIXES.iter().find(|s| s.0 == c).unwrap().1).collect();
            let ends = if ends.is_empty() { vec![""] } else { ends };
            ends.into_iter().map(|end| format!("{prefix}{name}{end}")).collect::<Vec<_>>()
        });
        Group { architectures, names: names.collect() }
    };
    text.lines().filter(|line| !line.starts_with('#')).map(group).collect()
}

const SUFFIXES: [(char, &str); 4] = [('w', ".weight"), ('b', ".bias"), ('s', ".scale"), ('i', ".input_scale")];

fn role_of(architecture: &str, name: &str) -> Role {
    RoleRules::built_in(architecture).roles(std::iter::once(name))[0]
}

/// What the name itself says beyond doubt.
fn plain_role(name: &str) -> Option<Role> {
    let base = base_of(name);
    let is_norm = name.contains("norm");
    [
        (base.ends_with("exps") && !is_norm, Role::RoutedExpert),
        (base.ends_with("_shexp"), Role::SharedExpert),
        (base == "ffn_gate_inp" || base.starts_with("exp_probs_b"), Role::Router),
        (is_norm, Role::Norm),
        (base.starts_with("ssm_") || base == "shortconv", Role::Recurrent),
        (base.starts_with("indexer"), Role::Attention),
        (name == "token_embd.weight", Role::TokenEmbd),
        (name == "output.weight", Role::Output),
    ]
    .into_iter()
    .find_map(|(says, role)| says.then_some(role))
}

#[test]
fn every_tensor_of_128_headers_has_the_role_its_name_says() {
    let is_norm = |name: &str| name.contains("norm");
    let other = ["rope_f", "hc_", "ple_", "ffn_res_score", "attn_res_score", "layer_output_scale", "hrm."];
    let mut tested = BTreeSet::new();
    for group in groups() {
        for architecture in &group.architectures {
            tested.insert(*architecture);
            let roles = RoleRules::built_in(architecture).roles(group.names.iter().map(String::as_str));
            for (name, role) in group.names.iter().zip(roles) {
                let says = plain_role(name);
                assert!(says.is_none_or(|says| says == role), "{architecture} {name}: {role:?}");
                let starts = |start: &&str| base_of(name).starts_with(*start) || name.starts_with(*start);
                let may_be_other = other.iter().any(starts) && !is_norm(name);
                assert_eq!(role == Role::Other, may_be_other, "{architecture} {name}: {role:?}");
            }
        }
    }
    assert!(tested.len() > 110, "{}", tested.len());
    assert!(tested.iter().all(|architecture| Arch::named(architecture).is_some()));
}

#[test]
fn attention_names_in_recurrent_blocks_are_recurrent() {
    let linear =
        ["kimi-linear", "kimi-k3", "bailingmoe3", "glm5-next", "minimax-01", "qwen3next", "qwen35moe", "qwen4exp"];
    for architecture in linear {
        let mut both = [false, false];
        for group in groups().iter().filter(|group| group.architectures.contains(&architecture)) {
            let marks = ["blk.7.ssm_a", "blk.7.attn_norm_2.weight"];
            let is_recurrent = group.names.iter().any(|name| marks.contains(&name.as_str()));
            let roles = RoleRules::built_in(architecture).roles(group.names.iter().map(String::as_str));
            for (name, role) in group.names.iter().zip(roles).filter(|(name, _)| {
                matches!(base_of(name), "attn_q" | "attn_k" | "attn_v" | "attn_qkv" | "attn_output" | "attn_q_b")
            }) {
                let expected = if is_recurrent { Role::Recurrent } else { Role::Attention };
                assert_eq!(role, expected, "{architecture} {name}");
                both[usize::from(is_recurrent)] = true;
            }
        }
        assert_eq!(both, [true, true], "{architecture} has blocks of both kinds");
    }
}

/// Names of `src/llama-arch.cpp` that none of the headers has.
static MORE_NAMES: &[(&str, &str, Role)] = &[
    ("grovemoe", "blk.0.ffn_up_chexps.weight", Role::RoutedExpert),
    ("gpt-oss", "blk.0.ffn_down_exps.bias", Role::RoutedExpert),
    ("deepseek2", "blk.0.ffn_gate_up_exps.input_scale", Role::RoutedExpert),
    ("llama", "blk.0.ffn_up.7.weight", Role::RoutedExpert),
    ("llama", "blk.0.ffn_up.weight", Role::DenseFfn),
    ("deepseek4", "blk.0.ffn_gate_tid2eid.weight", Role::Router),
    ("deepseek4", "blk.0.exp_probs_b_vl.bias", Role::Router),
    ("gemma4", "blk.0.ffn_gate_inp.scale", Role::Router),
    ("gemma4", "blk.0.post_ffw_norm_2.weight", Role::Norm),
    ("qwen2moe", "blk.0.ffn_gate_inp_shexp.weight", Role::SharedExpert),
    ("nemotron_h_moe", "blk.0.ffn_latent_down.weight", Role::DenseFfn),
    ("kimi-k3", "blk.0.ffn_routed_up.weight", Role::DenseFfn),
    ("kimi-k3", "blk.0.ffn_routed_norm.weight", Role::Norm),
    ("glm4moe", "blk.46.nextn.eh_proj.weight", Role::Other),
    ("glm4moe", "blk.46.nextn.enorm.weight", Role::Norm),
    ("glm4moe", "blk.46.nextn.shared_head_norm.weight", Role::Norm),
    ("glm4moe", "blk.46.nextn.embed_tokens.weight", Role::TokenEmbd),
    ("glm4moe", "blk.46.nextn.shared_head_head.weight", Role::Output),
    ("glm4moe", "blk.46.ffn_up_exps.weight", Role::RoutedExpert),
    ("rwkv7", "blk.0.time_mix_receptance.weight", Role::Recurrent),
    ("rwkv7", "blk.0.time_mix_ln.weight", Role::Norm),
    ("rwkv7", "blk.0.channel_mix_key.weight", Role::DenseFfn),
    ("t5", "dec.blk.3.cross_attn_q.weight", Role::Attention),
    ("t5", "enc.blk.3.attn_rel_b.weight", Role::Attention),
    ("t5", "enc.output_norm.weight", Role::Norm),
    ("t5", "dec.blk.3.ffn_up.weight", Role::DenseFfn),
    ("gemma3n", "per_layer_token_embd.weight", Role::TokenEmbd),
    ("gemma3n", "per_layer_model_proj.weight", Role::Other),
    ("gemma3n", "blk.0.altup_router_norm.weight", Role::Norm),
    ("bert", "token_types.weight", Role::TokenEmbd),
    ("bert", "cls.norm.weight", Role::Norm),
    ("bert", "cls.weight", Role::Output),
    ("graniteswitch", "blk.0.ffn_up.lora_a", Role::DenseFfn),
    ("qwen35", "blk.0.attn_gate.weight", Role::Recurrent),
    ("clip", "v.blk.0.attn_q.weight", Role::Attention),
    ("clip", "v.blk.0.ln1.bias", Role::Norm),
    ("clip", "v.blk.0.ffn_down.weight", Role::DenseFfn),
    ("clip", "v.patch_embd.weight", Role::TokenEmbd),
    ("clip", "mm.0.weight", Role::Other),
    ("llama", "something.else", Role::Other),
    ("llama", "xblk.0.ffn_up_exps.weight", Role::Other),
];

#[test]
fn other_names_of_llama_cpp() {
    for (architecture, name, role) in MORE_NAMES {
        assert_eq!(role_of(architecture, name), *role, "{architecture} {name}");
    }
}

#[test]
fn every_rule_claims_a_tensor() {
    let groups = groups();
    for (text, names) in files() {
        for (at, rule) in RoleRules::from_yaml("", text).unwrap().rules.iter().enumerate() {
            let applies = |architecture: &str| names.contains(&architecture);
            let in_headers = groups.iter().any(|group| {
                group.architectures.iter().any(|a| applies(a))
                    && group.names.iter().any(|name| rule.tensors.is_match(name.as_bytes()))
            });
            let in_names = MORE_NAMES.iter().any(|(a, name, _)| applies(a) && rule.tensors.is_match(name.as_bytes()));
            assert!(in_headers || in_names, "{names:?}: rule {} claims nothing", at + 1);
        }
    }
}
