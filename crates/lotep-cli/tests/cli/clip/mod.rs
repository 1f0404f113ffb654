//! CLIP as a user meets it: classes by name, the methods for both towers, protocols, and what can be wrong with words.

mod methods;
mod names;
mod protocols;
mod targets;

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::common::{Case, Ran, command, run};
use crate::files::{Tensor, write_file, write_tensors};
use crate::net::Dice;

const WIDTH: usize = 16;
const FEATURES: usize = 8;

/// A CLIP of two blocks a tower with a vocabulary of bytes, and its directory.
fn clip(case: &Case) -> PathBuf {
    let dir = case.path("clip");
    if dir.exists() {
        return dir;
    }
    let known = write_words(&dir);
    let config = json!({
        "architecture": "vit_tiny_patch16_clip_quickgelu_224", "num_classes": FEATURES,
        "model_args": { "img_size": 32, "patch_size": 16, "embed_dim": WIDTH, "depth": 2, "num_heads": 2 },
        "text_args": { "num_heads": 2 },
    });
    write_file(&dir.join("config.json"), config.to_string());
    let mut shapes: Vec<(String, Vec<usize>)> = Vec::new();
    let mut add = |name: &str, shape: &[usize]| shapes.push((name.to_owned(), shape.to_vec()));
    add("patch_embed.proj.weight", &[WIDTH, 3, 16, 16]);
    add("cls_token", &[1, 1, WIDTH]);
    add("pos_embed", &[1, 5, WIDTH]);
    add("head.weight", &[FEATURES, WIDTH]);
    add("head.bias", &[FEATURES]);
    add("text.token_embedding.weight", &[known, WIDTH]);
    add("text.pos_embed", &[77, WIDTH]);
    add("text.head.weight", &[FEATURES, WIDTH]);
    add("logit_scale", &[]);
    for norm in ["norm_pre", "norm", "text.norm"] {
        for leaf in ["weight", "bias"] {
            add(&format!("{norm}.{leaf}"), &[WIDTH]);
        }
    }
    for block in (0..2).flat_map(|i| [format!("blocks.{i}"), format!("text.blocks.{i}")]) {
        for (leaf, outputs, inputs) in [
            ("norm1", WIDTH, None),
            ("attn.qkv", 3 * WIDTH, Some(WIDTH)),
            ("attn.proj", WIDTH, Some(WIDTH)),
            ("norm2", WIDTH, None),
            ("mlp.fc1", 4 * WIDTH, Some(WIDTH)),
            ("mlp.fc2", WIDTH, Some(4 * WIDTH)),
        ] {
            let weight: Vec<usize> = [Some(outputs), inputs].into_iter().flatten().collect();
            add(&format!("{block}.{leaf}.weight"), &weight);
            add(&format!("{block}.{leaf}.bias"), &[outputs]);
        }
    }
    let mut dice = Dice(5);
    let tensors: Vec<Tensor> = shapes
        .into_iter()
        .map(|(name, shape)| {
            let count = shape.iter().product();
            let one = |dice: &mut Dice| match shape.len() {
                0 => 2.0,
                1 if name.ends_with("weight") => 1.0,
                1 => 0.0,
                _ => (dice.uniform() - 0.5) * 3.4 / (shape[1..].iter().product::<usize>() as f32).sqrt(),
            };
            let values = (0..count).map(|_| one(&mut dice)).collect();
            Tensor { name, shape, values }
        })
        .collect();
    write_tensors(&dir.join("model.safetensors"), &tensors);
    dir
}

/// Words of single letters, digits and stops, in the files of transformers; how many tokens there are.
fn write_words(dir: &std::path::Path) -> usize {
    let signs: Vec<char> = ('!'..='~').collect();
    let ends = signs.iter().map(|c| format!("{c}</w>"));
    let tokens: Vec<String> = signs
        .iter()
        .map(char::to_string)
        .chain(ends)
        .chain(["<|startoftext|>".into(), "<|endoftext|>".into()])
        .collect();
    let ids: serde_json::Map<String, Value> =
        tokens.iter().enumerate().map(|(i, t)| (t.clone(), i.into())).collect();
    write_file(&dir.join("vocab.json"), Value::Object(ids).to_string());
    write_file(&dir.join("merges.txt"), "#version: 0.2\n");
    tokens.len()
}

/// A short training of `method` on the drawn images.
fn train(case: &Case, method: &str, more: &[&str]) -> Ran {
    let mut command = command(["train", "--method", method, "--epochs", "2", "--batch-size", "16"]);
    command.arg("--backbone").arg(clip(case)).arg("--data").arg(case.images());
    command.arg("--output").arg(case.path(method)).args(more);
    run(command)
}

/// Settings that two blocks allow.
fn small(method: &str) -> &'static [&'static str] {
    match method {
        "mmlop" | "ivlp" | "promptsrc" | "maple" => &["--depth", "2", "--prompt-lr", "0.05"],
        "coop" => &["--tokens", "4", "--prompt-lr", "0.05"],
        _ => &[],
    }
}
