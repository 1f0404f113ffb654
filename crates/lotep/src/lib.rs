//! Adapt frozen, pretrained vision models to new image tasks with visual prompts.
//!
//! Data flows one way: image files → [`data`] → [`method`]'s pixels → normalise → [`backbone`], block by block,
//! each entrance passing through the method → features → [`head`] → loss. The backbone does not know which
//! method is in it, the method does not know which backbone it is in.

pub mod adapter;
pub mod analysis;
mod atomic;
pub mod backbone;
mod belongs;
pub mod bench;
mod claim;
pub mod data;
pub mod device;
pub mod draw;
mod error;
pub mod eval;
pub mod experiment;
pub mod export;
#[cfg(test)]
mod fixtures;
mod hash;
pub mod head;
pub mod hub;
mod jobs;
mod mapped;
pub mod method;
pub mod model;
pub mod ops;
pub mod params;
pub mod peft;
pub mod plot;
pub mod pretrain;
pub mod pretrain_clip;
pub mod protocol;
pub mod prune;
pub mod safetensors;
pub mod sweep;
pub mod system;
pub mod text;
pub mod torch;
pub mod train;

pub(crate) use atomic::{remove_leftovers, write_json};
pub use atomic::{write_atomic, write_atomic_with};
pub use claim::{Claim, claim};
pub use error::{Error, Result};
pub use lotep_kernels::memory::LargePages;
