//! **mailchute** takes mail in on a socket and has it safely in a Maildir before it says `250`.
//!
//! Three rules hold it together:
//!
//! 1. [`smtp`] is pure: octets in, replies and actions out; no socket, no file, no clock.
//! 2. The disk decides the reply: `250` leaves only when the message and its name are on stable storage.
//! 3. Events only mark; the turn does the work: receive, deliver, reply, sweep, expire.
//!
//! It can be embedded at two heights: [`smtp::session::Session`] alone, in any runtime, or the whole [`EventLoop`].
//!
//! Read it in this order: `config`, `smtp/session`, `smtp/data`, `delivery`, `server`, `event_loop`.

pub mod config;
pub mod connection;
pub mod delivery;
pub mod event_loop;
pub mod fs;
pub mod maildir;
pub mod recipients;
pub mod server;
pub mod smtp;
pub mod sweep;
#[allow(unsafe_code)]
mod sys;

pub use config::Config;
pub use event_loop::EventLoop;
