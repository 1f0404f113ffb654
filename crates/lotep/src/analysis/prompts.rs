//! What learnt prompts look like, and how strong they are by depth.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::adapter::Adapter;
use crate::backbone::{ConvUpdate, Loaded, Prompt};
use crate::method::{Method, Site};
use crate::plot::{Heat, grey, heat, png};
use crate::{Result, bail};

/// How strong a prompt is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Energy {
    /// `image`, or a block's name, with `tokens`, `keys` or `values` behind it where they are not added but beside; `channels`
    /// beside the image's; a layer's name with `weight`, which is what a LoRA adds to it.
    pub place: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Sum of squares.
    pub energy: f64,
    /// Root of the mean square.
    pub rms: f64,
    /// The largest magnitude.
    pub max: f64,
}

/// Prompts as numbers and pictures.
#[derive(Clone, Debug)]
pub struct Pictures {
    /// From the image on.
    pub energies: Vec<Energy>,
    /// What is seen with the image as PNG files, zero being the middle grey, by name: `image`, which is added to it, or
    /// `channel-1` and so on, beside its colours.
    pub images: Vec<(String, Vec<u8>)>,
    /// For each prompted block the root mean square over channels, as SVG, by the block's name.
    pub maps: Vec<(String, String)>,
}

fn energy(place: String, shape: Vec<usize>, values: &[f32]) -> Energy {
    let energy: f64 = values.iter().map(|v| f64::from(*v).powi(2)).sum();
    Energy {
        place,
        shape,
        energy,
        rms: (energy / values.len().max(1) as f64).sqrt(),
        max: values.iter().fold(0.0, |m, v| f64::from(v.abs()).max(m)),
    }
}

fn numbers<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.into_data().iter::<f32>().collect()
}

/// Look at an adapter's prompts; of a LoRA, at what it adds to weights.
///
/// # Errors
/// It has neither, or a picture can't be written.
pub fn pictures(loaded: &Loaded, adapter: &Adapter) -> Result<Pictures> {
    let method = &adapter.config.method;
    let prompts = method.prompts(&Site::of(loaded), &adapter.params);
    let (mut energies, mut maps, mut images) = (Vec::new(), Vec::new(), Vec::new());
    if let Some(prompt) = prompts.image {
        let shape = prompt.dims();
        let values = numbers(prompt);
        let found = energy("image".into(), shape.to_vec(), &values);
        images.push(("image".to_owned(), png(&grey(&values, found.max as f32), shape[2], shape[1])?));
        energies.push(found);
    }
    if let Some(below) = prompts.below {
        let shape = below.channels.dims();
        let values = numbers(below.channels);
        let found = energy("channels".into(), shape.to_vec(), &values);
        for (k, channel) in values.chunks_exact((shape[1] * shape[2]).max(1)).enumerate() {
            let pixels = grey(&[channel; 3].concat(), found.max as f32);
            images.push((format!("channel-{}", k + 1), png(&pixels, shape[2], shape[1])?));
        }
        energies.push(found);
    }
    for (prompt, block) in prompts.blocks.into_iter().zip(&loaded.blocks) {
        let Some(prompt) = prompt.map(Prompt::whole) else { continue };
        let [c, h, w] = prompt.dims();
        let values = numbers(prompt);
        energies.push(energy(block.name.clone(), vec![c, h, w], &values));
        maps.push((block.name.clone(), map(&block.name, &values, [c, h, w])?));
    }
    let beside = |name: &str, what: &str, x: Tensor<2>| {
        let shape = x.dims().to_vec();
        energy(format!("{name} {what}"), shape, &numbers(x))
    };
    for (tokens, block) in prompts.tokens.into_iter().zip(&loaded.blocks) {
        energies.push(beside(&block.name, "tokens", tokens));
    }
    for (own, block) in prompts.keys_values.into_iter().zip(&loaded.blocks) {
        if let Some([keys, values]) = own {
            energies.push(beside(&block.name, "keys", keys));
            energies.push(beside(&block.name, "values", values));
        }
    }
    for (l, words) in prompts.words.into_iter().enumerate() {
        energies.push(beside(&format!("text block {l}"), "words", words));
    }
    let linear = prompts.updates.into_iter().map(|(layer, u)| (layer, u.up.matmul(u.down)));
    let convolutions = prompts.conv_updates.into_iter().map(|(layer, update)| match update {
        // A kernel is a matrix of outputs × (inputs · kernel).
        ConvUpdate::Thin { down, up } => (layer, up.matmul(down.flatten(1, 3))),
        ConvUpdate::Kernel(kernel) => (layer, kernel.flatten(1, 3)),
    });
    let mut weights: Vec<(String, Tensor<2>)> = linear.chain(convolutions).collect();
    // As in the network; CLIP's text tower, whose layers are not listed, behind it.
    let place = |name: &str| loaded.layers.iter().position(|l| l.name == name).unwrap_or(usize::MAX);
    weights.sort_by_cached_key(|(name, _)| (place(name), natural(name)));
    energies.extend(weights.into_iter().map(|(name, added)| beside(&name, "weight", added)));
    if energies.is_empty() {
        bail!("{} learns no prompts: nothing to look at", method.name());
    }
    Ok(Pictures { energies, images, maps })
}

/// A name that is sorted by the numbers in it: `blocks.2` before `blocks.10`.
fn natural(name: &str) -> Vec<(usize, String)> {
    name.split('.').map(|part| (part.parse().unwrap_or(usize::MAX), part.to_owned())).collect()
}

/// Root mean square over channels, pixel by pixel.
fn map(name: &str, values: &[f32], [c, h, w]: [usize; 3]) -> Result<String> {
    let plane = h * w;
    let at = |i: usize| (0..c).map(|k| f64::from(values[k * plane + i]).powi(2)).sum::<f64>();
    let values: Vec<f64> = (0..plane).map(|i| (at(i) / c.max(1) as f64).sqrt()).collect();
    let most = values.iter().copied().fold(0.0, f64::max);
    let names = |n: usize| (0..n).map(|i| i.to_string()).collect::<Vec<_>>();
    heat(&Heat {
        title: format!("{name}: RMS over {c} channels"),
        x: ("column".into(), names(w)),
        y: ("row".into(), names(h)),
        values,
        range: [0.0, most.max(f64::MIN_POSITIVE)],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backbone::made_up;
    use crate::backbone::parity::architecture;
    use crate::head::Head;
    use crate::method::MethodConfig;
    use crate::train::setup::init_params;

    #[test]
    fn prompts_of_every_kind_are_weighed() {
        let vit = made_up(architecture("vit_b16"), [48, 64]);
        let resnet = made_up(architecture("resnet18"), [32, 32]);
        for (loaded, method, places) in [
            (&vit, "lor-vp", vec!["image"]),
            (&vit, "lotep-tk", vec!["image", "blocks.0"]),
            (&vit, "vpt-shallow", vec!["blocks.0 tokens"]),
            (&vit, "lora", vec!["blocks.0.attn.qkv weight", "blocks.1.attn.qkv weight"]),
            (&resnet, "lora", vec!["layer1.0.conv1 weight", "layer1.0.conv2 weight"]),
            (&resnet, "vpt-below", vec!["channels"]),
            (&vit, "linear-probe", vec![]),
        ] {
            let method = MethodConfig::named(method).unwrap();
            let mut params = init_params(loaded, &method, Head::default(), 2, 0).unwrap();
            for param in params.iter_mut() {
                param.value = param.value.ones_like() * 0.5;
            }
            let classes = vec!["a".into(), "b".into()];
            let adapter = Adapter::new(loaded, method, Head::default(), classes, params).unwrap();
            let found = pictures(loaded, &adapter);
            if places.is_empty() {
                assert!(found.unwrap_err().to_string().contains("nothing to look at"));
                continue;
            }
            let found = found.unwrap();
            let names: Vec<&str> = found.energies.iter().map(|e| e.place.as_str()).collect();
            assert_eq!(names[..places.len()], places);
            for e in &found.energies {
                // Every value is the same; of the fused projections that LoRA adds to, only queries and values are.
                let shares = e.place.ends_with("qkv weight").then_some((2.0_f64 / 3.0).sqrt());
                let expected = shares.unwrap_or(1.0) * e.max;
                assert!(e.max > 0.0 && (e.rms - expected).abs() < 1e-5 * e.max, "{e:?}");
            }
            let images: Vec<&str> = found.images.iter().map(|(name, _)| name.as_str()).collect();
            match places[0] {
                "image" => assert_eq!(images, ["image"]),
                "channels" => assert_eq!(images, ["channel-1"]),
                _ => assert!(images.is_empty()),
            }
            let added = |name: &&&str| !["image", "channels"].contains(*name) && !name.contains(' ');
            assert_eq!(found.maps.len(), names.iter().filter(added).count());
        }
    }
}
