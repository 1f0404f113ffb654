//! Training: the loop, optimiser groups, schedules, checkpoints and records.

pub mod tensorboard;
