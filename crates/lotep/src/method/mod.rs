//! The adaptation methods: what each learns and what it does to the activations.

mod about;
mod auto_vp;
mod border;
pub(crate) mod e2vpt;
pub mod factor;
mod frame;
pub(crate) mod full;
mod grouped;
mod ilm_vp;
mod linear_probe;
mod lor_vp;
mod lora;
mod lotep;
mod prompts;
pub mod rank;
mod vpt;

use std::sync::Arc;

use burn::tensor::Device;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

pub use about::{About, METHODS};
pub use auto_vp::AutoVp;
pub use border::Border;
pub use e2vpt::{E2vpt, SegmentLayout};
pub use full::Full;
pub use grouped::{DeepLorVp, Grouped, NaiveDeep};
pub use ilm_vp::IlmVp;
pub use linear_probe::LinearProbe;
pub use lor_vp::LorVp;
pub use lora::{ConvForm, Lora};
pub use lotep::{Form, Lotep, VitGeometry};
pub use prompts::Prompts;
pub use vpt::Vpt;

use crate::backbone::{Backbone, Block, Layer, Loaded};
use crate::head::Mapping;
use crate::ops::Training;
use crate::params::Params;
use crate::safetensors::NamedTensor;
use crate::{Result, bail, input_error};
use lotep::LotepMethod;
use vpt::{Depth, VptMethod};

/// Where a method is put: a backbone's geometry.
#[derive(Clone, Copy)]
pub struct Site<'a> {
    /// Height and width of the image.
    pub image: [usize; 2],
    /// The backbone's blocks.
    pub blocks: &'a [Block],
    /// What pixels are divided by in the end.
    pub std: [f32; 3],
    /// LoTeP's depth ratio for this family.
    pub default_depth_ratio: f64,
    /// Where the parameters live.
    pub device: &'a Device,
    /// The network itself, for methods that learn its weights.
    pub loaded: Option<&'a Loaded>,
}

impl<'a> Site<'a> {
    /// Layers whose weights can be added to.
    pub fn layers(&self) -> &'a [Layer] {
        self.loaded.map_or(&[], |loaded| &loaded.layers)
    }

    /// The site that a loaded backbone offers.
    pub fn of(loaded: &'a Loaded) -> Self {
        Self {
            image: loaded.config.preprocess.image,
            blocks: &loaded.blocks,
            std: loaded.config.preprocess.std,
            default_depth_ratio: loaded.config.architecture.default_depth_ratio(),
            device: &loaded.device,
            loaded: Some(loaded),
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
    fn prompts(&self, site: &Site<'_>, params: &Params) -> Prompts;

    /// Weights of the network that it changes, under the checkpoint's names, as they are once nothing is learnt any more.
    /// The prompts' updates of layers are in them.
    ///
    /// # Errors
    /// The network's own weights can no longer be read.
    fn weights(&self, _site: &Site<'_>, _params: &Params) -> Result<Vec<NamedTensor>> {
        Ok(Vec::new())
    }

    /// The network that is trained in the place of the frozen one, where its own weights are learnt: norms and paths
    /// behave as `training` has it.
    ///
    /// # Errors
    /// The parameters are not those of this network.
    fn training_network(
        &self,
        _loaded: &Loaded,
        _leaves: &Params,
        _training: &Training,
    ) -> Result<Option<Arc<dyn Backbone>>> {
        Ok(None)
    }

    /// Height and width of the images that it takes, given the network's own; smaller ones are put on a canvas.
    fn input(&self, image: [usize; 2]) -> [usize; 2] {
        image
    }
}

/// A method and its settings, tagged by name: the one spelling that configuration files, adapters and the
/// command line share.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "kebab-case")]
pub enum MethodConfig {
    /// A new classifier alone.
    LinearProbe(LinearProbe),
    /// All of the network's weights.
    Full(Full),
    /// Low-rank additions to weights.
    Lora(Lora),
    /// A low-rank prompt on the image.
    LorVp(LorVp),
    /// A border over the image's edge.
    Border(Border),
    /// A frame around the image, made small.
    IlmVp(IlmVp),
    /// The same with a learnt scale.
    AutoVp(AutoVp),
    /// CP prompts on the image and the first blocks.
    LotepCp(Lotep),
    /// Tucker prompts on the image and the first blocks.
    LotepTk(Lotep),
    /// A full map for each channel on the image and the first blocks.
    NaiveDeep(NaiveDeep),
    /// Maps that groups of channels share, on the image and the first blocks.
    Grouped(Grouped),
    /// A product of thin matrices for each channel, on the image and the first blocks.
    DeepLorVp(DeepLorVp),
    /// Tokens among those of the first block.
    VptShallow(Vpt),
    /// Tokens among those of every block.
    VptDeep(Vpt),
    /// The same, and keys and values in every attention.
    E2vpt(E2vpt),
}

impl MethodConfig {
    /// The names of all methods.
    pub const NAMES: [&'static str; 15] = [
        "linear-probe",
        "full",
        "lora",
        "lor-vp",
        "border",
        "ilm-vp",
        "auto-vp",
        "lotep-cp",
        "lotep-tk",
        "naive-deep",
        "grouped",
        "deep-lor-vp",
        "vpt-shallow",
        "vpt-deep",
        "e2vpt",
    ];

    /// A method by its name, with default settings.
    ///
    /// # Errors
    /// There is no such method.
    pub fn named(name: &str) -> Result<Self> {
        serde_json::from_value(serde_json::json!({ "method": name }))
            .map_err(|_| input_error!("method {name}: known are {}", Self::NAMES.join(", ")))
    }

    /// The method's name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::LinearProbe(_) => "linear-probe",
            Self::Full(_) => "full",
            Self::Lora(_) => "lora",
            Self::LorVp(_) => "lor-vp",
            Self::Border(_) => "border",
            Self::IlmVp(_) => "ilm-vp",
            Self::AutoVp(_) => "auto-vp",
            Self::LotepCp(_) => "lotep-cp",
            Self::LotepTk(_) => "lotep-tk",
            Self::NaiveDeep(_) => "naive-deep",
            Self::Grouped(_) => "grouped",
            Self::DeepLorVp(_) => "deep-lor-vp",
            Self::VptShallow(_) => "vpt-shallow",
            Self::VptDeep(_) => "vpt-deep",
            Self::E2vpt(_) => "e2vpt",
        }
    }

    /// Write defaults that depend on the backbone into the settings, so that a record says what was run.
    pub fn resolve(&mut self, site: &Site<'_>) {
        let depth_ratio = match self {
            Self::LotepCp(m) | Self::LotepTk(m) => &mut m.depth_ratio,
            Self::NaiveDeep(m) => &mut m.depth_ratio,
            Self::Grouped(m) => &mut m.depth_ratio,
            Self::DeepLorVp(m) => &mut m.depth_ratio,
            Self::Lora(m) => return m.resolve(site),
            Self::LinearProbe(_)
            | Self::Full(_)
            | Self::LorVp(_)
            | Self::Border(_)
            | Self::IlmVp(_)
            | Self::AutoVp(_)
            | Self::VptShallow(_)
            | Self::VptDeep(_)
            | Self::E2vpt(_) => return,
        };
        depth_ratio.get_or_insert(site.default_depth_ratio);
    }

    /// How class scores come about where nothing else is asked for: as in the method's paper.
    pub fn default_mapping(&self) -> Mapping {
        match self {
            Self::Border(_) => Mapping::First,
            Self::IlmVp(_) => Mapping::Iterative,
            Self::AutoVp(_) => Mapping::Full,
            _ => Mapping::Linear,
        }
    }

    fn with<T>(&self, act: impl FnOnce(&dyn Method) -> T) -> T {
        match self {
            Self::LinearProbe(m) => act(m),
            Self::Full(m) => act(m),
            Self::Lora(m) => act(m),
            Self::LorVp(m) => act(m),
            Self::Border(m) => act(m),
            Self::IlmVp(m) => act(m),
            Self::AutoVp(m) => act(m),
            Self::LotepCp(m) => act(&LotepMethod(m, Form::Cp)),
            Self::LotepTk(m) => act(&LotepMethod(m, Form::Tucker)),
            Self::NaiveDeep(m) => act(&Grouped::from(m)),
            Self::Grouped(m) => act(m),
            Self::DeepLorVp(m) => act(&Grouped::from(m)),
            Self::VptShallow(m) => act(&VptMethod(m, Depth::Shallow)),
            Self::VptDeep(m) => act(&VptMethod(m, Depth::Deep)),
            Self::E2vpt(m) => act(m),
        }
    }
}

impl Method for MethodConfig {
    fn init(&self, site: &Site<'_>, seed: u64) -> Result<Params> {
        self.with(|m| m.init(site, seed))
    }

    fn prompts(&self, site: &Site<'_>, params: &Params) -> Prompts {
        self.with(|m| m.prompts(site, params))
    }

    fn weights(&self, site: &Site<'_>, params: &Params) -> Result<Vec<NamedTensor>> {
        self.with(|m| m.weights(site, params))
    }

    fn training_network(
        &self,
        loaded: &Loaded,
        leaves: &Params,
        training: &Training,
    ) -> Result<Option<Arc<dyn Backbone>>> {
        self.with(|m| m.training_network(loaded, leaves, training))
    }

    fn input(&self, image: [usize; 2]) -> [usize; 2] {
        self.with(|m| m.input(image))
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
    use burn::tensor::{Tensor, TensorData};

    use super::*;
    use crate::backbone::parity::architecture;
    use crate::backbone::{Layout, made_up};
    use crate::fixtures;
    use crate::model::Frozen;
    use crate::params::{Group, normal};

    fn site<'a>(image: [usize; 2], blocks: &'a [Block], ratio: f64, device: &'a Device) -> Site<'a> {
        Site { image, blocks, std: [1.0; 3], default_depth_ratio: ratio, device, loaded: None }
    }

    /// Those that start with a visible frame.
    const FRAMES: [&str; 3] = ["border", "ilm-vp", "auto-vp"];

    /// A method with settings that images of 32 pixels allow.
    fn small(name: &str) -> MethodConfig {
        let mut method = MethodConfig::named(name).unwrap();
        match &mut method {
            MethodConfig::Lora(m) => m.rank = 3,
            MethodConfig::Border(m) => m.border = 5,
            MethodConfig::IlmVp(m) => m.size = 21,
            MethodConfig::AutoVp(m) => (m.size, m.scale) = (21, 1.3),
            _ => {}
        }
        method
    }

    fn counts(blocks: &[Block], ratio: f64, change: impl Fn(&mut Lotep)) -> [usize; 2] {
        let device = Device::flex();
        let site = site([224, 224], blocks, ratio, &device);
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
            heads: Some(12),
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
                    heads: None,
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
        let site = site([224, 224], &blocks, 0.4, &device);
        let params = MethodConfig::LorVp(LorVp::default()).init(&site, 0).unwrap();
        assert_eq!(params.count(Group::Prompt), 5_376);
    }

    /// `spec/methods.md` 1.1 and 6: C·H·W, g·H·W, C·r·(H + W) and n·C for each prompted block, and the image's.
    #[test]
    fn baselines_have_the_parameters_of_their_formulas() {
        let (device, blocks) = (Device::flex(), vit(14));
        let site = site([224, 224], &blocks, 0.4, &device);
        let count = |json: serde_json::Value| {
            let method: MethodConfig = serde_json::from_value(json).unwrap();
            method.init(&site, 0).unwrap().count(Group::Prompt)
        };
        let (grid, image) = (14 * 14, 224 * 224);
        assert_eq!(count(serde_json::json!({"method": "naive-deep"})), 4 * 768 * grid + 3 * image);
        let off = serde_json::json!({"method": "naive-deep", "input_prompt": false, "depth_ratio": 0.1});
        assert_eq!(count(off), 768 * grid);
        let grouped = serde_json::json!({"method": "grouped", "groups": 5});
        assert_eq!(count(grouped), 4 * 5 * grid + 3 * image);
        let grouped = serde_json::json!({"method": "grouped", "groups": 2, "rank": 3});
        assert_eq!(count(grouped), 4 * 2 * 3 * 28 + 2 * 3 * 448);
        assert_eq!(count(serde_json::json!({"method": "deep-lor-vp"})), 4 * 768 * 4 * 28 + 3 * 4 * 448);
        assert_eq!(count(serde_json::json!({"method": "border"})), 12 * 30 * (224 - 30));
        for framed in ["ilm-vp", "auto-vp"] {
            let off = serde_json::json!({"method": framed, "size": 32, "train_scale": false});
            let off =
                if framed == "auto-vp" { off } else { serde_json::json!({"method": framed, "size": 32}) };
            assert_eq!(count(off), 147_456, "{framed}");
        }
        assert_eq!(count(serde_json::json!({"method": "auto-vp"})), 3 * (image - 128 * 128) + 1);
        assert_eq!(count(serde_json::json!({"method": "vpt-deep", "tokens": 50})), 12 * 50 * 768);
        assert_eq!(count(serde_json::json!({"method": "vpt-shallow", "tokens": 7})), 7 * 768);
        for (tokens, key_values, parameters) in
            [(5, 5, 92_245), (10, 5, 138_410), (10, 10, 184_490), (32, 5, 341_536), (1, 1, 18_449)]
        {
            let (tokens, key_values) = (serde_json::json!(tokens), serde_json::json!(key_values));
            let e2vpt = serde_json::json!({
                "method": "e2vpt", "tokens": tokens, "key_values": key_values, "masks": true
            });
            assert_eq!(count(e2vpt), parameters);
        }
    }

    /// Seven channels in three groups: 0 to 2, 3 and 4, 5 and 6.
    #[test]
    fn successive_channels_share_a_map() {
        let device = Device::flex();
        let block =
            Block { name: "b".into(), channels: 7, height: 1, width: 2, layout: Layout::Map, heads: None };
        let blocks = [block];
        let site = site([4, 4], &blocks, 1.0, &device);
        let method = Grouped { groups: 3, input_prompt: false, ..Grouped::default() };
        let mut params = method.init(&site, 0).unwrap();
        params.load("test", |_| Ok(((0..6).map(|v| v as f32).collect(), vec![3, 1, 2]))).unwrap();
        let prompt = method.prompts(&site, &params).blocks[0].clone().unwrap();
        let values: Vec<f32> = prompt.into_data().iter::<f32>().collect();
        assert_eq!(values, [0., 1., 0., 1., 0., 1., 2., 3., 2., 3., 4., 5., 4., 5.]);
    }

    /// Training starts from the unchanged network where the method says so: every added prompt is exactly zero.
    #[test]
    fn prompts_start_at_zero_and_seeds_differ() {
        let (device, blocks) = (Device::flex(), vit(14));
        let site = site([32, 48], &blocks, 0.4, &device);
        for name in MethodConfig::NAMES {
            let method = small(name);
            assert_eq!(method.name(), name);
            if ["full", "lora"].contains(&name) {
                assert!(method.init(&site, 3).unwrap_err().to_string().contains("a network"));
                continue;
            }
            let params = method.init(&site, 3).unwrap();
            let prompts = method.prompts(&site, &params);
            let begins = if FRAMES.contains(&name) { &[] } else { prompts.image.as_slice() };
            for prompt in begins.iter().chain(prompts.blocks.iter().flatten()) {
                assert!(prompt.to_data().iter::<f32>().all(|v| v == 0.0), "{name}");
            }
            let values = |seed: u64| {
                let named = method.init(&site, seed).unwrap().to_named();
                named.into_iter().flat_map(|t| t.values).collect::<Vec<_>>()
            };
            assert_eq!(values(3), values(3), "{name}");
            assert!(
                ["linear-probe", "naive-deep", "grouped", "ilm-vp", "auto-vp"].contains(&name)
                    || values(3) != values(4),
                "{name}"
            );
        }
    }

    /// Each method's gradients along a random direction, against the loss on both sides. With smooth networks: a ReLU's
    /// kinks would be seen.
    #[test]
    fn gradients_agree_with_finite_differences() {
        let networks =
            [("vit_b16", [48, 64]), ("convnext", [32, 64]), ("swin", [48, 48]), ("coatnet2", [64, 96])];
        for (network, image) in networks {
            let loaded = made_up(architecture(network), image);
            let frozen = Frozen::new(&loaded);
            let site = Site::of(&loaded);
            for name in MethodConfig::NAMES.iter().filter(|n| **n != "linear-probe") {
                let mut method = small(name);
                if let MethodConfig::E2vpt(m) = &mut method {
                    (m.masks, m.tokens) = if network == "vit_b16" { (true, 3) } else { (false, 0) };
                }
                if let ("e2vpt", "convnext") = (*name, network) {
                    assert!(method.init(&site, 0).is_err(), "{name}");
                    continue;
                }
                if name.starts_with("vpt") && network != "vit_b16" {
                    assert!(
                        method.init(&site, 0).unwrap_err().to_string().contains("need a ViT"),
                        "{network}"
                    );
                    continue;
                }
                let mut params = method.init(&site, 0).unwrap();
                let mut rng = seeded(1, 0);
                // A network of weights like that would not be smooth: it keeps its own.
                for param in params.iter_mut().filter(|_| *name != "full") {
                    let n = param.value.dims()[0];
                    let values = normal(n, 0.3, &mut rng);
                    param.value = Tensor::from_data(TensorData::new(values, [n]), &loaded.device);
                }
                let [h, w] = method.input(image);
                let pixels: Vec<f32> = (0..3 * h * w).map(|i| 0.5 + 0.5 * (i as f32 * 0.37).sin()).collect();
                let pixels = Tensor::<4>::from_data(TensorData::new(pixels, [1, 3, h, w]), &loaded.device);
                let directions: Vec<Tensor<1>> = params
                    .learnt()
                    .map(|p| {
                        let n = p.value.dims()[0];
                        Tensor::from_data(TensorData::new(normal(n, 1.0, &mut rng), [n]), &loaded.device)
                    })
                    .collect();
                let loss = |params: &Params| {
                    let own = method.training_network(&loaded, params, &Training::new(0)).unwrap();
                    let frozen = own.map_or(frozen.clone(), |network| frozen.with_network(network));
                    let features = frozen.features(pixels.clone(), &method.prompts(&site, params));
                    let width = features.dims()[1];
                    let weigh: Vec<f32> = (0..width).map(|i| (i as f32).cos()).collect();
                    let weigh = Tensor::<2>::from_data(TensorData::new(weigh, [1, width]), &loaded.device);
                    (features * weigh).sum()
                };
                let leaves = params.leaves();
                let mut tape = loss(&leaves).backward();
                let (mut slope, mut steepest) = (0.0, 0.0);
                for (leaf, along) in leaves.learnt().zip(&directions) {
                    let grad = leaf.value.grad_remove(&mut tape).expect("every parameter acts");
                    slope += f64::from((grad.clone() * along.clone()).sum().into_scalar::<f32>());
                    steepest += f64::from(grad.square().sum().into_scalar::<f32>());
                }
                let norm =
                    directions.iter().map(|d| f64::from((d.clone() * d.clone()).sum().into_scalar::<f32>()));
                let step = 0.02 / norm.sum::<f64>().sqrt();
                let beside = |step: f64| {
                    let mut moved = params.clone();
                    let learnt = moved.iter_mut().filter(|p| p.group != Group::Fixed);
                    for (param, along) in learnt.zip(&directions) {
                        param.value = param.value.clone() + along.clone() * step;
                    }
                    // Weights that are not tracked would be packed, in a form that does not train.
                    let moved = if *name == "full" { moved.leaves() } else { moved };
                    f64::from(loss(&moved).into_scalar::<f32>())
                };
                let found = (beside(step) - beside(-step)) / (2.0 * step);
                // What the slope along a random direction is usually like: one that is nearly level says little.
                let scale = slope.abs().max(steepest.sqrt());
                assert!((slope - found).abs() < 0.03 * scale, "{network} {name}: {slope} and {found}");
            }
        }
    }

    #[test]
    fn settings_out_of_range_are_named() {
        let (device, blocks) = (Device::flex(), vit(14));
        let site = site([224, 224], &blocks, 0.4, &device);
        let lotep = |change: &dyn Fn(&mut Lotep)| {
            let mut config = Lotep::default();
            change(&mut config);
            MethodConfig::LotepTk(config).init(&site, 0).unwrap_err().to_string()
        };
        assert!(lotep(&|m| m.rank = 0).contains("rank 0"));
        assert!(lotep(&|m| m.depth_ratio = Some(1.5)).contains("depth_ratio 1.5"));
        assert!(lotep(&|m| m.depth_ratio = Some(f64::NAN)).contains("depth_ratio NaN"));
        assert!(lotep(&|m| (m.depth_ratio, m.input_prompt) = (Some(0.0), false)).contains("nothing"));
        let given = |json: &str| {
            let method: MethodConfig = serde_json::from_str(json).unwrap();
            method.init(&site, 0).unwrap_err().to_string()
        };
        assert!(given(r#"{"method":"vpt-deep","tokens":0}"#).contains("tokens 0"));
        assert!(given(r#"{"method":"vpt-deep","fourier":1.5}"#).contains("fourier 1.5"));
        assert!(given(r#"{"method":"grouped","groups":0}"#).contains("groups 0"));
        assert!(given(r#"{"method":"deep-lor-vp","rank":0}"#).contains("rank 0"));
        assert!(
            given(r#"{"method":"border","border":112}"#).contains("border 112 is out of range; 1 to 111")
        );
        assert!(given(r#"{"method":"ilm-vp","size":224}"#).contains("size 224"));
        assert!(given(r#"{"method":"auto-vp","scale":9}"#).contains("scale 9"));
        let rank = LorVp { rank: 300, ..LorVp::default() };
        assert!(MethodConfig::LorVp(rank).init(&site, 0).unwrap_err().to_string().contains("rank 300"));
        for json in [r#"{"method":"lor-vp","depth_ratio":0.5}"#, r#"{"method":"nothing"}"#] {
            assert!(serde_json::from_str::<MethodConfig>(json).is_err(), "{json}");
        }
    }
}
