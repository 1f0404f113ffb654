//! The commands, one file each.

pub(crate) mod analyze;
pub(crate) mod backbones;
pub(crate) mod bench;
pub(crate) mod datasets;
pub(crate) mod demo;
pub(crate) mod eval;
pub(crate) mod experiment;
pub(crate) mod export;
pub(crate) mod import;
pub(crate) mod inspect;
mod labelled;
pub(crate) mod methods;
mod model;
mod names;
pub(crate) mod predict;
pub(crate) mod protocol;
pub(crate) mod prune;
pub(crate) mod sweep;
pub(crate) mod train;
