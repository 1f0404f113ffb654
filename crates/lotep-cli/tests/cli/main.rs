//! The program as a user meets it: every test runs the real binary and looks at its output, its exit status and the
//! files it leaves. Networks and images are tiny and made here, so nothing is fetched and nothing takes long.

// A test that can't get its own fixtures ready should stop right there.
#![allow(clippy::unwrap_used)]

mod common;
mod files;
mod hub_server;
mod net;

mod analyze;
mod bad_adapter;
mod bad_backbone;
mod bad_data;
mod bad_settings;
mod bench;
mod cifar;
mod clip;
mod config_file;
mod datasets;
mod demo;
mod divergence;
mod experiment;
mod export;
mod hub;
mod inspect;
#[cfg(unix)]
mod interrupt;
mod one_work;
mod output;
mod peft;
mod predict;
mod prune;
mod recipes;
mod resume;
mod sweep;
mod train;
