//! The adaptation methods: what each learns and what it does to the activations.

mod about;
mod auto_vp;
mod border;
mod clip_lora;
mod cocoop;
mod coop;
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
mod maple;
mod mmlop;
#[cfg(test)]
mod promises;
mod prompts;
pub mod rank;
#[cfg(test)]
mod tests;
mod texts;
mod vpt;
mod vpt_conv;
mod zero_shot;

use std::sync::Arc;

use burn::tensor::{Device, Tensor};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

pub use about::{About, METHODS};
pub use auto_vp::AutoVp;
pub use border::Border;
pub use clip_lora::ClipLora;
pub use cocoop::CoCoOp;
pub use coop::CoOp;
pub use e2vpt::{E2vpt, SegmentLayout};
pub use full::Full;
pub use grouped::{DeepLorVp, Grouped, NaiveDeep};
pub use ilm_vp::IlmVp;
pub use linear_probe::LinearProbe;
pub use lor_vp::LorVp;
pub use lora::{ConvForm, Lora};
pub use lotep::{Form, Lotep, VitGeometry};
pub use maple::MaPLe;
pub use mmlop::{Ivlp, Mmlop, PromptSrc, SharedUp};
pub use prompts::Prompts;
pub use texts::{Consistency, TextPlan};
pub use vpt::Vpt;
pub use vpt_conv::{VptBelow, VptPad};
pub use zero_shot::ZeroShot;

use crate::backbone::{Backbone, Block, Layer, Loaded};
use crate::head::{Head, Mapping};
use crate::ops::Training;
use crate::params::Params;
use crate::safetensors::NamedTensor;
use crate::{Result, bail, input_error};
use lotep::LotepMethod;
use mmlop::Named;
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

    /// What it says of each class, where it scores classes by their names.
    fn texts(&self) -> Option<TextPlan> {
        None
    }

    /// The words `[B, n, C]` of each image's own in front of class names, where they depend on its features `[B, F]`, of
    /// length one.
    fn conditioned(&self, _params: &Params, _images: Tensor<2>) -> Option<Tensor<3>> {
        None
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
    /// A border around the image, which the network sees as a larger one.
    VptPad(VptPad),
    /// Channels beside the image's colours.
    VptBelow(VptBelow),
    /// The same, and keys and values in every attention.
    E2vpt(E2vpt),
    /// CLIP as it is.
    ZeroShot(ZeroShot),
    /// Words in front of class names.
    #[serde(rename = "coop")]
    CoOp(CoOp),
    /// The same, moved for each image.
    #[serde(rename = "cocoop")]
    CoCoOp(CoCoOp),
    /// Prompts in both of CLIP's towers.
    Ivlp(Ivlp),
    /// The same, the image tower's made of the text tower's.
    #[serde(rename = "maple")]
    MaPLe(MaPLe),
    /// Prompts in both towers, held to the frozen ones.
    #[serde(rename = "promptsrc")]
    PromptSrc(PromptSrc),
    /// Low-rank prompts in both towers, held to the frozen ones.
    Mmlop(Mmlop),
    /// Low-rank additions to both towers' attention.
    ClipLora(ClipLora),
}

impl MethodConfig {
    /// The names of all methods.
    pub const NAMES: [&'static str; 25] = [
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
        "vpt-pad",
        "vpt-below",
        "e2vpt",
        "zero-shot",
        "coop",
        "cocoop",
        "ivlp",
        "maple",
        "promptsrc",
        "mmlop",
        "clip-lora",
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
            Self::VptPad(_) => "vpt-pad",
            Self::VptBelow(_) => "vpt-below",
            Self::E2vpt(_) => "e2vpt",
            Self::ZeroShot(_) => "zero-shot",
            Self::CoOp(_) => "coop",
            Self::CoCoOp(_) => "cocoop",
            Self::Ivlp(_) => "ivlp",
            Self::MaPLe(_) => "maple",
            Self::PromptSrc(_) => "promptsrc",
            Self::Mmlop(_) => "mmlop",
            Self::ClipLora(_) => "clip-lora",
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
            | Self::VptPad(_)
            | Self::VptBelow(_)
            | Self::E2vpt(_)
            | Self::ZeroShot(_)
            | Self::CoOp(_)
            | Self::CoCoOp(_)
            | Self::Ivlp(_)
            | Self::MaPLe(_)
            | Self::PromptSrc(_)
            | Self::Mmlop(_)
            | Self::ClipLora(_) => return,
        };
        depth_ratio.get_or_insert(site.default_depth_ratio);
    }

    /// How class scores come about where nothing else is asked for: as in the method's paper.
    pub fn default_mapping(&self) -> Mapping {
        match self {
            Self::Border(_) => Mapping::First,
            Self::IlmVp(_) => Mapping::Iterative,
            Self::AutoVp(_) => Mapping::Full,
            _ if self.texts().is_some() => Mapping::Text,
            _ => Mapping::Linear,
        }
    }

    /// What is said of each class where `head` scores classes by their names.
    ///
    /// # Errors
    /// The method learns what is said, and the head does not listen.
    pub fn text_plan(&self, head: Head) -> Result<Option<TextPlan>> {
        match (head.mapping, self.texts()) {
            (Mapping::Text, plan) => Ok(Some(plan.unwrap_or_default())),
            (_, None) => Ok(None),
            (_, Some(_)) => {
                bail!("{} scores classes by their names: --mapping text is expected", self.name())
            }
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
            Self::VptPad(m) => act(m),
            Self::VptBelow(m) => act(m),
            Self::E2vpt(m) => act(m),
            Self::ZeroShot(m) => act(m),
            Self::CoOp(m) => act(m),
            Self::CoCoOp(m) => act(m),
            Self::Ivlp(m) => act(&Named("ivlp", m.into())),
            Self::MaPLe(m) => act(m),
            Self::PromptSrc(m) => act(&Named("promptsrc", m.into())),
            Self::Mmlop(m) => act(m),
            Self::ClipLora(m) => act(m),
        }
    }
}

impl Method for MethodConfig {
    fn init(&self, site: &Site<'_>, seed: u64) -> Result<Params> {
        if let Self::PromptSrc(m) = self {
            m.check()?;
        }
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

    fn texts(&self) -> Option<TextPlan> {
        self.with(|m| m.texts())
    }

    fn conditioned(&self, params: &Params, images: Tensor<2>) -> Option<Tensor<3>> {
        self.with(|m| m.conditioned(params, images))
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
