//! The protocol, pure: octets in, replies and actions out. Nothing here knows a socket, a file or a clock,
//! so all of it can be tested, fuzzed and simulated in memory.

pub mod address;
pub mod command;
pub mod data;
pub mod header;
pub mod reply;
pub mod session;
pub mod trace;
