//! The lines of the log: the macros of `log`, each use of which takes a fifth of the octets, as the records have no file and line.

use std::fmt::Arguments;

use log::{Level, Record};

macro_rules! log {
    ($level:expr, $($line:tt)+) => {
        if $level <= ::log::STATIC_MAX_LEVEL && $level <= ::log::max_level() {
            $crate::logging::log($level, module_path!(), format_args!($($line)+));
        }
    };
}

macro_rules! error {
    ($($line:tt)+) => { log!(::log::Level::Error, $($line)+) };
}

macro_rules! warn {
    ($($line:tt)+) => { log!(::log::Level::Warn, $($line)+) };
}

macro_rules! info {
    ($($line:tt)+) => { log!(::log::Level::Info, $($line)+) };
}

#[inline(never)]
pub(crate) fn log(level: Level, module: &'static str, line: Arguments<'_>) {
    let mut record = Record::builder();
    log::logger().log(&record.level(level).target(module).module_path_static(Some(module)).args(line).build());
}
