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

use crate::Result;
use crate::backbone::{Block, Loaded};
use crate::params::Params;
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

    /// The prompts' learning rate that suits the method's initial scale (`records/` has the sweep).
    pub fn default_prompt_lr(&self) -> f64 {
        match self {
            Self::LinearProbe(_) | Self::LorVp(_) => 0.02,
            Self::LotepCp(_) | Self::LotepTk(_) => 1.0,
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

/// An independent stream of random numbers for each prompt, so that changing one leaves the others alone.
fn seeded(seed: u64, stream: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream);
    rng
}
