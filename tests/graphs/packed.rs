//! Quantized checkpoints: GPTQ, AWQ and BitNet, packed by `packed.py`, beside what transformers finds in
//! f32 with the weights that they stand for.

use super::{CPU, REFERENCE, difference, folder, reference_logits};
use gllm_kernels::cpu::CpuBackend;
use gllm_kernels::graph::arch;
use gllm_kernels::model::{Format, Model};
use gllm_kernels::plan::{Limits, Session, StepInput};
use gllm_kernels::replay::Plans;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

#[derive(serde::Deserialize)]
struct Wanted {
    prompt: Vec<u32>,
    rows: Vec<usize>,
    logits: Vec<Vec<f32>>,
}

fn packed(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/graphs/packed").join(name)
}

/// F16 for numbers that fit no block: half a unit in its last place.
const ROUNDED: f32 = 1e-3;
fn check(name: &str, formats: &[Format], reference: f32) {
    let model = Model::open(&packed(name)).unwrap();
    let wanted: Wanted =
        serde_json::from_slice(&fs::read(packed(name).join("logits.json")).unwrap()).unwrap();
    let read: BTreeSet<Format> = model.packed().iter().map(|p| p.format).collect();
    // A Llama's layer, or two layers of experts.
    let count = if formats == [Format::MXFP4] { 4 } else { 7 };
    assert_eq!((model.packed().len(), read), (count, formats.iter().copied().collect()), "{name}");
    let graph = arch::build(&model).unwrap_or_else(|e| panic!("{name}: {e}"));
    let all = reference_logits(&graph, &model, &wanted.prompt);
    let vocabulary = wanted.logits[0].len();
    let rows: Vec<f32> =
        wanted.rows.iter().flat_map(|&r| all[r * vocabulary..][..vocabulary].to_vec()).collect();
    let error = difference(&rows, &wanted.logits.concat());
    println!("{name}: reference {error:e}");
    assert!(error <= reference, "{name}: reference {error:e} from transformers");

    let backend = CpuBackend::detect().with_threads(2).unwrap();
    let n = wanted.prompt.len();
    let limits = Limits { rows: n, outs: n, slots: 1, context: 32 };
    let mut session = Plans::new(&graph, &backend, limits).unwrap().load(&backend, &model).unwrap();
    let positions: Vec<u32> = (0..n as u32).collect();
    let (tokens, slots) = (&wanted.prompt, vec![0; n]);
    session
        .run(&StepInput { tokens, positions: &positions, slots: &slots, outs: &positions })
        .unwrap();
    let got = session.peek(0).unwrap();
    let error = difference(&got, &all);
    println!("{name}: cpu {error:e}");
    assert!(error <= CPU, "{name}: cpu {error:e} from the reference");
}

macro_rules! checkpoints {
    ($($test:ident $name:literal $formats:expr, $reference:expr;)*) => {
        $(#[test] fn $test() { check($name, &$formats, $reference); })*

        #[test]
        fn every_checkpoint_is_tested() {
            for entry in fs::read_dir(packed("")).unwrap() {
                let name = entry.unwrap().file_name().into_string().unwrap();
                assert!([$($name),*].contains(&name.as_str()), "{name}");
            }
        }
    };
}

checkpoints! {
    gptq4 "gptq4" [Format::Q4_0], REFERENCE;
    gptq4_zeros "gptq4-zeros" [Format::Q5_0], REFERENCE;
    gptq4_v2 "gptq4-v2" [Format::Q5_0], REFERENCE;
    gptq4_order "gptq4-order" [Format::F16], ROUNDED;
    gptq2 "gptq2" [Format::Q2_0], REFERENCE;
    gptq2_zeros "gptq2-zeros" [Format::Q4_0], REFERENCE;
    gptq8 "gptq8" [Format::Q8_0], REFERENCE;
    gptq8_zeros "gptq8-zeros" [Format::F16], ROUNDED;
    awq "awq" [Format::Q5_0], REFERENCE;
    bitnet "bitnet" [Format::TQ2_0, Format::Q2_0], ROUNDED;
    mxfp4 "mxfp4" [Format::MXFP4], REFERENCE;
    bitnet_auto "bitnet-auto" [Format::TQ2_0, Format::Q2_0], REFERENCE;
}

#[test]
fn what_is_not_known_or_does_not_fit_is_refused() {
    let config = |name: &str| {
        let text = fs::read(packed(name).join("config.json")).unwrap();
        serde_json::from_slice::<serde_json::Value>(&text).unwrap()
    };
    let weights = |name: &str| fs::read(packed(name).join("model.safetensors")).unwrap();
    let open = |config: &serde_json::Value, weights: &[u8]| {
        let folder = folder("packed-odd");
        fs::write(folder.join("config.json"), config.to_string()).unwrap();
        fs::write(folder.join("model.safetensors"), weights).unwrap();
        Model::open(&folder).map(drop)
    };
    for (name, key, value, wanted) in [
        (
            "gptq4",
            "quant_method",
            "fp8".into(),
            r#""fp8" is not known; known are gptq, awq, bitnet, mxfp4"#,
        ),
        ("gptq4", "bits", 3.into(), r#""3" is not known; known are 2, 4, 8"#),
        ("gptq4", "bits", 8.into(), "scales"),
        ("gptq4", "checkpoint_format", "marlin".into(), r#""marlin" is not known"#),
        ("gptq4", "group_size", 64.into(), "expected [2, 64]"),
        ("gptq4", "group_size", 0.into(), "0 inputs make no group"),
        ("awq", "version", "gemv".into(), r#""gemv" is not known"#),
        ("awq", "bits", 8.into(), r#""8" is not known; known are 4"#),
        ("bitnet", "quantization_mode", "online".into(), r#""online" is not known"#),
    ] {
        let mut changed = config(name);
        changed["quantization_config"][key] = value;
        let error = open(&changed, &weights(name)).expect_err(key).to_string();
        assert!(error.contains(wanted), "{name} {key}: {error}");
        open(&config(name), &weights(name)).unwrap();
    }
    // A tensor is missing, or of another type.
    let renamed = |name: &str, from: &str, to: &str| {
        let mut bytes = weights(name);
        let at = bytes.windows(from.len()).position(|w| w == from.as_bytes()).unwrap();
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        open(&config(name), &bytes).unwrap_err().to_string()
    };
    for (name, from, to, wanted) in [
        ("gptq4", "down_proj.qzeros", "down_proj.qzerox", "down_proj.qzeros\": missing"),
        ("gptq4", "down_proj.scales", "down_proj.scalex", "down_proj.scales\": missing"),
        ("mxfp4", "down_proj_scales", "down_proj_scalex", "down_proj_scales\": missing"),
        ("bitnet", "down_proj.weight_scale", "down_proj.weight_scalx", "weight_scale\": missing"),
    ] {
        let error = renamed(name, from, to);
        assert!(error.contains(wanted), "{from}: {error}");
    }
    // An input in a group that is not there.
    let mut bytes = weights("gptq4-order");
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let header: serde_json::Value =
        serde_json::Deserializer::from_str(&text[8..]).into_iter().next().unwrap().unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let tensor = &header["model.layers.0.mlp.down_proj.g_idx"]["data_offsets"][0];
    bytes[8 + length + tensor.as_u64().unwrap() as usize] = 9;
    let error = open(&config("gptq4-order"), &bytes).unwrap_err().to_string();
    assert!(error.contains("input 0 is in group 9 of 4"), "{error}");
}

/// Bytes changed at random: a model or an error, and no panic in either.
#[test]
fn random_damage_never_panics() {
    let mut state = 7u64;
    let mut below = |n: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) as usize % n
    };
    for name in ["gptq4-order", "awq", "bitnet", "mxfp4"] {
        let sound = fs::read(packed(name).join("model.safetensors")).unwrap();
        let header = u64::from_le_bytes(sound[..8].try_into().unwrap()) as usize + 8;
        for _ in 0..80 {
            let folder = folder("packed-damaged");
            fs::copy(packed(name).join("config.json"), folder.join("config.json")).unwrap();
            let mut bytes = sound.clone();
            for _ in 0..2 {
                let digits: Vec<usize> =
                    (8..header).filter(|&i| bytes[i].is_ascii_digit()).collect();
                bytes[digits[below(digits.len())]] = b'0' + below(10) as u8;
                let at = header + below(bytes.len() - header);
                bytes[at] = below(256) as u8;
            }
            fs::write(folder.join("model.safetensors"), bytes).unwrap();
            let Ok(model) = Model::open(&folder) else { continue };
            let Ok(graph) = arch::build(&model) else { continue };
            let backend = CpuBackend::detect().with_threads(1).unwrap();
            let limits = Limits { rows: 1, outs: 1, slots: 1, context: 8 };
            let Ok(plans) = Plans::new(&graph, &backend, limits) else { continue };
            _ = plans.load(&backend, &model);
        }
    }
}
