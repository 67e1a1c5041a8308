//! The protocol, pure: octets in, replies and actions out. No socket, file or clock, so memory is enough for its tests.
#![allow(missing_docs)] // of what the name says

pub mod address;
pub mod command;
pub mod data;
pub mod header;
pub mod reply;
pub mod session;
pub mod trace;
