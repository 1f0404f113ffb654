//! Looking into adapted networks: where they differ, what was learnt, what goes wrong, what it costs.

mod capture;
pub mod cka;
pub mod efficiency;
pub mod errors;
pub mod prompts;
pub mod rank;
mod spectrum;

pub use capture::Watched;
