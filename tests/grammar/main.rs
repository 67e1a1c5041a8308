//! The grammar of commands and addresses.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod address;
mod command;
#[path = "../common/random.rs"]
mod random;
