//! Training: the loop, optimiser groups, schedules, checkpoints and records.

mod checkpoint;
#[cfg(test)]
mod clip_tests;
mod config;
mod features;
mod gradients;
pub mod loss;
mod observe;
pub mod optim;
mod papers;
mod records;
mod run;
mod schedule;
pub(crate) mod setup;
pub(crate) mod step;
pub mod tensorboard;
mod text_step;

pub use config::{Select, TrainConfig};
pub(crate) use gradients::mean_gradients;
pub use gradients::step_gradients;
pub(crate) use observe::Downloads;
pub use observe::{EpochRecord, Event, Observer, Silent};
pub(crate) use papers::Comparison;
pub use records::{Outcome, RunFacts, TrainFacts};
pub use run::{RunDir, train, train_epochs};
pub use schedule::Schedule;
pub use setup::class_texts;
