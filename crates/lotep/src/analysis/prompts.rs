//! What learnt prompts look like, and how strong they are by depth.

use serde::{Deserialize, Serialize};

use crate::adapter::Adapter;
use crate::backbone::Loaded;
use crate::method::{Method, Site};
use crate::plot::{Heat, grey, heat, png};
use crate::{Result, bail};

/// How strong a prompt is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Energy {
    /// `image`, or a block's name, with `tokens`, `keys` or `values` behind it where they are not added but beside.
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
    /// The prompt of the image as a PNG, zero being the middle grey.
    pub image: Option<Vec<u8>>,
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

/// Look at an adapter's prompts.
///
/// # Errors
/// It has none, or a picture can't be written.
pub fn pictures(loaded: &Loaded, adapter: &Adapter) -> Result<Pictures> {
    let method = &adapter.config.method;
    let prompts = method.prompts(&Site::of(loaded), &adapter.params);
    let (mut energies, mut maps, mut image) = (Vec::new(), Vec::new(), None);
    if let Some(prompt) = prompts.image {
        let shape = prompt.dims();
        let values: Vec<f32> = prompt.into_data().iter::<f32>().collect();
        let found = energy("image".into(), shape.to_vec(), &values);
        image = Some(png(&grey(&values, found.max as f32), shape[2], shape[1])?);
        energies.push(found);
    }
    for (prompt, block) in prompts.blocks.into_iter().zip(&loaded.blocks) {
        let Some(prompt) = prompt else { continue };
        let [c, h, w] = prompt.dims();
        let values: Vec<f32> = prompt.into_data().iter::<f32>().collect();
        energies.push(energy(block.name.clone(), vec![c, h, w], &values));
        maps.push((block.name.clone(), map(&block.name, &values, [c, h, w])?));
    }
    let beside = |name: &str, what: &str, x: burn::tensor::Tensor<2>| {
        let shape = x.dims().to_vec();
        energy(format!("{name} {what}"), shape, &x.into_data().iter::<f32>().collect::<Vec<f32>>())
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
    if energies.is_empty() {
        bail!("{} learns no prompts: nothing to look at", method.name());
    }
    Ok(Pictures { energies, image, maps })
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
        let loaded = made_up(architecture("vit_b16"), [48, 64]);
        for (method, places) in [
            ("lor-vp", vec!["image"]),
            ("lotep-tk", vec!["image", "blocks.0"]),
            ("vpt-shallow", vec!["blocks.0 tokens"]),
            ("linear-probe", vec![]),
        ] {
            let method = MethodConfig::named(method).unwrap();
            let mut params = init_params(&loaded, &method, Head::default(), 2, 0).unwrap();
            for param in params.iter_mut() {
                param.value = param.value.ones_like() * 0.5;
            }
            let classes = vec!["a".into(), "b".into()];
            let adapter = Adapter::new(&loaded, method, Head::default(), classes, params).unwrap();
            let found = pictures(&loaded, &adapter);
            if places.is_empty() {
                assert!(found.unwrap_err().to_string().contains("nothing to look at"));
                continue;
            }
            let found = found.unwrap();
            let names: Vec<&str> = found.energies.iter().map(|e| e.place.as_str()).collect();
            assert_eq!(names[..places.len()], places);
            for e in &found.energies {
                // Every value is the same.
                assert!(e.max > 0.0 && (e.rms - e.max).abs() < 1e-5 * e.max, "{e:?}");
            }
            assert_eq!(found.image.is_some(), places[0] == "image");
            assert_eq!(found.maps.len(), names.iter().filter(|n| **n != "image" && !n.contains(' ')).count());
        }
    }
}
