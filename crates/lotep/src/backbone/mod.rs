//! Frozen, pretrained networks, seen as a list of blocks whose entrances a method may touch.
//!
//! The backbone does not know which method is in it: it calls [`Hooks`] at fixed places and goes on.

mod checkpoint;
mod clip_config;
mod clip_layout;
mod coatnet;
mod config;
#[cfg(test)]
mod conv_parity;
mod convnext;
mod family;
#[cfg(test)]
mod inside_parity;
mod layout;
mod load;
#[cfg(test)]
pub(crate) mod parity;
mod positions;
mod preprocess;
mod resnet;
mod source;
mod swin;
mod text;
mod vit;
mod weights;
mod words;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

pub use checkpoint::Checkpoint;
pub use coatnet::{CoAtNet, CoAtNetConfig, Variant as CoAtNetVariant};
pub use config::ModelConfig;
pub use convnext::{ConvNext, ConvNextConfig};
pub use family::{Architecture, PUBLISHED, Published, architectures};
pub use load::{LoadOptions, Loaded, load};
#[cfg(test)]
pub(crate) use load::{made_up, made_up_clip};
pub use preprocess::{CropMode, Preprocess};
pub use resnet::{ResNet, ResNetConfig};
pub use source::check;
pub use swin::{Swin, SwinConfig};
pub use text::{TextConfig, TextHints, TextTower};
pub use vit::{Vit, VitConfig};
pub use weights::Weights;
pub use words::Words;

pub use crate::ops::{Below, ConvUpdate, Dropout, Factors, LowRank, Product, Prompt};
use crate::ops::{Inside, Linear};
use crate::safetensors::NamedTensor;

/// How the activations at a block's entrance are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// A feature map `[B, C, H, W]`.
    Map,
    /// Tokens `[B, 1 + H·W, C]`: the class token, then the patches row by row.
    Tokens,
}

/// One residual block: its name in timm and the geometry of its entrance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Block {
    /// timm's module name, `layer1.0` or `blocks.3`.
    pub name: String,
    /// Channels at the entrance.
    pub channels: usize,
    /// Rows of the feature map or of the patch grid.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// Layout of the activations.
    pub layout: Layout,
    /// Heads of its attention, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heads: Option<usize>,
}

/// A layer whose weight a method can add to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// timm's module name, `blocks.3.attn.qkv`.
    pub name: String,
    /// Of its weight: outputs, inputs, and of a convolution the kernel's sides.
    pub shape: Vec<usize>,
    /// Whether it is a convolution; else it acts on each token, or pixel, alone.
    pub convolution: bool,
}

/// Activations at a block's entrance.
#[derive(Clone, Debug)]
pub enum Activation {
    /// `[B, C, H, W]`.
    Map(Tensor<4>),
    /// `[B, 1 + H·W, C]`.
    Tokens(Tensor<3>),
}

impl Activation {
    /// The layout and `[C, H, W]`, given the patch grid for tokens.
    fn geometry(&self, grid: [usize; 2]) -> (Layout, [usize; 3]) {
        match self {
            Self::Map(x) => {
                let [_, c, h, w] = x.dims();
                (Layout::Map, [c, h, w])
            }
            Self::Tokens(x) => (Layout::Tokens, [x.dims()[2], grid[0], grid[1]]),
        }
    }
}

/// What a method may do inside a backbone. Every hook defaults to the identity.
pub trait Hooks {
    /// Change the image `[B, 3, H, W]`, in [0, 1], before it is normalised.
    fn pixels(&self, x: Tensor<4>) -> Tensor<4> {
        x
    }

    /// What is added to every image then, `[3, H, W]`.
    fn image(&self) -> Option<Tensor<3>> {
        None
    }

    /// What is added to every sample where it enters block `block` (0-based); for tokens, a prompt of
    /// the patch grid leaves the class token alone, one of the whole sequence covers it.
    fn prompt(&self, _block: usize) -> Option<Prompt> {
        None
    }

    /// Change what enters block `block` in another way, before its prompt is added.
    fn entrance(&self, _block: usize, x: Activation) -> Activation {
        x
    }

    /// Tokens `[B, n, C]` of the method's own for all windows of block `block`, in the place of those that there were; without,
    /// what became of those goes on. A network whose attention has windows asks (Swin).
    fn window_tokens(&self, _block: usize, _samples: usize) -> Option<Tensor<3>> {
        None
    }

    /// Channels beside the image's colours, of convolutional networks.
    fn below(&self) -> Option<Below> {
        None
    }

    /// Keys and values, `[m, C]` each, that stand before the tokens' own in the attention of block `block`.
    fn keys_values(&self, _block: usize) -> Option<[Tensor<2>; 2]> {
        None
    }

    /// What is added to the weight of the layer that the checkpoint (timm's names) calls `name`, `blocks.3.attn.qkv`.
    fn low_rank(&self, _name: &str) -> Option<LowRank> {
        None
    }

    /// What is added to the convolution that the checkpoint (timm's names) calls `name`, `layer1.0.conv1`, in front of the
    /// norm behind it. Depthwise convolutions and stems are not asked for.
    fn conv_update(&self, _name: &str) -> Option<ConvUpdate> {
        None
    }

    /// Of what is added to weights, while training: what is dropped of what the additions see, the same rule everywhere.
    fn dropout(&self) -> Option<Dropout> {
        None
    }

    /// What stands in the place of the words behind the start of CLIP's texts where they enter block `block` of the text
    /// tower, `[1, n, C]`, or `[K, n, C]` of each text's own; in the first block before positions are added.
    fn words(&self, _block: usize) -> Option<Tensor<3>> {
        None
    }

    /// Whether [`exit`](Self::exit) looks, or [`entrance`](Self::entrance) at feature maps: else a network may skip what
    /// nothing else reads, and let maps pass several blocks at once.
    fn watches(&self) -> bool {
        false
    }

    /// See what block `block` put out. For analysis and tests; the activation goes on unchanged.
    fn exit(&self, _block: usize, _x: &Activation) {}
}

/// A feature map `[B, C, H, W]` at the entrance of block `l`, as the hooks leave it.
fn enter_map(hooks: &dyn Hooks, l: usize, x: Tensor<4>) -> Tensor<4> {
    let Activation::Map(x) = hooks.entrance(l, Activation::Map(x)) else {
        unreachable!("a hook keeps the layout")
    };
    x
}

/// Tokens `[B, N, C]` at the entrance of block `l`, as the hooks leave them.
fn enter_tokens(hooks: &dyn Hooks, l: usize, x: Tensor<3>) -> Tensor<3> {
    let Activation::Tokens(x) = hooks.entrance(l, Activation::Tokens(x)) else {
        unreachable!("a hook keeps the layout")
    };
    x
}

/// What the hooks have to be learnt inside transformer block `l`, whose layers' names begin with `name`.
fn inside(hooks: &dyn Hooks, l: usize, name: &str) -> Inside {
    let low_rank = |leaf| hooks.low_rank(&format!("{name}.{leaf}"));
    Inside {
        keys_values: hooks.keys_values(l),
        qkv: low_rank("attn.qkv"),
        proj: low_rank("attn.proj"),
        fc1: low_rank("mlp.fc1"),
        fc2: low_rank("mlp.fc2"),
        dropout: hooks.dropout().map(|dropout| dropout.at(name)),
    }
}

fn leave_map(hooks: &dyn Hooks, l: usize, x: &Tensor<4>) {
    hooks.exit(l, &Activation::Map(x.clone()));
}

/// Pixels as rows: `[B, C, H, W]` to `[B, H · W, C]`, a view where channels come last in memory.
fn rows(x: Tensor<4>) -> Tensor<3> {
    let [b, c, h, w] = x.dims();
    x.permute([0, 2, 3, 1]).reshape([b, h * w, c])
}

/// The other way about, a view.
fn map(x: Tensor<3>, [h, w]: [usize; 2]) -> Tensor<4> {
    let [b, _, c] = x.dims();
    x.reshape([b, h, w, c]).permute([0, 3, 1, 2])
}

/// No method: the network as it was trained.
#[derive(Clone, Copy, Debug)]
pub struct NoHooks;

impl Hooks for NoHooks {}

/// A network with constants folded into it.
pub struct Folded {
    /// The network; what was folded must no longer be added.
    pub network: Arc<dyn Backbone>,
    /// Whether the first block's prompt was folded too.
    pub first: bool,
    /// The checkpoint's weights that changed, under timm's names.
    pub changed: Vec<NamedTensor>,
}

/// A frozen network up to its pooled features.
pub trait Backbone: Send + Sync {
    /// Pooled features `[B, F]` of a normalised image `[B, 3, H, W]`.
    fn features(&self, x: Tensor<4>, hooks: &dyn Hooks) -> Tensor<2>;

    /// timm's names of the residual blocks, in order.
    fn block_names(&self) -> Vec<String>;

    /// Width F of the features.
    fn feature_width(&self) -> usize;

    /// The classifier the network was trained with, if it has one.
    fn head(&self) -> Option<&Linear>;

    /// Fold an image `[1, 3, H, W]` that would be added to the normalised input, and where the network allows it
    /// the first block's prompt `[C, H, W]`, into constants that it adds anyway. Everything before the first nonlinearity is
    /// linear, so this is exact up to rounding. `None` where it has no such constants: behind a convolution the image would be a
    /// map several times its size.
    fn fold(&self, _image: Option<Tensor<4>>, _first: Option<Prompt>) -> Option<Folded> {
        None
    }

    /// What the network does to tokens `[n, C]` between their positions and its first block: CLIP's first norm.
    fn before_blocks(&self, tokens: Tensor<2>) -> Tensor<2> {
        tokens
    }

    /// Heads of the attention in block `block`; `None` where it has none.
    fn heads(&self, _block: usize) -> Option<usize> {
        None
    }

    /// The patch grid of an image `[H, W]` for networks of tokens; unused elsewhere.
    fn grid(&self, _image: [usize; 2]) -> [usize; 2] {
        [0, 0]
    }
}

/// Find every block's entrance geometry by running one blank image through.
pub fn blocks(backbone: &dyn Backbone, image: [usize; 2], device: &Device) -> Vec<Block> {
    survey(backbone, image, device).0
}

/// The same, and the names of the layers that ask whether something is added to them, with whether they are convolutions.
fn survey(backbone: &dyn Backbone, image: [usize; 2], device: &Device) -> (Vec<Block>, Vec<(String, bool)>) {
    #[derive(Default)]
    struct Record {
        grid: [usize; 2],
        entrances: Mutex<Vec<(Layout, [usize; 3])>>,
        layers: Mutex<Vec<(String, bool)>>,
    }
    fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }
    impl Hooks for Record {
        fn entrance(&self, _block: usize, x: Activation) -> Activation {
            lock(&self.entrances).push(x.geometry(self.grid));
            x
        }

        fn watches(&self) -> bool {
            true
        }

        fn low_rank(&self, name: &str) -> Option<LowRank> {
            lock(&self.layers).push((name.to_owned(), false));
            None
        }

        fn conv_update(&self, name: &str) -> Option<ConvUpdate> {
            lock(&self.layers).push((name.to_owned(), true));
            None
        }
    }
    let record = Record { grid: backbone.grid(image), ..Record::default() };
    let device = device.clone().without_autodiff();
    backbone.features(Tensor::zeros([1, 3, image[0], image[1]], &device), &record);
    let found = std::mem::take(&mut *lock(&record.entrances));
    let blocks = backbone
        .block_names()
        .into_iter()
        .zip(found)
        .enumerate()
        .map(|(l, (name, (layout, [channels, height, width])))| {
            let heads = backbone.heads(l);
            Block { name, channels, height, width, layout, heads }
        })
        .collect();
    let layers = std::mem::take(&mut *lock(&record.layers));
    (blocks, layers)
}
