#![doc = include_str!("../README.md")]

pub mod config;
pub mod connection;
pub mod delivery;
pub mod event_loop;
pub mod fs;
pub mod maildir;
pub mod privileges;
pub mod recipients;
pub mod server;
pub mod smtp;
pub mod sweep;
#[allow(unsafe_code)]
mod sys;

pub use config::Config;
pub use event_loop::EventLoop;
