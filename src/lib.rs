#![doc = include_str!("../README.md")]
#[cfg(any(not(target_os = "linux"), target_arch = "riscv32"))]
compile_error!("mailchute needs Linux, and io_getevents(2), which riscv32 lacks");

pub mod config;
pub mod connection;
pub mod delivery;
pub mod event_loop;
pub mod fs;
pub mod journal;
pub mod maildir;
pub mod metrics;
pub mod privileges;
pub mod recipients;
pub mod server;
pub mod smtp;
pub mod sweep;
#[allow(unsafe_code)]
mod sys;
pub mod transcript;

pub use config::Config;
pub use event_loop::EventLoop;
