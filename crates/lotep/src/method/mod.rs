//! The adaptation methods: what each learns and what it does to the activations.

mod additive;
pub mod factor;
mod linear_probe;
mod lor_vp;
mod lotep;
pub mod rank;

use burn::tensor::Device;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

pub use additive::AdditivePrompts;
pub use linear_probe::LinearProbe;
pub use lor_vp::LorVp;
pub use lotep::{Form, Lotep, VitGeometry};

use crate::backbone::{Block, Loaded};
use crate::params::Params;
use crate::{Result, bail};
use lotep::LotepMethod;

/// Where a method is put: a backbone's geometry.
#[derive(Clone, Copy, Debug)]
pub struct Site<'a> {
    /// Height and width of the image.
    pub image: [usize; 2],
    /// The backbone's blocks.
    pub blocks: &'a [Block],
    /// LoTeP's depth ratio for this family.
    pub default_depth_ratio: f64,
    /// Where the parameters live.
    pub device: &'a Device,
}

impl<'a> Site<'a> {
    /// The site that a loaded backbone offers.
    pub fn of(loaded: &'a Loaded) -> Self {
        Self {
            image: loaded.config.preprocess.image,
            blocks: &loaded.blocks,
            default_depth_ratio: loaded.config.architecture.default_depth_ratio(),
            device: &loaded.device,
        }
    }
}

/// What every method can do.
pub trait Method {
    /// Make the parameters, seeded.
    ///
    /// # Errors
    /// A setting is out of range for this site.
    fn init(&self, site: &Site<'_>, seed: u64) -> Result<Params>;

    /// Build the prompts from parameters that [`Method::init`] laid out.
    fn prompts(&self, site: &Site<'_>, params: &Params) -> AdditivePrompts;
}

/// A method and its settings, tagged by name: the one spelling that configuration files, adapters and the
/// command line share.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "kebab-case")]
pub enum MethodConfig {
    /// A new classifier alone.
    LinearProbe(LinearProbe),
    /// A low-rank prompt on the image.
    LorVp(LorVp),
    /// CP prompts on the image and the first blocks.
    LotepCp(Lotep),
    /// Tucker prompts on the image and the first blocks.
    LotepTk(Lotep),
}

impl MethodConfig {
    /// The names of all methods.
    pub const NAMES: [&'static str; 4] = ["linear-probe", "lor-vp", "lotep-cp", "lotep-tk"];

    /// The method's name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::LinearProbe(_) => "linear-probe",
            Self::LorVp(_) => "lor-vp",
            Self::LotepCp(_) => "lotep-cp",
            Self::LotepTk(_) => "lotep-tk",
        }
    }

    /// Write defaults that depend on the backbone into the settings, so that a record says what was run.
    pub fn resolve(&mut self, site: &Site<'_>) {
        if let Self::LotepCp(m) | Self::LotepTk(m) = self {
            m.depth_ratio.get_or_insert(site.default_depth_ratio);
        }
    }

    fn with<T>(&self, act: impl FnOnce(&dyn Method) -> T) -> T {
        match self {
            Self::LinearProbe(m) => act(m),
            Self::LorVp(m) => act(m),
            Self::LotepCp(m) => act(&LotepMethod(m, Form::Cp)),
            Self::LotepTk(m) => act(&LotepMethod(m, Form::Tucker)),
        }
    }
}

impl Method for MethodConfig {
    fn init(&self, site: &Site<'_>, seed: u64) -> Result<Params> {
        self.with(|m| m.init(site, seed))
    }

    fn prompts(&self, site: &Site<'_>, params: &Params) -> AdditivePrompts {
        self.with(|m| m.prompts(site, params))
    }
}

/// Check a standard deviation: at zero nothing but zeros would be learnt.
fn check_scale(method: &str, name: &str, value: f64) -> Result<()> {
    if !(value > 0.0 && value <= 1e3) {
        bail!("{method}: {name} {value} is out of range; above 0, up to 1000");
    }
    Ok(())
}

/// An independent stream of random numbers for each prompt, so that changing one leaves the others alone.
fn seeded(seed: u64, stream: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream);
    rng
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backbone::Layout;
    use crate::fixtures;
    use crate::params::Group;

    fn counts(blocks: &[Block], ratio: f64, change: impl Fn(&mut Lotep)) -> [usize; 2] {
        let device = Device::flex();
        let site = Site { image: [224, 224], blocks, default_depth_ratio: ratio, device: &device };
        let mut config = Lotep::default();
        change(&mut config);
        [MethodConfig::LotepCp(config.clone()), MethodConfig::LotepTk(config)]
            .map(|m| m.init(&site, 0).unwrap().count(Group::Prompt))
    }

    fn vit(side: usize) -> Vec<Block> {
        let block = |i: usize| Block {
            name: format!("blocks.{i}"),
            channels: 768,
            height: side,
            width: side,
            layout: Layout::Tokens,
        };
        (0..12).map(block).collect()
    }

    /// `spec/methods.md` 0.1: ViT-B/16 with 200 classes.
    #[test]
    fn table_4_of_the_paper() {
        let head = 768 * 200 + 200;
        assert_eq!(counts(&vit(14), 0.4, |_| {}).map(|n| n + head), [168_446, 169_031]);
        let ha = |m: &mut Lotep| (m.input_prompt, m.rank_denominator) = (false, rank::RankDenominator::Depth);
        assert_eq!(counts(&vit(14), 0.4, ha).map(|n| n + head), [168_128, 168_632]);
        let l4 = |m: &mut Lotep| (m.input_prompt, m.vit_geometry) = (false, VitGeometry::Sequence);
        assert_eq!(counts(&vit(14), 0.4, l4).map(|n| n + head), [168_290, 168_659]);
        let constant = |m: &mut Lotep| {
            (m.input_prompt, m.rank_schedule, m.depth_ratio) =
                (false, rank::RankSchedule::Constant, Some(0.25));
        };
        assert_eq!(counts(&vit(14), 0.4, constant).map(|n| n + head), [168_128, 168_776]);
        assert_eq!(counts(&vit(7), 0.4, |_| {}), [14_436, 15_021]);
    }

    /// `spec/methods.md` 0.2, every backbone of the paper, and every depth of the fixture.
    #[test]
    fn per_model_tables() {
        let Some(table) = fixtures::json("methods/prompt_param_counts_r0_6.json") else { return };
        for (model, ratio, expected) in [
            ("resnet18", 0.8, [6_902, 7_711]),
            ("resnet50", 0.8, [26_838, 28_223]),
            ("vit_b16", 0.4, [14_646, 15_231]),
            ("vit_b32", 0.4, [14_436, 15_021]),
            ("swin_b", 0.2, [6_594, 7_179]),
            ("convnext_base", 0.2, [10_134, 11_007]),
            ("coatnet2", 0.2, [7_050, 7_635]),
        ] {
            let shapes: Vec<[usize; 3]> = serde_json::from_value(table[model]["blocks"].clone()).unwrap();
            let blocks: Vec<Block> = shapes
                .iter()
                .map(|&[channels, height, width]| Block {
                    name: String::new(),
                    channels,
                    height,
                    width,
                    layout: Layout::Map,
                })
                .collect();
            assert_eq!(counts(&blocks, ratio, |_| {}), expected, "{model}");
            for row in table[model]["rows"].as_array().unwrap() {
                let n = |key: &str| row[key].as_u64().unwrap() as usize;
                let depth = n("d") as f64 / blocks.len() as f64;
                let found = counts(&blocks, depth, |m| m.input_prompt = false);
                assert_eq!(found, [n("cp"), n("tucker")], "{model} d={}", n("d"));
            }
        }
    }

    #[test]
    fn lor_vp_has_6_times_side_times_rank() {
        let (device, blocks) = (Device::flex(), vit(14));
        let site = Site { image: [224, 224], blocks: &blocks, default_depth_ratio: 0.4, device: &device };
        let params = MethodConfig::LorVp(LorVp::default()).init(&site, 0).unwrap();
        assert_eq!(params.count(Group::Prompt), 5_376);
    }

    /// Training starts from the unchanged network: every prompt is exactly zero.
    #[test]
    fn prompts_start_at_zero_and_seeds_differ() {
        let (device, blocks) = (Device::flex(), vit(14));
        let site = Site { image: [32, 48], blocks: &blocks, default_depth_ratio: 0.4, device: &device };
        for name in MethodConfig::NAMES {
            let method: MethodConfig = serde_json::from_value(serde_json::json!({ "method": name })).unwrap();
            assert_eq!(method.name(), name);
            let params = method.init(&site, 3).unwrap();
            let prompts = method.prompts(&site, &params);
            for prompt in prompts.image.iter().chain(prompts.blocks.iter().flatten()) {
                assert!(prompt.to_data().iter::<f32>().all(|v| v == 0.0), "{name}");
            }
            let values = |seed: u64| {
                let named = method.init(&site, seed).unwrap().to_named();
                named.into_iter().flat_map(|t| t.values).collect::<Vec<_>>()
            };
            assert_eq!(values(3), values(3), "{name}");
            assert!(name == "linear-probe" || values(3) != values(4), "{name}");
        }
    }

    #[test]
    fn settings_out_of_range_are_named() {
        let (device, blocks) = (Device::flex(), vit(14));
        let site = Site { image: [224, 224], blocks: &blocks, default_depth_ratio: 0.4, device: &device };
        let lotep = |change: &dyn Fn(&mut Lotep)| {
            let mut config = Lotep::default();
            change(&mut config);
            MethodConfig::LotepTk(config).init(&site, 0).unwrap_err().to_string()
        };
        assert!(lotep(&|m| m.rank = 0).contains("rank 0"));
        assert!(lotep(&|m| m.depth_ratio = Some(1.5)).contains("depth_ratio 1.5"));
        assert!(lotep(&|m| m.depth_ratio = Some(f64::NAN)).contains("depth_ratio NaN"));
        assert!(lotep(&|m| (m.depth_ratio, m.input_prompt) = (Some(0.0), false)).contains("nothing"));
        let rank = LorVp { rank: 300, ..LorVp::default() };
        assert!(MethodConfig::LorVp(rank).init(&site, 0).unwrap_err().to_string().contains("rank 300"));
        for json in [r#"{"method":"lor-vp","depth_ratio":0.5}"#, r#"{"method":"nothing"}"#] {
            assert!(serde_json::from_str::<MethodConfig>(json).is_err(), "{json}");
        }
    }
}
